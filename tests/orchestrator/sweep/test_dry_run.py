"""`--dry-run` prints what a sweep would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.clock import Clock
from orchestrator.errors import UsageError
from orchestrator.plan.options import SweepConfig
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.storage import locks
from orchestrator.sweep import opening
from orchestrator.sweep.summary import dry_run, searched
from tests.orchestrator.simulated_sweeps import failed, run_trials
from tests.orchestrator.sweeps import parse_args, plan, space
from trainables.training import device


def arguments(tmp_path: Path, *argv: str) -> SweepConfig:
    folders = ("--data-dir", str(tmp_path / "data"), "--storage", str(tmp_path / "results"))
    return parse_args([*argv, *folders, "--dry-run"])


def test_the_plan_shows_the_ranges_and_for_which_variants() -> None:
    of = space(by_variant={"cnn3": {"dropout": 0.5}}, enqueued=())
    assert searched(plan(of)) == [
        "Searched:",
        "  batch_size  32, 64, 128",
        "  dropout     0 to 0.5 (cnn2)",
        "  lr          0.0001 to 0.1, logarithmic",
        "  optimizer   sgd, adamw",
    ]
    assert searched(plan(space(params={}))) == ["Searched: nothing; trials differ in their seeds."]


@pytest.mark.parametrize(
    ("gpus", "flags", "text"),
    [
        (0, (), " 1 CPU, no GPU here "),
        (1, (), " 1 CPU, 1 GPU "),
        (1, ("--gpus-per-trial", "0.5"), " 1 CPU, 0.5 GPU "),
        (2, ("--workers-per-trial", "2"), " 2 x (1 CPU, 1 GPU) "),
    ],
)
def test_the_plan_shows_what_a_trial_gets_on_this_machine(
    gpus: int,
    flags: tuple[str, ...],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "num_gpus", lambda: gpus)
    assert dry_run(arguments(tmp_path, "digits", *flags)) == 0
    out = capsys.readouterr().out
    assert out.count(text) == 3
    assert "\n  lr          0.0005 to 0.01, logarithmic\n" in out
    assert "Not searched" not in out
    assert not any(tmp_path.iterdir())


def test_the_plan_shows_which_batch_sizes_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from optuna.distributions import CategoricalDistribution\n"
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='mine', dataset='digits', variants=('cnn3',), trials=2,\n"
        "    base={'epochs': 1}, image_size=32,\n"
        "    params={'batch_size': CategoricalDistribution([512, 1024, 2048])})\n"
    )
    assert dry_run(arguments(tmp_path, str(mine))) == 0
    out = capsys.readouterr().out
    assert "  batch_size  512, 1024\n" in out
    assert "Not searched: `batch_size` 2048, because digits has only 1438 training images.\n" in out


def test_an_unknown_dataset_is_answered_with_the_prepared_ones(
    tmp_path: Path, digits_dir: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photos").symlink_to(digits_dir)
    with pytest.raises(UsageError) as caught:
        dry_run(arguments(tmp_path, "digits", "--dataset", "fotos"))
    assert str(caught.value).endswith(
        "Known: cifar10, cifar100, digits, photos, tinyimagenet. Did you mean 'photos'?"
    )


SMALL = ("digits", "--variants", "cnn3", "--trials", "2", "--epochs", "2", "--seed", "5")


@pytest.fixture
def resumed(tmp_path: Path, digits_data_dir: Path) -> tuple[str, ...]:
    """The arguments that resume the sweep 'mine', whose trials failed and diverged."""
    where = ("--name", "mine", "--data-dir", str(digits_data_dir), "--storage", str(tmp_path))
    config = parse_args([*SMALL, "--final-seeds", "0", *where])
    config.paths.root.mkdir()
    ledger, of, _, _ = opening.open_sweep(config, Clock())
    ends = {0: failed("bug"), 1: {"outcome": "diverged"}}
    run_trials(TrialScheduler(ledger, of), end_at=lambda start, epoch: ends[start.number])
    ledger.close()
    return "digits", *where, "--resume", "--dry-run"


def test_the_plan_of_a_resume_has_the_sweeps_own_options_and_writes_nothing(
    tmp_path: Path, resumed: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert dry_run(parse_args(resumed)) == 0
    out = capsys.readouterr().out
    sentence = "To resume 'mine': 2 of 2 trials have ended; 1 of them failed and will be retried."
    assert out.startswith(sentence)
    assert "Plan of 'mine' on digits, seed 5" in out
    rows = [line.split("│")[1:5] for line in out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [["cnn3", "32", "2", "2"]]
    assert "After the search" not in out
    assert dry_run(parse_args([*resumed, "--no-retry-failed"])) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_plan_of_a_resume_is_refused_as_the_resume_would_be(
    tmp_path: Path, resumed: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, sentence in (
        ((*resumed, "--epochs", "5"), "overrides.epochs: 2 before, 5 now"),
        (("cifar10", *resumed[1:]), "searches the space 'digits', not 'cifar10'"),
        ((*resumed, "--name", "other"), "There is no sweep named 'other'"),
    ):
        with pytest.raises(UsageError, match=sentence):
            dry_run(parse_args(argv))
    with locks.driver_lock(parse_args(resumed).paths), pytest.raises(UsageError, match="being run"):
        dry_run(parse_args(resumed))
    capsys.readouterr()
    assert dry_run(parse_args([*resumed, "--epochs", "5", "--force"])) == 0
    assert (
        "Resuming with changed values:\n  overrides.epochs: 2 before, 5" in capsys.readouterr().out
    )
