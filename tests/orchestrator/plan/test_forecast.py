"""How long a sweep will take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.budget import shares
from orchestrator.plan.forecast import epochs_left, epochs_s, left_s
from orchestrator.plan.plan import Plan
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.sweep.measure import forecast_sweep
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space

OPERATIONS = {"cnn2": 100, "cnn3": 300}


@pytest.fixture
def of_plan() -> Plan:
    return plan(space(trials=3, base={"epochs": 4}, first_rung_epochs=0))


@pytest.fixture
def ledger(tmp_path: Path, of_plan: Plan) -> Ledger:
    return new_ledger(tmp_path / "ledger.sqlite", of_plan)


def train(scheduler: TrialScheduler, epoch_s: float, epochs: int = 4) -> str | None:
    """Play the next trial for some epochs; return its variant, None when nothing is left."""
    start = scheduler.next_start()
    if start is None:
        return None
    address = start.signature, start.attempt
    for epoch in range(epochs):
        row = metrics(epoch_s=epoch_s, val_s=epoch_s / 4, checkpoint_s=1.0, val_top1=0.5)
        scheduler.on_epoch(*address, epoch, row, None)
    if epochs == start.config.epochs:
        scheduler.on_end(*address, outcome="complete")
    return start.variant


def test_an_epoch_takes_its_training_validation_and_checkpoint_once(ledger, of_plan):
    train(TrialScheduler(ledger, of_plan), 9.0)
    found = epochs_s(of_plan, ledger.trials(), ledger.latest_epochs(), OPERATIONS)
    assert found == {"cnn2": 10.0, "cnn3": 30.0}  # the one without epochs, by its operations
    left = left_s(of_plan, ledger.trials(), ledger.latest_epochs(), OPERATIONS)
    assert left == 2 * 4 * 10 + 3 * 4 * 30


def test_measured_epoch_times_are_used_until_a_variant_has_epochs(ledger, of_plan):
    measured_s = {"cnn2": 5.0, "cnn3": 7.0}

    def found() -> dict[str, float]:
        latest = ledger.latest_epochs()
        return epochs_s(of_plan, ledger.trials(), latest, OPERATIONS, measured_s)

    assert found() == measured_s
    train(TrialScheduler(ledger, of_plan), 9.0)
    assert found() == {"cnn2": 10.0, "cnn3": 7.0}


def test_there_is_no_estimate_before_the_first_epoch(ledger, of_plan):
    assert left_s(of_plan, ledger.trials(), ledger.latest_epochs(), OPERATIONS) is None


def test_epochs_left_include_planned_running_and_final_trials(ledger, of_plan):
    def left(of: Plan) -> dict[str, int]:
        latest = ledger.latest_epochs()
        return {v: epochs_left(of, v, ledger.trials(), latest) for v in of.variants}

    assert left(of_plan) == {"cnn2": 12, "cnn3": 12}
    assert left(replace(of_plan, final_seeds=2)) == {"cnn2": 20, "cnn3": 20}
    scheduler = TrialScheduler(ledger, of_plan)
    train(scheduler, 9.0)
    train(scheduler, 9.0, epochs=1)
    assert left(of_plan) == {"cnn2": 7, "cnn3": 12}
    # Of more search trials than are asked for now none is a final one.
    assert left(replace(of_plan, trials=1, final_seeds=2))["cnn2"] == 3 + 8


def test_the_forecast_of_a_sweep_counts_devices_as_a_budget_does(of_plan):
    devices = shares(replace(of_plan, overrides={"workers": 2}), 0.25)
    assert devices == {"cnn2": 0.5, "cnn3": 0.5}
    whole = forecast_sweep(
        {"cnn2": 12, "cnn3": 6},
        {"cnn2": 10.0, "cnn3": 20.0},
        devices,
        longest_s=40.0,
        concurrent=4,
        disk_bytes=1,
    )
    assert (whole.epochs, whole.wall_s, whole.device_s) == (18, 60.0, 120.0)
    alone = forecast_sweep(
        {"cnn2": 4}, {"cnn2": 10.0}, devices, longest_s=40.0, concurrent=4, disk_bytes=1
    )
    assert alone.wall_s == 40.0  # one trial does not end sooner for having room beside it
