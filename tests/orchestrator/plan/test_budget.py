"""What a budget allows, with simulated trials."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.clock import Clock
from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.budget import Budget, allowance
from orchestrator.plan.plan import Plan
from orchestrator.search.scheduler import TrialScheduler
from tests.orchestrator.plan.test_forecast import OPERATIONS, train
from tests.orchestrator.sweeps import new_ledger, plan, space


@pytest.fixture
def of_plan() -> Plan:
    return plan(space(trials=3, base={"epochs": 4}, first_rung_epochs=0))


@pytest.fixture
def ledger(tmp_path: Path, of_plan: Plan) -> Ledger:
    return new_ledger(tmp_path / "ledger.sqlite", of_plan)


def scheduler_with(ledger: Ledger, of_plan: Plan, budget: Budget) -> TrialScheduler:
    return TrialScheduler(
        ledger,
        of_plan,
        fits_budget=allowance(budget, ledger, of_plan, OPERATIONS),
    )


def test_no_trial_starts_that_would_end_after_the_budget(ledger, of_plan):
    # A cnn2 trial takes 40 s, a cnn3 trial 120 s.
    scheduler = scheduler_with(ledger, of_plan, Budget(until_s=time.time() + 60))
    assert [train(scheduler, 9.0) for _ in range(4)] == ["cnn2", "cnn2", "cnn2", None]
    assert not scheduler.has_work()
    assert scheduler.left_out() == {"cnn3": 3}


def test_measured_epoch_times_keep_the_first_trial_from_starting(ledger, of_plan):
    budget = Budget(until_s=time.time() + 60)
    allows = allowance(budget, ledger, of_plan, OPERATIONS)
    assert allows("cnn2", 4)  # nothing is known
    assert allows("cnn3", 4)
    allows = allowance(budget, ledger, of_plan, OPERATIONS, {"cnn2": 10.0, "cnn3": 30.0})
    assert allows("cnn2", 4)  # 40 s
    assert not allows("cnn3", 4)  # 120 s


def test_a_smaller_variant_continues_when_a_larger_one_no_longer_fits(ledger, of_plan):
    turned = plan(
        space(trials=3, base={"epochs": 4}, first_rung_epochs=0, variants=("cnn3", "cnn2"))
    )
    train(TrialScheduler(ledger, of_plan), 9.0)  # of cnn2, so that both are known
    scheduler = scheduler_with(ledger, turned, Budget(until_s=time.time() + 60))
    assert [train(scheduler, 9.0) for _ in range(3)] == ["cnn2", "cnn2", None]
    assert scheduler.left_out() == {"cnn3": 3}


def test_device_seconds_include_ended_and_running_attempts(ledger, of_plan):
    budget = Budget(device_s=100.0, shares={"cnn2": 1.0, "cnn3": 1.0})
    scheduler = scheduler_with(ledger, of_plan, budget)
    assert train(scheduler, 9.0, epochs=1) == "cnn2"  # 30 s left of it
    assert train(scheduler, 9.0, epochs=1) == "cnn2"
    assert train(scheduler, 9.0) is None  # 30 + 30 + 40 s are not below 100
    scheduler = scheduler_with(ledger, of_plan, Budget(device_s=101.0, shares={}))
    assert scheduler.left_out() == {"cnn2": 3, "cnn3": 3}


def test_a_share_of_a_device_counts_as_a_fraction(ledger, of_plan):
    train(TrialScheduler(ledger, of_plan), 9.0)
    quarter = Budget(device_s=11.0, shares={"cnn2": 0.25})
    whole = Budget(device_s=11.0, shares={"cnn2": 1.0})
    assert allowance(quarter, ledger, of_plan, OPERATIONS)("cnn2", 4)
    assert not allowance(whole, ledger, of_plan, OPERATIONS)("cnn2", 4)


def test_an_interrupted_trial_that_no_longer_fits_waits_and_the_search_has_no_final(
    tmp_path: Path,
):
    of_plan = plan(
        space(variants=("cnn2",), trials=1, base={"epochs": 4}, first_rung_epochs=0),
        final_seeds=1,
    )
    ledger = new_ledger(tmp_path / "ledger.sqlite", of_plan)
    scheduler = TrialScheduler(ledger, of_plan)
    train(scheduler, 9.0, epochs=2)
    scheduler.interrupt()
    short = scheduler_with(ledger, of_plan, Budget(until_s=time.time() + 15))
    assert short.next_start() is None  # its two epochs left take 20 s
    assert short.left_out() == {"cnn2": 1}
    longer = scheduler_with(ledger, of_plan, Budget(until_s=time.time() + 25))
    start = longer.next_start()
    assert start is not None
    assert start.attempt == 2


def test_the_time_between_a_killed_driver_and_its_resume_is_no_device_time(
    ledger, of_plan, monkeypatch
):
    train(TrialScheduler(ledger, of_plan), 9.0, epochs=1)
    morning_s = time.time() + 36_000
    monkeypatch.setattr(ledger, "_clock", Clock(now_s=lambda: morning_s))
    budget = Budget(device_s=130.0)
    scheduler = scheduler_with(ledger, of_plan, budget)  # closes the attempt as lost, now
    assert ledger.attempts()[0].ended_s == morning_s
    assert scheduler.has_work()
    assert allowance(budget, ledger, of_plan, OPERATIONS)("cnn3", 4)  # 120 s
    assert not allowance(budget, ledger, of_plan, OPERATIONS)("cnn2", 14)  # 140 s
