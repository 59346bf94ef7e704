"""The scheduler's decisions, with simulated trials."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger, open_ledger
from orchestrator.ledger.records import ENDED
from orchestrator.plan.plan import Plan
from orchestrator.search.scheduler import TrialScheduler
from tests.orchestrator.simulated_sweeps import (
    Killed,
    check_invariants,
    failed,
    kill_at,
    mixed_ends,
    no_early_end,
    num_running,
    results,
    run_epoch,
    run_trials,
    start_next,
    without_fsync,
)
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space


@pytest.fixture
def of_plan() -> Plan:
    return plan(space(trials=6))


@pytest.fixture
def ledger(tmp_path: Path, of_plan: Plan) -> Ledger:
    return without_fsync(new_ledger(tmp_path / "ledger.sqlite", of_plan))


def test_every_trial_ends_exactly_once(ledger: Ledger, of_plan: Plan) -> None:
    started = run_trials(TrialScheduler(ledger, of_plan))
    assert len(started) == len({start.signature for start in started}) == 12
    check_invariants(ledger, of_plan)
    assert {trial.status for trial in ledger.trials()} == {"complete", "stopped"}


def test_variants_run_in_the_order_of_the_plan(ledger: Ledger, of_plan: Plan) -> None:
    started = run_trials(TrialScheduler(ledger, of_plan))
    assert [start.variant for start in started] == ["cnn2"] * 6 + ["cnn3"] * 6
    assert [start.number for start in started] == [*range(6), *range(6)]


@pytest.mark.parametrize("limit", [2, 5, 50])
def test_invariants_hold_with_concurrent_trials(ledger: Ledger, of_plan: Plan, limit: int) -> None:
    run_trials(TrialScheduler(ledger, of_plan), limit=limit, draws=random.Random(limit))
    check_invariants(ledger, of_plan)


def test_an_attempt_is_in_the_ledger_before_it_is_returned(ledger: Ledger, of_plan: Plan) -> None:
    start = TrialScheduler(ledger, of_plan).next_start()
    assert start is not None
    trial = ledger.trial(start.signature)
    assert (trial.status, trial.seen_seq, trial.planned_seq) == ("running", 0, 1)
    assert trial.config == start.config.to_dict()
    assert {name: trial.config[name] for name in trial.params} == trial.params
    assert [attempt.attempt for attempt in ledger.attempts(start.signature)] == [start.attempt]


# Killed drivers.


def unbroken(tmp_path: Path, of: Plan) -> tuple[list[tuple[Any, ...]], int]:
    """Return the results of an uninterrupted sweep and how many changes its ledger made."""
    ledger, changes = without_fsync(new_ledger(tmp_path / "unbroken.sqlite", of)), 0
    original = ledger.database.change

    def counted() -> Any:
        nonlocal changes
        changes += 1
        return original()

    ledger.database.change = counted  # type: ignore[method-assign]
    run_trials(TrialScheduler(ledger, of), end_at=mixed_ends)
    check_invariants(ledger, of)
    return results(ledger), changes


def test_a_sweep_killed_at_any_change_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    """One trial at a time: trials, parameters, ends, best values and rows are exactly equal."""
    of = plan(space(trials=6), seed=2)
    expected, changes = unbroken(tmp_path, of)
    assert {row[4] for row in expected} == set(ENDED)
    points = [(change, before) for change in range(1, changes, 3) for before in (True, False)]
    assert len(points) >= 40
    for change, before in points:
        path = tmp_path / f"{change}-{before}.sqlite"
        ledger = without_fsync(new_ledger(path, of))
        kill_at(ledger, change, before=before)
        with pytest.raises(Killed):
            run_trials(TrialScheduler(ledger, of), end_at=mixed_ends)
        ledger.close()
        again = without_fsync(open_ledger(path))
        run_trials(TrialScheduler(again, of), end_at=mixed_ends)
        assert results(again) == expected, (change, before)
        check_invariants(again, of)
        again.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_sweep_killed_repeatedly_ends_like_an_unbroken_one(tmp_path: Path, seed: int) -> None:
    of = plan(space(trials=6), seed=2)
    expected, _ = unbroken(tmp_path, of)
    draws, path, kills = random.Random(seed), tmp_path / "ledger.sqlite", 0
    ledger = without_fsync(new_ledger(path, of))
    while True:
        kill_at(ledger, draws.randrange(3, 30), before=draws.random() < 0.5)
        try:
            run_trials(TrialScheduler(ledger, of), end_at=mixed_ends)
        except Killed:
            kills += 1
            ledger.close()
            ledger = without_fsync(open_ledger(path))
            if kills < 15:
                continue
            run_trials(TrialScheduler(ledger, of), end_at=mixed_ends)
        break
    assert kills >= 5
    assert results(ledger) == expected


@pytest.mark.parametrize("seed", range(6))
def test_invariants_hold_when_killed_with_concurrent_trials(tmp_path: Path, seed: int) -> None:
    of = plan(space(trials=6), seed=2)
    draws, path = random.Random(seed), tmp_path / "ledger.sqlite"
    ledger = without_fsync(new_ledger(path, of))
    for _ in range(4):
        kill_at(ledger, draws.randrange(1, 40), before=draws.random() < 0.5)
        with contextlib.suppress(Killed):
            run_trials(TrialScheduler(ledger, of), limit=3, end_at=mixed_ends, draws=draws)
        ledger.close()
        ledger = without_fsync(open_ledger(path))
    run_trials(TrialScheduler(ledger, of), limit=3, end_at=mixed_ends, draws=draws)
    check_invariants(ledger, of)


def test_a_new_driver_makes_a_stop_that_the_last_one_did_not_record(tmp_path: Path) -> None:
    of = plan(space(variants=("cnn2",), trials=3, first_rung_epochs=1))
    path = tmp_path / "ledger.sqlite"
    ledger = new_ledger(path, of)
    scheduler = TrialScheduler(ledger, of)
    starts = [scheduler.next_start() for _ in range(3)]
    for start, value in zip(starts, (0.9, 0.8), strict=False):
        assert start is not None
        assert not scheduler.on_epoch(start.signature, 1, 0, metrics(val_top1=value), "c")
    last = starts[2]
    assert last is not None
    kill_at(ledger, 1, before=False)  # after the row, before the stop
    with pytest.raises(Killed):
        scheduler.on_epoch(last.signature, 1, 0, metrics(val_top1=0.1), "c")
    ledger.close()
    again = open_ledger(path)
    assert again.trial(last.signature).status == "running"
    resumed = TrialScheduler(again, of)
    assert again.trial(last.signature).status == "stopped"
    assert again.trial(last.signature).best_value == 0.1
    waiting = [resumed.next_start(), resumed.next_start()]
    assert [start and start.number for start in waiting] == [0, 1]
    assert resumed.next_start() is None


def test_an_open_attempt_of_a_dead_driver_is_lost_and_its_trial_resumes(
    ledger: Ledger, of_plan: Plan
) -> None:
    first = TrialScheduler(ledger, of_plan)
    running = start_next(first)
    assert running is not None
    assert run_epoch(first, running, no_early_end)
    assert run_epoch(first, running, no_early_end)
    second = TrialScheduler(ledger, of_plan)
    start = second.next_start()
    assert start is not None
    assert (start.signature, start.attempt) == (running.start.signature, 2)
    assert start.resume_from == f"trials/{start.signature}/attempt_1/epoch_0001"
    assert start.config == running.start.config
    lost, current = ledger.attempts(start.signature)
    assert (lost.outcome, lost.failure_class, lost.failure_text) == ("lost", None, None)
    assert (current.outcome, current.resumed_from) == (None, start.resume_from)


def test_reports_of_replaced_attempts_are_ignored(ledger: Ledger, of_plan: Plan) -> None:
    first = TrialScheduler(ledger, of_plan)
    old = start_next(first)
    assert old is not None
    second = TrialScheduler(ledger, of_plan)
    new = second.next_start()
    assert new is not None
    before = (ledger.seq, results(ledger), ledger.attempts())
    address = (old.start.signature, old.start.attempt)
    assert second.on_epoch(*address, 0, metrics(), None)  # it must stop
    second.on_end(*address, outcome="complete")
    second.on_end(*address, **failed("bug"))
    assert second.on_epoch("unknown", 1, 0, metrics(), None)
    assert (ledger.seq, results(ledger), ledger.attempts()) == before
    assert num_running(ledger) == 1


def test_only_the_first_end_of_an_attempt_counts(ledger: Ledger, of_plan: Plan) -> None:
    scheduler = TrialScheduler(ledger, of_plan)
    start = scheduler.next_start()
    assert start is not None
    scheduler.on_end(start.signature, 1, outcome="diverged")
    before = (ledger.seq, results(ledger), ledger.attempts())
    scheduler.on_end(start.signature, 1, **failed("killed"))
    assert scheduler.on_epoch(start.signature, 1, 0, metrics(), None)
    assert (ledger.seq, results(ledger), ledger.attempts()) == before


def test_an_interrupted_sweep_starts_no_attempt_and_can_be_resumed(
    ledger: Ledger, of_plan: Plan
) -> None:
    scheduler = TrialScheduler(ledger, of_plan)
    running = start_next(scheduler)
    assert running is not None
    run_epoch(scheduler, running, no_early_end)
    scheduler.interrupt()
    assert scheduler.next_start() is None
    assert num_running(ledger) == 0
    assert [a.outcome for a in ledger.attempts()] == ["lost"]
    assert not run_epoch(scheduler, running, no_early_end)
    run_trials(TrialScheduler(ledger, of_plan))
    check_invariants(ledger, of_plan)


def test_an_attempt_resumes_from_the_checkpoint_before_a_broken_one(
    ledger: Ledger, of_plan: Plan
) -> None:
    first = TrialScheduler(ledger, of_plan)
    running = start_next(first)
    assert running is not None
    for _ in range(4):
        run_epoch(first, running, no_early_end)
    broken = TrialScheduler(
        ledger, of_plan, is_loadable=lambda path: not path.endswith(("epoch_0003", "epoch_0002"))
    )
    start = broken.next_start()
    assert start is not None
    assert start.resume_from == f"trials/{start.signature}/attempt_1/epoch_0001"
    nothing = TrialScheduler(ledger, of_plan, is_loadable=lambda path: False).next_start()
    assert nothing is not None
    assert nothing.resume_from is None


# Resuming with another plan.


def test_a_finished_sweep_has_no_work(ledger: Ledger, of_plan: Plan) -> None:
    scheduler = TrialScheduler(ledger, of_plan)
    assert scheduler.has_work()
    run_trials(scheduler)
    assert not scheduler.has_work()
    assert not TrialScheduler(ledger, of_plan).has_work()


def test_a_larger_number_of_trials_continues_the_same_sequence(tmp_path: Path) -> None:
    few, many = plan(space(trials=3)), plan(space(trials=6))
    at_once = without_fsync(new_ledger(tmp_path / "at_once.sqlite", many))
    run_trials(TrialScheduler(at_once, many))
    in_two = without_fsync(new_ledger(tmp_path / "in_two.sqlite", few))
    run_trials(TrialScheduler(in_two, few))
    assert len(in_two.trials()) == 6
    run_trials(TrialScheduler(in_two, many))
    assert sorted(map(repr, results(in_two))) == sorted(map(repr, results(at_once)))
    assert run_trials(TrialScheduler(in_two, few)) == []


def test_trials_of_variants_not_in_the_command_stay_unchanged(
    ledger: Ledger, of_plan: Plan
) -> None:
    run_trials(TrialScheduler(ledger, of_plan), end_at=lambda start, epoch: failed("data"))
    one_variant = plan(space(variants=("cnn3",), trials=6))
    started = run_trials(TrialScheduler(ledger, one_variant))
    assert {start.variant for start in started} == {"cnn3"}
    statuses = [trial.status for trial in ledger.trials() if trial.variant == "cnn2"]
    assert statuses == ["failed"] * 6


def test_a_space_without_ranges_plans_one_trial_per_variant_and_seed(tmp_path: Path) -> None:
    of = plan(space(params={}, trials=3, first_rung_epochs=0, base={"epochs": 2, "dropout": 0.1}))
    ledger = without_fsync(new_ledger(tmp_path / "ledger.sqlite", of))
    run_trials(TrialScheduler(ledger, of))
    trials = ledger.trials()
    assert [(trial.variant, trial.number) for trial in trials] == [
        (variant, number) for variant in ("cnn2", "cnn3") for number in range(3)
    ]
    assert {tuple(trial.params) for trial in trials} == {()}
    assert len({trial.config["seed"] for trial in trials}) == 6
    others = [{**trial.config, "seed": 0, "variant": ""} for trial in trials]
    assert all(other == others[0] for other in others)


def test_two_sweep_seeds_share_no_trial(tmp_path: Path) -> None:
    signatures = []
    for seed in (0, 1):
        of = plan(space(trials=3), seed=seed)
        ledger = without_fsync(new_ledger(tmp_path / f"{seed}.sqlite", of))
        run_trials(TrialScheduler(ledger, of))
        signatures.append({trial.signature for trial in ledger.trials()})
    assert signatures[0].isdisjoint(signatures[1])


def test_the_best_epoch_is_chosen_by_select_by(tmp_path: Path) -> None:
    of = plan(
        space(
            variants=("cnn2",),
            trials=1,
            first_rung_epochs=0,
            base={"epochs": 4, "select_by": "val_loss"},
        )
    )
    ledger = new_ledger(tmp_path / "ledger.sqlite", of)
    scheduler = TrialScheduler(ledger, of)
    start = scheduler.next_start()
    assert start is not None
    rows = [(0.9, 0.3), (math.nan, 0.9), (0.2, 0.5), (0.4, 0.6)]
    for epoch, (loss, top1) in enumerate(rows):
        values = metrics(val_loss=loss, val_top1=top1)
        assert not scheduler.on_epoch(start.signature, 1, epoch, values, None)
    scheduler.on_end(start.signature, 1, outcome="complete")
    [trial] = ledger.trials()
    assert (trial.best_epoch, trial.best_value) == (2, 0.5)


def test_early_stopping_compares_trials_of_the_same_variant_only(tmp_path: Path) -> None:
    of = plan(space(trials=3, first_rung_epochs=1))
    ledger = new_ledger(tmp_path / "ledger.sqlite", of)
    scheduler = TrialScheduler(ledger, of)
    starts = [scheduler.next_start() for _ in range(6)]
    stops = {}
    # All trials of the second variant are worse than those of the first.
    for start, value in zip(starts, (0.9, 0.8, 0.85, 0.1, 0.2, 0.3), strict=True):
        assert start is not None
        stops[start.variant, start.number] = scheduler.on_epoch(
            start.signature, 1, 0, metrics(val_top1=value), None
        )
    assert [key for key, stopped in stops.items() if stopped] == [("cnn2", 2)]


def test_trials_beyond_a_smaller_number_of_trials_stay_unchanged(
    ledger: Ledger, of_plan: Plan
) -> None:
    run_trials(TrialScheduler(ledger, of_plan), end_at=lambda start, epoch: failed("data"))
    fewer = dataclasses.replace(of_plan, trials=2)
    starts = run_trials(TrialScheduler(ledger, fewer))
    assert sorted({start.number for start in starts}) == [0, 1]


def test_open_attempts_of_variants_not_in_the_command_are_closed(
    ledger: Ledger, of_plan: Plan
) -> None:
    start = TrialScheduler(ledger, of_plan).next_start()  # the driver dies here
    assert start is not None
    assert start.variant == "cnn2"
    run_trials(TrialScheduler(ledger, dataclasses.replace(of_plan, variants=("cnn3",))))
    assert [a.outcome for a in ledger.attempts(start.signature)] == ["lost"]
    assert ledger.trial(start.signature).status == "running"
    run_trials(TrialScheduler(ledger, of_plan))
    check_invariants(ledger, of_plan)
