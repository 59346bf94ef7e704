"""Recorded ledgers of an earlier version are read and reported as when they were recorded.

`golden/ledgers/README.md` says how each was recorded.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger, open_ledger
from orchestrator.ledger.ranking import best_trial
from orchestrator.report.render import write_report
from orchestrator.sweep.__main__ import main

LEDGERS = Path(__file__).parent / "golden" / "ledgers"
EXPECTED: dict[str, Any] = json.loads((LEDGERS / "expected.json").read_text())


@pytest.fixture(params=EXPECTED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ledger(name: str, tmp_path: Path) -> Iterator[Ledger]:
    path = tmp_path / name / "ledger.sqlite"
    path.parent.mkdir()
    shutil.copyfile(LEDGERS / f"{name}.sqlite", path)
    ledger = open_ledger(path)
    yield ledger
    ledger.close()


def read(ledger: Ledger) -> dict[str, Any]:
    """Return a ledger's facts in the form of `expected.json`."""
    trials = ledger.trials()
    rows = []
    for trial in trials:
        attempts = ledger.attempts(trial.signature)
        rows.append(
            {
                "signature": trial.signature,
                "variant": trial.variant,
                "stage": trial.stage,
                "number": trial.number,
                "status": trial.status,
                "best_epoch": trial.best_epoch,
                "best_value": trial.best_value,
                "attempts": len(attempts),
                "outcomes": [attempt.outcome for attempt in attempts],
                "failure_classes": [attempt.failure_class for attempt in attempts],
                "epochs": len(ledger.epochs(trial.signature)),
            }
        )
    mode = ledger.facts()["plan"]["space"]["mode"]
    best = {}
    for variant in {trial.variant for trial in trials}:
        chosen = best_trial([trial for trial in trials if trial.variant == variant], mode)
        best[variant] = chosen.signature if chosen else None
    return {"evaluations": len(ledger.evaluations()), "best": best, "trials": rows}


def test_every_recorded_ledger_has_expectations() -> None:
    assert {path.stem for path in LEDGERS.glob("*.sqlite")} == set(EXPECTED)


def test_a_recorded_ledger_is_read_exactly_as_when_it_was_recorded(
    name: str, ledger: Ledger
) -> None:
    assert read(ledger) == EXPECTED[name]


def test_the_report_of_a_recorded_ledger_holds_the_value_of_each_best_trial(
    name: str, ledger: Ledger, tmp_path: Path
) -> None:
    page = write_report(ledger, tmp_path / name / "report", name)
    assert "</html>" in page.read_text()
    text = page.with_name("report.md").read_text()
    assert name in text
    has_failed = any(trial["status"] == "failed" for trial in EXPECTED[name]["trials"])
    assert ("To retry failed trials: " in text) == has_failed
    metric = ledger.facts()["plan"]["space"]["metric"]
    with page.with_name("trials.csv").open() as file:
        values = {row["signature"]: row[f"best_{metric}"] for row in csv.DictReader(file)}
    assert len(values) == len(EXPECTED[name]["trials"])
    for signature in EXPECTED[name]["best"].values():
        assert float(values[signature]) == ledger.trial(signature).best_value


def test_resuming_or_verifying_a_recorded_ledger_is_refused_in_one_sentence(
    name: str, ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = json.loads(json.dumps(ledger.facts()["plan"]))["space"]["name"]
    ledger.close()
    source = LEDGERS / "spaces" / f"{space}.py"
    words = [str(source) if source.exists() else space, "--name", name, "--storage", str(tmp_path)]
    for flag in ("--resume", "--verify"):
        before = (tmp_path / name / "ledger.sqlite").read_bytes()
        assert main([*words, flag]) == 2
        said = capsys.readouterr().err
        assert said.startswith("This sweep was recorded by an earlier version (ledger schema 5;")
        assert "it cannot be resumed or verified. Start a new sweep under another --name." in said
        assert (tmp_path / name / "ledger.sqlite").read_bytes() == before
