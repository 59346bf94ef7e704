"""How long a sweep will take, and what of it a budget allows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.conductor import Conductor
from orchestrator.forecast import Budget, epochs_s, left_s
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space

OPERATIONS = {"cnn2": 100, "cnn3": 300}


@pytest.fixture
def of_plan() -> Plan:
    return plan(space(trials=3, base={"epochs": 4}, first_rung_epochs=0))


@pytest.fixture
def ledger(tmp_path: Path, of_plan: Plan) -> Ledger:
    return new_ledger(tmp_path / "ledger.sqlite", of_plan)


def train(conductor: Conductor, epoch_s: float, epochs: int = 4) -> str | None:
    """Play the next trial for some epochs; return its variant, None when nothing is left."""
    start = conductor.next_start()
    if start is None:
        return None
    address = start.signature, start.attempt
    for epoch in range(epochs):
        row = metrics(epoch_s=epoch_s, val_s=epoch_s / 4, checkpoint_s=1.0, val_top1=0.5)
        conductor.on_epoch(*address, epoch, row, None)
    if epochs == start.config.epochs:
        conductor.on_end(*address, outcome="complete")
    return start.variant


def test_an_epoch_takes_its_training_validation_and_checkpoint_once(ledger, of_plan):
    train(Conductor(ledger, of_plan), 9.0)
    found = epochs_s(of_plan, ledger.trials(), ledger.latest_epochs(), OPERATIONS)
    assert found == {"cnn2": 10.0, "cnn3": 30.0}  # the one without epochs, by its operations
    left = left_s(of_plan, ledger.trials(), ledger.latest_epochs(), OPERATIONS)
    assert left == 2 * 4 * 10 + 3 * 4 * 30


def test_nothing_is_foreseen_before_the_first_epoch(ledger, of_plan):
    assert left_s(of_plan, ledger.trials(), ledger.latest_epochs(), OPERATIONS) is None


def conductor_with(ledger: Ledger, of_plan: Plan, budget: Budget) -> Conductor:
    return Conductor(
        ledger,
        of_plan,
        is_allowed=lambda variant, epochs: budget.allows(
            ledger, of_plan, OPERATIONS, variant, epochs
        ),
    )


def test_no_trial_starts_that_would_end_after_the_budget(ledger, of_plan):
    # A cnn2 trial takes 40 s, a cnn3 trial 120 s.
    conductor = conductor_with(ledger, of_plan, Budget(until_s=time.time() + 60))
    assert [train(conductor, 9.0) for _ in range(4)] == ["cnn2", "cnn2", "cnn2", None]
    assert not conductor.has_work()
    assert conductor.left_out() == {"cnn3": 3}


def test_a_smaller_variant_goes_on_when_a_larger_one_no_longer_fits(ledger, of_plan):
    turned = plan(
        space(trials=3, base={"epochs": 4}, first_rung_epochs=0, variants=("cnn3", "cnn2"))
    )
    train(Conductor(ledger, of_plan), 9.0)  # of cnn2, so that both are known
    conductor = conductor_with(ledger, turned, Budget(until_s=time.time() + 60))
    assert [train(conductor, 9.0) for _ in range(3)] == ["cnn2", "cnn2", None]
    assert conductor.left_out() == {"cnn3": 3}


def test_device_seconds_count_what_was_used_and_what_is_under_way(ledger, of_plan):
    budget = Budget(device_s=100.0, shares={"cnn2": 1.0, "cnn3": 1.0})
    conductor = conductor_with(ledger, of_plan, budget)
    assert train(conductor, 9.0, epochs=1) == "cnn2"  # 30 s left of it
    assert train(conductor, 9.0, epochs=1) == "cnn2"
    assert train(conductor, 9.0) is None  # 30 + 30 + 40 s are not below 100
    conductor = conductor_with(ledger, of_plan, Budget(device_s=101.0, shares={}))
    assert conductor.left_out() == {"cnn2": 3, "cnn3": 3}


def test_a_share_of_a_device_counts_as_such(ledger, of_plan):
    train(Conductor(ledger, of_plan), 9.0)
    quarter = Budget(device_s=11.0, shares={"cnn2": 0.25})
    whole = Budget(device_s=11.0, shares={"cnn2": 1.0})
    assert quarter.allows(ledger, of_plan, OPERATIONS, "cnn2", 4)
    assert not whole.allows(ledger, of_plan, OPERATIONS, "cnn2", 4)


def test_an_interrupted_trial_that_no_longer_fits_waits_and_the_search_has_no_final(
    tmp_path: Path,
):
    of_plan = plan(
        space(variants=("cnn2",), trials=1, base={"epochs": 4}, first_rung_epochs=0),
        final_seeds=1,
    )
    ledger = new_ledger(tmp_path / "ledger.sqlite", of_plan)
    conductor = Conductor(ledger, of_plan)
    train(conductor, 9.0, epochs=2)
    conductor.interrupt()
    short = conductor_with(ledger, of_plan, Budget(until_s=time.time() + 15))
    assert short.next_start() is None  # its two epochs left take 20 s
    assert short.left_out() == {"cnn2": 1}
    longer = conductor_with(ledger, of_plan, Budget(until_s=time.time() + 25))
    start = longer.next_start()
    assert start is not None
    assert start.attempt == 2
