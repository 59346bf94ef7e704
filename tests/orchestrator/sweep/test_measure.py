"""The forecast from measured steps, and the part of it that the ledger stores."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.options import SweepConfig
from orchestrator.plan.plan import VariantCost
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.sweep import measure as sweep_measure
from tests.orchestrator.plan.test_forecast import train
from tests.orchestrator.sweeps import new_ledger, parse_args, plan, space
from trainables.training.probe import TrainingTime

FACTS = {
    name: VariantCost(image_size_px=32, parameters=1000, multiply_accumulates=10)
    for name in ("cnn2", "cnn3")
}


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    folder = tmp_path / "data" / "digits"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    given = ["digits", "--data-dir", str(folder.parent), "--max-concurrent", "1", "--measure"]
    return parse_args(given)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return new_ledger(tmp_path / "ledger.sqlite", of_plan())


def of_plan(**overrides: Any) -> Any:
    of = plan(space(trials=3, base={"epochs": 4}, first_rung_epochs=0))
    of.overrides.update(overrides)
    return of


def measure(
    config: SweepConfig, of: Any, ledger: Ledger | None, epoch_s: float, monkeypatch: Any
) -> tuple[dict[str, float], str]:
    def measured(plan: Any, variant: str, dataset: Path) -> TrainingTime:
        return TrainingTime(step_s=0.5, epoch_s=epoch_s, peak_gib=1.0)

    monkeypatch.setattr(sweep_measure, "_measure_variant", measured)
    out = io.StringIO()
    found = sweep_measure.measure(config, of, FACTS, Console(file=out, width=120), ledger)
    return found, out.getvalue()


def test_the_forecast_of_a_planned_sweep_covers_all_trials(config, monkeypatch):
    epoch_s, printed = measure(config, of_plan(), None, 100.0, monkeypatch)
    assert epoch_s == {"cnn2": 100.0, "cnn3": 100.0}
    assert "In total 0.67 device-hours; with one trial at a time about 0:40:00" in printed


def test_n_workers_are_n_times_as_fast_and_count_as_n_devices(config, monkeypatch):
    epoch_s, printed = measure(config, of_plan(workers=2), None, 100.0, monkeypatch)
    assert epoch_s == {"cnn2": 50.0, "cnn3": 50.0}
    assert "In total 0.67 device-hours; with one trial at a time about 0:20:00" in printed
    assert "2 workers are 2 times as fast as one" in printed


def test_the_ledger_keeps_the_first_forecast_and_a_resume_prints_one_for_the_rest(
    config, ledger, monkeypatch
):
    measure(config, of_plan(), ledger, 100.0, monkeypatch)
    first = ledger.facts()["forecast"], ledger.facts().get("forecast_whole")
    assert first[0]["cnn2"] == {"step_s": 0.5, "epoch_s": 100.0, "peak_gib": 1.0}
    assert (first[1]["wall_s"], first[1]["device_s"], first[1]["epochs"]) == (2400.0, 2400.0, 24)
    scheduler = TrialScheduler(ledger, of_plan())
    for _ in range(3):
        assert train(scheduler, 9.0) == "cnn2"
    epoch_s, printed = measure(config, of_plan(), ledger, 50.0, monkeypatch)
    assert epoch_s == {"cnn2": 50.0, "cnn3": 50.0}
    assert "about 0:10:00" in printed
    assert (ledger.facts()["forecast"], ledger.facts().get("forecast_whole")) == first
