"""The report command: the files it writes, that it only reads the sweep, and its errors."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from orchestrator.ledger import backup
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.__main__ import main
from orchestrator.report.document.blocks import Card, Cards, Column, Section, Table, to_csv
from orchestrator.report.document.markdown import to_markdown
from orchestrator.report.render import write_report
from orchestrator.report.statistics import Estimate
from orchestrator.storage import lease
from orchestrator.storage.paths import sweep_paths
from tests.orchestrator import sweeps
from tests.orchestrator.report.played_report import build

# The answer first, facts of the sweep last. Its space reproduces no study.
SECTIONS = (
    *("result", "leaderboard", "pairs", "curves", "search", "fronts", "validation", "classes"),
    *("calibration", "maps", "predictions", "failures", "time", "sweep"),
)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with one sweep and its report. Tests only read it."""
    folder = tmp_path_factory.mktemp("it's a storage")
    build(folder / "demo" / "ledger.sqlite").close()
    assert main(["demo", "--storage", str(folder)]) == 0
    return folder


def page_of(storage: Path, name: str = "demo") -> str:
    return (storage / name / "report" / "report.html").read_text()


def test_the_page_has_every_section_and_fetches_nothing(storage: Path) -> None:
    page = page_of(storage)
    assert re.findall(r'<section id="(\w+)">', page) == list(SECTIONS)
    assert page.count(get_plotlyjs()[:2000]) == 1
    own = page.replace(get_plotlyjs().replace("</script", "<\\/script"), "")
    assert len(own) < 1_500_000
    # The page loads nothing, neither from another host nor from another file.
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", own) == []
    assert "@import" not in own
    assert "url(" not in own
    assert "default-src 'none'" in own


def test_tables_are_written_as_csv_and_markdown(storage: Path) -> None:
    folder = storage / "demo" / "report"
    rows = list(csv.DictReader(io.StringIO((folder / "leaderboard.csv").read_text())))
    assert [row["variant"] for row in rows] == ["cnn3", "cnn2"]
    top1 = float(rows[0]["test_top1_mean"])
    assert 0.4 < top1 < 0.7
    markdown = (folder / "report.md").read_text()
    line = next(line for line in markdown.splitlines() if line.startswith("| cnn3 |"))
    assert f"| {100 * top1:.1f} |" in line
    # How to use the page is only in the page.
    for text in ("Drag over a matrix", "Click a column heading", "Click a variant in the legend"):
        assert (page_of(storage).count(text), markdown.count(text)) == (1, 0)
    assert len((folder / "trials.csv").read_text().splitlines()) == 1 + 3 * 15


