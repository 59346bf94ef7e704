"""A forecast from a few steps, and a budget that leaves trials out, in the real command."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import ledger_of, sweep

pytestmark = pytest.mark.ray

OPTIONS = ("digits", "--variants", "cnn3", "--trials", 2, "--epochs", 2)


def test_a_measured_dry_run_forecasts_and_leaves_nothing(tmp_path: Path, digits_data_dir: Path):
    done = sweep(tmp_path, *OPTIONS, "--data-dir", digits_data_dir, "--dry-run", "--measure")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Measuring cnn3 (1 of 1)." in done.stdout
    assert "device-hours" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_measuring_without_the_data_is_refused(tmp_path: Path):
    done = sweep(tmp_path, *OPTIONS, "--data-dir", tmp_path / "none", "--dry-run", "--measure")
    assert done.returncode == 2
    assert "Prepare it with `python -m orchestrator.data prepare digits`" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_budget_leaves_out_is_trained_by_resume_and_the_report_has_the_forecast(
    tmp_path: Path, digits_data_dir: Path
):
    paths = SweepPaths(tmp_path / "results", "digits")
    where = ("--data-dir", digits_data_dir)
    # By the time that a trial can start, a second is over.
    short = sweep(tmp_path, *OPTIONS, *where, "--measure", "--budget", "1s")
    assert short.returncode == 0, short.stdout + short.stderr
    assert "These trials did not fit the budget: 2 of cnn3." in short.stdout
    ledger = ledger_of(paths)
    assert ledger.trials() == []
    forecast = ledger.facts()["forecast"]["cnn3"]
    ledger.close()
    done = sweep(tmp_path, *OPTIONS, *where, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = ledger_of(paths)
    assert [trial.status for trial in ledger.trials()] == ["complete", "complete"]
    spans = [
        row.metrics["epoch_s"] + row.metrics["checkpoint_s"]
        for trial in ledger.trials()
        for row in ledger.epochs(trial.signature)
    ]
    ledger.close()
    # A busy machine is slower or faster by far, but not by an order of magnitude.
    assert 0.1 < forecast["epoch_s"] / (sum(spans) / len(spans)) < 10
    report = (paths.root / "report" / "report.md").read_text()
    assert "Forecast and measured, per variant" in report
    assert "Forecast and measured, whole sweep" in report


def test_no_trial_starts_that_was_measured_to_take_longer_than_the_budget(
    tmp_path: Path, digits_data_dir: Path
):
    long = ("digits", "--variants", "cnn3", "--trials", 2, "--epochs", 100_000)
    done = sweep(tmp_path, *long, "--data-dir", digits_data_dir, "--measure", "--budget", "10m")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "These trials did not fit the budget: 2 of cnn3." in done.stdout
    ledger = ledger_of(SweepPaths(tmp_path / "results", "digits"))
    assert ledger.attempts() == []
    ledger.close()