def test_the_command_prints_the_path_of_the_page(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--storage", str(storage)]) == 0
    assert capsys.readouterr().out.strip() == str(storage / "demo" / "report" / "report.html")


def test_a_report_changes_nothing_but_its_folder(storage: Path) -> None:
    before = {p: p.read_bytes() for p in (storage / "demo").iterdir() if p.is_file()}
    assert main(["demo", "--storage", str(storage)]) == 0
    assert {p: p.read_bytes() for p in (storage / "demo").iterdir() if p.is_file()} == before
    assert sorted(p.name for p in (storage / "demo").iterdir() if p.is_dir()) == ["report"]


def test_a_sweep_that_is_running_can_be_reported(tmp_path: Path) -> None:
    """A transaction that the driver has not committed neither blocks the report nor is in it."""
    ledger = build(tmp_path / "demo" / "ledger.sqlite", trials=2, variants=("cnn2",))
    trials = len(ledger.trials())
    ledger.database.connection.execute("BEGIN IMMEDIATE")
    ledger.database.connection.execute("DELETE FROM evaluations")
    assert main(["demo", "--storage", str(tmp_path)]) == 0
    ledger.database.connection.execute("ROLLBACK")
    lines = (tmp_path / "demo" / "report" / "trials.csv").read_text().splitlines()
    assert len(lines) == 1 + trials
    ledger.close()


def new_sweep(path: Path) -> Ledger:
    return sweeps.new_ledger(path, sweeps.plan(sweeps.space()))


def test_a_sweep_without_finished_trials_says_so_and_nothing_else(tmp_path: Path) -> None:
    new_sweep(tmp_path / "new" / "ledger.sqlite").close()
    assert main(["new", "--storage", str(tmp_path)]) == 0
    page = page_of(tmp_path, "new")
    assert "No trial of this sweep has finished yet." in page
    assert re.findall(r'<section id="(\w+)">', page) == ["result", "sweep"]
    tables = {path.name for path in (tmp_path / "new" / "report").glob("*.csv")}
    assert tables == {"sweep.csv"}


def test_a_sweep_with_one_running_trial_is_shown(tmp_path: Path) -> None:
    ledger = new_sweep(tmp_path / "new" / "ledger.sqlite")
    config = sweeps.plan(sweeps.space()).train_config("cnn2", 0, {"lr": 0.1}).to_dict()
    ledger.plan_trial(signature="a", variant="cnn2", number=0, config=config, params={}, seen_seq=0)
    ledger.start_attempt("a", resumed_from=None, micro_batch_size=0)
    ledger.record_epoch("a", 1, 0, sweeps.metrics(val_top1=0.25), None)
    ledger.close()
    assert main(["new", "--storage", str(tmp_path)]) == 0
    page = page_of(tmp_path, "new")
    assert "No trial of this sweep has finished yet." in page
    assert "running: 1" in page
    assert "Not ended: 1 trial of 1. The result may change." in page
    names = re.findall(r'<section id="(\w+)">', page)
    assert names == ["result", "leaderboard", "curves", "search", "time", "sweep"]


def test_an_unknown_name_lists_the_known_ones(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dem", "--storage", str(storage)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"There is no sweep named 'dem' in {storage}. Existing: demo. Did you mean 'demo'? "
        "Name another place with --storage.\n"
    )
    assert main(["../x", "--storage", str(storage / "none")]) == 2
    assert "Existing: none." in capsys.readouterr().err


def test_a_path_of_a_sweep_is_answered_with_its_name_and_storage(
    storage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(storage.parent)
    words = shlex.join(["demo", "--storage", str(storage)])
    for path in (str(storage / "demo"), f"{storage.name}/demo"):
        assert main([path, "--storage", "other"]) == 2
        assert capsys.readouterr().err == (
            f"There is no sweep named {path!r} in {storage.parent / 'other'}. Existing: none. "
            f"That path is a sweep: give its name, `{words}`.\n"
        )


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_a_damaged_ledger_is_named(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    good = (storage / "demo" / "ledger.sqlite").read_bytes()
    content = {"text": b"no ledger at all", "cut": good[: len(good) // 2], "empty": b""}[damage]
    ledger = tmp_path / "demo" / "ledger.sqlite"
    ledger.parent.mkdir()
    ledger.write_bytes(content)
    assert main(["demo", "--storage", str(tmp_path)]) == 2
    assert str(ledger) in capsys.readouterr().err
    assert sorted(p.name for p in ledger.parent.iterdir()) == ["ledger.sqlite"]


def test_a_report_that_cannot_be_written_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "demo" / "ledger.sqlite", trials=1, variants=("cnn2",)).close()
    assert main(["demo", "--storage", str(tmp_path)]) == 0
    folder = tmp_path / "demo" / "report"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    write_text = Path.write_text

    def full(self: Path, *arguments: object, **named: object) -> int:
        if self.name == "report.md":
            raise OSError(28, os.strerror(28))
        return write_text(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["demo", "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"The report cannot be written to {folder}: ")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["ledger.sqlite", "report"]


def test_a_sweep_in_remote_storage_is_read_from_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that did not run the sweep has no ledger of its own."""
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    address = (tmp_path / "storage").as_uri()
    paths = sweep_paths(address, "demo")
    paths.root.mkdir(parents=True)
    with backup.open_backup(paths, lambda line: None) as ledger_backup:
        assert ledger_backup is not None
        ledger_backup.fetch()
        ledger = build(paths.ledger, trials=2, variants=("cnn2",))
        ledger_backup.start(ledger)
        assert ledger_backup.flush(lambda: 5)
        ledger_backup.stop()
        ledger.close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert main(["demo", "--storage", address]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page.is_relative_to(tmp_path / "another")
    assert "cnn2" in page.read_text()
    assert [path.name for path in page.parents[1].iterdir()] == ["report"]
    assert main(["dem", "--storage", address]) == 2
    assert "Existing: demo." in capsys.readouterr().err


def test_hostile_class_names_are_escaped(tmp_path: Path) -> None:
    """A class folder of the user may have any name."""
    evil = "</script><script>alert(1)</script>"
    ledger = build(tmp_path / "demo" / "ledger.sqlite", variants=("cnn2",), trials=6)
    names = [evil, 'a "b" | c', *(f"class {n}" for n in range(8))]
    ledger.put("manifest", {**ledger.facts()["manifest"], "class_names": names})
    write_report(ledger, tmp_path / "report")
    ledger.close()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert "(3, &lt;b&gt;4&lt;/b&gt;) do not fit" in page  # a traceback's last line
    assert 'a "b" \\| c' in (tmp_path / "report" / "report.md").read_text()


def test_help_needs_neither_plotly_nor_optuna() -> None:
    heavy = ("plotly", "scipy", "optuna", "matplotlib", "orchestrator.report")
    source = Path(sys.modules[main.__module__].__file__ or "").read_text()
    top = source.partition("\ndef ")[0]
    assert not any(re.search(rf"^(import|from) {name}", top, re.MULTILINE) for name in heavy)


TABLE = Table(
    name="t",
    title="T",
    columns=(
        Column("variant", "variant"),
        Column("top1", "top-1", "percent"),
        Column("gain", "gain", "points"),
        Column("macs", "multiply-accumulates", "mega"),
        Column("n", "n", "count"),
        Column("nothing", "nothing"),
        Column("ours", "ours", "estimate"),
        Column("top1", "interval", "interval"),
    ),
    rows=[
        [
            *("a|b", 0.12345, -0.01, 2_500_000, 1234, None),
            *(Estimate(3, 0.5, 0.01, 0.475, 0.525), (0.1, 0.15)),
        ],
        ["c", *[None] * 7],
    ],
)


def test_percent_is_printed_and_fractions_are_stored() -> None:
    assert to_csv(TABLE) == (
        "variant,top1,gain,macs,n,nothing,ours,ours_sd,ours_seeds,top1_low,top1_high\n"
        "a|b,0.12345,-0.01,2500000,1234,,0.5,0.01,3,0.1,0.15\nc,,,,,,,,,,\n"
    )
    assert to_markdown("R", [Section.of("s", "S", "one", TABLE)]) == (
        "# R\n\n## S\n\none\n\n### T\n\n"
        "| variant | top-1, % | gain, points | multiply-accumulates, M | n | ours, % "
        "| interval, % |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| a\\|b | 12.3 | -1.0 | 2.50 | 1,234 | 50.0 (± 1.0, n = 3) | 10.0 to 15.0 |\n"
        "| c | – | – | – | – | – | – |\n"  # noqa: RUF001
    )


def test_cards_are_a_list_in_markdown() -> None:
    cards = Cards("Best", [Card("Best variant", "a|b", ["one", "two"]), Card("Cost", "1 s")])
    assert to_markdown("R", [Section.of("s", "S", cards)]) == (
        "# R\n\n## S\n\n### Best\n\n- **Best variant: a\\|b** one; two\n- **Cost: 1 s**\n"
    )
