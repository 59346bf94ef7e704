"""The conductor's decisions, with trials that are played instead of trained."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator import failures
from orchestrator.conductor import Conductor, Start
from orchestrator.failures import IDENTICAL_FAILURES, MAX_UNCOUNTED
from orchestrator.ledger import ENDED, Ledger, Trial, open_ledger
from orchestrator.plan import Plan
from orchestrator.study import is_stopped
from search_spaces.space import trial_seed
from tests.orchestrator.sweeps import curve, judgement, metrics, new_ledger, plan, space

# What becomes of an epoch that would start now: None, or the arguments of `on_end`.
Fate = Callable[[Start, int], dict[str, Any] | None]


def goes_well(start: Start, epoch: int) -> dict[str, Any] | None:
    return None


def failed(kind: str, text: str = "") -> dict[str, Any]:
    return {"outcome": "failed", "failure_class": kind, "failure_text": text or kind}


@dataclass
class Playing:
    """An attempt under way in the fake runner."""

    start: Start
    epoch: int


def begin(conductor: Conductor) -> Playing | None:
    start = conductor.next_start()
    if start is None:
        return None
    path = start.resume_from
    return Playing(start, 0 if path is None else int(path.rpartition("_")[2]) + 1)


def step(conductor: Conductor, playing: Playing, fate: Fate) -> bool:
    """Play one epoch, or the end after the last one; return whether the attempt goes on."""
    start, epoch = playing.start, playing.epoch
    address = start.signature, start.attempt
    if epoch >= start.config.epochs:
        if start.is_judged:
            rows = conductor.ledger.epochs(start.signature)
            best = max(rows, key=lambda row: row.metrics["val_top1"])
            if not start.config.validation_fraction:
                best = rows[-1]
            conductor.on_evaluation(*address, judgement(best.epoch))
        conductor.on_end(*address, outcome="complete")
        return False
    end = fate(start, epoch)
    if end is not None:
        conductor.on_end(*address, **end)
        return False
    value = curve(start.config.to_dict(), epoch)
    path = f"trials/{start.signature}/attempt_{start.attempt}/epoch_{epoch:04d}"
    playing.epoch += 1
    return not conductor.on_epoch(*address, epoch, metrics(val_top1=value), path)


def play(
    conductor: Conductor,
    *,
    limit: int = 1,
    fate: Fate = goes_well,
    draws: random.Random | None = None,
) -> list[Start]:
    """Play until the conductor has nothing left, as `launch` does; return what was started."""
    running: list[Playing] = []
    started: list[Start] = []
    draws = draws or random.Random(0)
    while True:
        while conductor.num_running() < limit and (new := begin(conductor)):
            running.append(new)
            started.append(new.start)
        assert conductor.num_running() == len(running) <= limit
        if not running:
            assert conductor.next_start() is None
            return started
        playing = draws.choice(running)
        if not step(conductor, playing, fate):
            running.remove(playing)


@pytest.fixture
def of_plan() -> Plan:
    return plan(space(trials=6))


@pytest.fixture
def ledger(tmp_path: Path, of_plan: Plan) -> Ledger:
    return quick(new_ledger(tmp_path / "ledger.sqlite", of_plan))


def quick(ledger: Ledger) -> Ledger:
    """Leave out waiting for the disk, of which no test here takes the power away."""
    ledger._connection.execute("PRAGMA synchronous = OFF")
    return ledger


def table(ledger: Ledger) -> list[tuple[Any, ...]]:
    """What must be the same however often the sweep was killed."""
    return [
        (
            *(trial.signature, trial.variant, trial.number, trial.params, trial.status),
            *(trial.best_epoch, trial.best_value),
            [(row.epoch, row.metrics["val_top1"]) for row in ledger.epochs(trial.signature)],
        )
        for trial in ledger.trials()
    ]


def check_invariants(ledger: Ledger, of: Plan) -> None:
    trials = ledger.trials()
    assert Counter(trial.variant for trial in trials) == dict.fromkeys(of.variants, of.trials)
    for variant in of.variants:
        numbers = [trial.number for trial in trials if trial.variant == variant]
        assert numbers == list(range(of.trials))
    seqs = []
    for trial in trials:
        rows, attempts = ledger.epochs(trial.signature), ledger.attempts(trial.signature)
        assert trial.status in ENDED
        assert all(attempt.outcome is not None for attempt in attempts)
        assert [attempt.attempt for attempt in attempts] == list(range(1, len(attempts) + 1))
        assert [row.epoch for row in rows] == list(range(len(rows)))
        assert [row.seq for row in rows] == sorted(row.seq for row in rows)
        assert trial.config["seed"] == trial_seed(of.seed, trial.variant, trial.number)
        ends = [attempt.outcome for attempt in attempts if attempt.outcome in ENDED[:3]]
        assert ends == ([trial.status] if trial.status != "failed" else [])
        if trial.status == "complete":
            assert len(rows) == trial.config["epochs"]
        if trial.status in ("complete", "stopped"):
            best = max(rows, key=lambda row: row.metrics["val_top1"])
            assert (trial.best_epoch, trial.best_value) == (best.epoch, best.metrics["val_top1"])
        seqs += [trial.planned_seq, trial.ended_seq, *(row.seq for row in rows)]
        for row in rows:
            stopped_here = is_stopped(
                row.metrics["val_top1"],
                ledger.values_at(trial.variant, row.epoch, "val_top1", up_to=row.seq),
                epochs_done=row.epoch + 1,
                first_rung=of.space.first_rung_epochs,
                factor=of.space.rung_factor,
                mode="max",
            )
            is_last = row is rows[-1]
            if row.epoch + 1 < trial.config["epochs"]:
                assert stopped_here == (is_last and trial.status == "stopped")
    assert len(seqs) == len(set(seqs))


def test_every_trial_ends_exactly_once(ledger: Ledger, of_plan: Plan) -> None:
    started = play(Conductor(ledger, of_plan))
    assert len(started) == len({start.signature for start in started}) == 12
    check_invariants(ledger, of_plan)
    assert {trial.status for trial in ledger.trials()} == {"complete", "stopped"}


def test_variants_run_in_their_order(ledger: Ledger, of_plan: Plan) -> None:
    started = play(Conductor(ledger, of_plan))
    assert [start.variant for start in started] == ["cnn2"] * 6 + ["cnn3"] * 6
    assert [start.number for start in started] == [*range(6), *range(6)]


@pytest.mark.parametrize("limit", [2, 5, 50])
def test_several_at_a_time_keep_all_invariants(ledger: Ledger, of_plan: Plan, limit: int) -> None:
    play(Conductor(ledger, of_plan), limit=limit, draws=random.Random(limit))
    check_invariants(ledger, of_plan)


def test_a_start_is_in_the_ledger_before_it_is_offered(ledger: Ledger, of_plan: Plan) -> None:
    start = Conductor(ledger, of_plan).next_start()
    assert start is not None
    trial = ledger.trial(start.signature)
    assert (trial.status, trial.seen_seq, trial.planned_seq) == ("running", 0, 1)
    assert trial.config == start.config.to_dict()
    assert {name: trial.config[name] for name in trial.params} == trial.params
    assert [attempt.attempt for attempt in ledger.attempts(start.signature)] == [start.attempt]


# Killed drivers.


class Killed(BaseException):
    """Stands for the end of the process, so nothing may catch it."""


def die_at(ledger: Ledger, change: int, *, before: bool) -> None:
    """Make the ledger's n-th change from now the driver's last: not made, or made and no more."""
    original, count = ledger._change, 0

    @contextlib.contextmanager
    def change_or_die() -> Iterator[Any]:
        nonlocal count
        count += 1
        if (count == change and before) or count > change:
            raise Killed
        with original() as connection:
            yield connection
        if count == change:
            raise Killed

    ledger._change = change_or_die  # type: ignore[method-assign]


def messy(start: Start, epoch: int) -> dict[str, Any] | None:
    """Every kind of end; which one depends on the trial, as it does in real sweeps."""
    kind = start.config.seed % 7
    if kind == 0 and epoch == 2:
        return {"outcome": "diverged"}
    if kind == 1 and epoch == 1:
        return failed("bug", f"ValueError: of {start.variant} {'abcdef'[start.number]} alone")
    if kind == 2 and epoch == 0 and (start.config.micro_batch_size or 999) > 8:
        return failed("out_of_memory")
    if kind == 3 and epoch == 3 and start.attempt == 1:
        return failed("killed")
    if kind == 4 and epoch == 0:
        return failed("data")
    return None


def unbroken(tmp_path: Path, of: Plan) -> tuple[list[tuple[Any, ...]], int]:
    """Return the table of a run that nothing interrupted, and how many changes it made."""
    ledger, changes = quick(new_ledger(tmp_path / "unbroken.sqlite", of)), 0
    original = ledger._change

    def counted() -> Any:
        nonlocal changes
        changes += 1
        return original()

    ledger._change = counted  # type: ignore[method-assign]
    play(Conductor(ledger, of), fate=messy)
    check_invariants(ledger, of)
    return table(ledger), changes


def test_a_sweep_killed_at_any_change_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    """One at a time: same trials, parameters, ends, best values and rows, to the last digit."""
    of = plan(space(trials=6), seed=2)
    expected, changes = unbroken(tmp_path, of)
    assert {row[4] for row in expected} == set(ENDED)
    points = [(change, before) for change in range(1, changes, 3) for before in (True, False)]
    assert len(points) >= 40
    for change, before in points:
        path = tmp_path / f"{change}-{before}.sqlite"
        ledger = quick(new_ledger(path, of))
        die_at(ledger, change, before=before)
        with pytest.raises(Killed):
            play(Conductor(ledger, of), fate=messy)
        ledger.close()
        again = quick(open_ledger(path))
        play(Conductor(again, of), fate=messy)
        assert table(again) == expected, (change, before)
        check_invariants(again, of)
        again.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_sweep_killed_again_and_again_ends_as_the_unbroken_one(tmp_path: Path, seed: int) -> None:
    of = plan(space(trials=6), seed=2)
    expected, _ = unbroken(tmp_path, of)
    draws, path, kills = random.Random(seed), tmp_path / "ledger.sqlite", 0
    ledger = quick(new_ledger(path, of))
    while True:
        die_at(ledger, draws.randrange(3, 30), before=draws.random() < 0.5)
        try:
            play(Conductor(ledger, of), fate=messy)
        except Killed:
            kills += 1
            ledger.close()
            ledger = quick(open_ledger(path))
            if kills < 15:
                continue
            play(Conductor(ledger, of), fate=messy)
        break
    assert kills >= 5
    assert table(ledger) == expected


@pytest.mark.parametrize("seed", range(6))
def test_a_sweep_killed_with_several_at_a_time_keeps_all_invariants(
    tmp_path: Path, seed: int
) -> None:
    of = plan(space(trials=6), seed=2)
    draws, path = random.Random(seed), tmp_path / "ledger.sqlite"
    ledger = quick(new_ledger(path, of))
    for _ in range(4):
        die_at(ledger, draws.randrange(1, 40), before=draws.random() < 0.5)
        with contextlib.suppress(Killed):
            play(Conductor(ledger, of), limit=3, fate=messy, draws=draws)
        ledger.close()
        ledger = quick(open_ledger(path))
    play(Conductor(ledger, of), limit=3, fate=messy, draws=draws)
    check_invariants(ledger, of)


def test_a_stop_that_the_driver_died_before_is_made_up_for(tmp_path: Path) -> None:
    of = plan(space(variants=("cnn2",), trials=3, first_rung_epochs=1))
    path = tmp_path / "ledger.sqlite"
    ledger = new_ledger(path, of)
    conductor = Conductor(ledger, of)
    starts = [conductor.next_start() for _ in range(3)]
    for start, value in zip(starts, (0.9, 0.8), strict=False):
        assert start is not None
        assert not conductor.on_epoch(start.signature, 1, 0, metrics(val_top1=value), "c")
    last = starts[2]
    assert last is not None
    die_at(ledger, 1, before=False)  # after the row, before what follows from it
    with pytest.raises(Killed):
        conductor.on_epoch(last.signature, 1, 0, metrics(val_top1=0.1), "c")
    ledger.close()
    again = open_ledger(path)
    assert again.trial(last.signature).status == "running"
    resumed = Conductor(again, of)
    assert again.trial(last.signature).status == "stopped"
    assert again.trial(last.signature).best_value == 0.1
    waiting = [resumed.next_start(), resumed.next_start()]
    assert [start and start.number for start in waiting] == [0, 1]
    assert resumed.next_start() is None


def test_an_open_attempt_of_a_dead_driver_is_lost_and_its_trial_goes_on(
    ledger: Ledger, of_plan: Plan
) -> None:
    first = Conductor(ledger, of_plan)
    playing = begin(first)
    assert playing is not None
    assert step(first, playing, goes_well)
    assert step(first, playing, goes_well)
    second = Conductor(ledger, of_plan)
    start = second.next_start()
    assert start is not None
    assert (start.signature, start.attempt) == (playing.start.signature, 2)
    assert start.resume_from == f"trials/{start.signature}/attempt_1/epoch_0001"
    assert start.config == playing.start.config
    lost, current = ledger.attempts(start.signature)
    assert (lost.outcome, lost.failure_class, lost.failure_text) == ("lost", None, None)
    assert (current.outcome, current.resumed_from) == (None, start.resume_from)


def test_a_late_report_of_an_old_attempt_changes_nothing(ledger: Ledger, of_plan: Plan) -> None:
    first = Conductor(ledger, of_plan)
    old = begin(first)
    assert old is not None
    second = Conductor(ledger, of_plan)
    new = second.next_start()
    assert new is not None
    before = (ledger.seq, table(ledger), ledger.attempts())
    address = (old.start.signature, old.start.attempt)
    assert second.on_epoch(*address, 0, metrics(), None)  # told to stop
    second.on_end(*address, outcome="complete")
    second.on_end(*address, **failed("bug"))
    assert second.on_epoch("unknown", 1, 0, metrics(), None)
    assert (ledger.seq, table(ledger), ledger.attempts()) == before
    assert second.num_running() == 1


def test_an_end_is_taken_once(ledger: Ledger, of_plan: Plan) -> None:
    conductor = Conductor(ledger, of_plan)
    start = conductor.next_start()
    assert start is not None
    conductor.on_end(start.signature, 1, outcome="diverged")
    before = (ledger.seq, table(ledger), ledger.attempts())
    conductor.on_end(start.signature, 1, **failed("killed"))
    assert conductor.on_epoch(start.signature, 1, 0, metrics(), None)
    assert (ledger.seq, table(ledger), ledger.attempts()) == before


def test_an_interrupted_sweep_starts_nothing_more_and_goes_on_later(
    ledger: Ledger, of_plan: Plan
) -> None:
    conductor = Conductor(ledger, of_plan)
    playing = begin(conductor)
    assert playing is not None
    step(conductor, playing, goes_well)
    conductor.interrupt()
    assert conductor.next_start() is None
    assert conductor.num_running() == 0
    assert [a.outcome for a in ledger.attempts()] == ["lost"]
    assert not step(conductor, playing, goes_well)
    play(Conductor(ledger, of_plan))
    check_invariants(ledger, of_plan)


def test_a_broken_checkpoint_is_passed_over_for_the_one_before(
    ledger: Ledger, of_plan: Plan
) -> None:
    first = Conductor(ledger, of_plan)
    playing = begin(first)
    assert playing is not None
    for _ in range(4):
        step(first, playing, goes_well)
    broken = Conductor(
        ledger, of_plan, is_whole=lambda path: not path.endswith(("epoch_0003", "epoch_0002"))
    )
    start = broken.next_start()
    assert start is not None
    assert start.resume_from == f"trials/{start.signature}/attempt_1/epoch_0001"
    nothing = Conductor(ledger, of_plan, is_whole=lambda path: False).next_start()
    assert nothing is not None
    assert nothing.resume_from is None


# Failures.


def only(ledger: Ledger, of: Plan, fate: Fate) -> tuple[list[Start], Trial]:
    """Play a single trial of a plan of one and return its starts and its end."""
    started = play(Conductor(ledger, of), fate=fate)
    [trial] = ledger.trials()
    return started, trial


@pytest.fixture
def one() -> Plan:
    return plan(space(variants=("cnn2",), trials=1))


def test_a_bug_is_tried_max_attempts_times(ledger: Ledger, one: Plan) -> None:
    started, trial = only(ledger, one, lambda start, epoch: failed("bug", "boom"))
    assert [start.attempt for start in started] == [1, 2, 3]
    assert (trial.status, trial.best_value, trial.ended_seq) == ("failed", None, ledger.seq)
    assert [(a.outcome, a.failure_class, a.failure_text) for a in ledger.attempts()] == [
        ("failed", "bug", "boom")
    ] * 3


def test_a_bug_that_passes_is_forgotten(ledger: Ledger, one: Plan) -> None:
    def once(start: Start, epoch: int) -> dict[str, Any] | None:
        return failed("bug") if start.attempt == 1 and epoch == 3 else None

    started, trial = only(ledger, one, once)
    assert trial.status == "complete"
    assert started[1].resume_from == f"trials/{trial.signature}/attempt_1/epoch_0002"
    assert [row.attempt for row in ledger.epochs(trial.signature)] == [1] * 3 + [2] * 6


@pytest.mark.parametrize("kind", ["killed", "node", "preempted"])
def test_deaths_from_outside_are_not_counted(ledger: Ledger, one: Plan, kind: str) -> None:
    def often(start: Start, epoch: int) -> dict[str, Any] | None:
        return failed(kind) if start.attempt <= 8 else None

    started, trial = only(ledger, one, often)
    assert (len(started), trial.status) == (9, "complete")


def test_what_is_killed_for_ever_is_given_up_at_last(ledger: Ledger, one: Plan) -> None:
    started, trial = only(ledger, one, lambda start, epoch: failed("killed"))
    assert (len(started), trial.status) == (MAX_UNCOUNTED + 1, "failed")


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(
    ledger: Ledger, one: Plan
) -> None:
    def too_big(start: Start, epoch: int) -> dict[str, Any] | None:
        images = start.config.micro_batch_size or start.config.batch_size
        return failed("out_of_memory") if images > 4 and epoch == 0 else None

    started, trial = only(ledger, one, too_big)
    batch = trial.config["batch_size"]
    expected = [0]
    while (expected[-1] or batch) > 4:
        expected.append((expected[-1] or batch) // 2)
    assert [start.config.micro_batch_size for start in started] == expected
    assert {start.config.batch_size for start in started} == {batch}
    assert {start.config.signature() for start in started} == {trial.signature}
    assert [a.micro_batch_size for a in ledger.attempts()] == expected
    assert trial.status == "complete"
    assert trial.config["micro_batch_size"] == 0


def test_out_of_memory_at_two_images_ends_the_trial(ledger: Ledger, one: Plan) -> None:
    started, trial = only(ledger, one, lambda start, epoch: failed("out_of_memory"))
    assert started[-1].config.micro_batch_size == 2
    assert (len(started), trial.status) == (trial.config["batch_size"].bit_length() - 1, "failed")


def test_a_micro_batch_is_a_share_of_what_one_worker_gets(tmp_path: Path) -> None:
    of = plan(space(variants=("cnn2",), trials=1))
    object.__setattr__(of, "overrides", {"workers": 4})
    conductor = Conductor(new_ledger(tmp_path / "ledger.sqlite", of), of)
    start = conductor.next_start()
    assert start is not None
    conductor.on_end(start.signature, 1, **failed("out_of_memory"))
    again = conductor.next_start()
    assert again is not None
    assert again.config.micro_batch_size == start.config.batch_size // 4 // 2


def test_a_micro_batch_outlives_the_driver(ledger: Ledger, one: Plan) -> None:
    first = Conductor(ledger, one)
    start = first.next_start()
    assert start is not None
    first.on_end(start.signature, 1, **failed("out_of_memory"))
    half = start.config.batch_size // 2
    second = Conductor(ledger, one).next_start()  # before the retry had started
    assert second is not None
    assert second.config.micro_batch_size == half
    third = Conductor(ledger, one).next_start()  # while it ran
    assert third is not None
    assert third.config.micro_batch_size == half


@pytest.mark.parametrize(
    ("end", "status"), [(failed("data"), "failed"), ({"outcome": "diverged"}, "diverged")]
)
def test_bad_data_and_divergence_are_not_retried(
    ledger: Ledger, one: Plan, end: dict[str, Any], status: str
) -> None:
    started, trial = only(ledger, one, lambda start, epoch: end if epoch == 1 else None)
    assert (len(started), trial.status, trial.best_value) == (1, status, None)
    assert len(ledger.epochs(trial.signature)) == 1


TRACE = 'Traceback:\n  File "loop.py", line {0}, in fit\nRuntimeError: at 0x{0}f in {0}'


def test_the_same_traceback_of_several_trials_stops_their_variant_alone(
    ledger: Ledger, of_plan: Plan
) -> None:
    def broken(start: Start, epoch: int) -> dict[str, Any] | None:
        if start.variant != "cnn2":
            return None
        return failed("bug", TRACE.format(start.number + start.attempt))

    conductor = Conductor(ledger, of_plan)
    play(conductor, fate=broken)
    assert conductor.given_up() == ("cnn2",)
    by_variant = {
        variant: [t.status for t in ledger.trials() if t.variant == variant]
        for variant in of_plan.variants
    }
    assert by_variant["cnn2"] == ["failed"] * IDENTICAL_FAILURES
    assert len(by_variant["cnn3"]) == 6
    assert set(by_variant["cnn3"]) <= {"complete", "stopped"}


def test_a_variant_is_given_up_alike_however_often_the_driver_dies(tmp_path: Path) -> None:
    def broken(start: Start, epoch: int) -> dict[str, Any] | None:
        return failed("bug", TRACE.format(1)) if start.variant == "cnn2" else None

    of = plan(space(trials=4, base={"epochs": 2}))
    whole = quick(new_ledger(tmp_path / "whole.sqlite", of))
    play(Conductor(whole, of), fate=broken)
    for change in range(2, 40, 3):
        ledger = quick(new_ledger(tmp_path / f"{change}.sqlite", of))
        die_at(ledger, change, before=True)
        with pytest.raises(Killed):
            play(Conductor(ledger, of), fate=broken)
        ledger.close()
        again = quick(open_ledger(tmp_path / f"{change}.sqlite"))
        play(Conductor(again, of), fate=broken)
        assert table(again) == table(whole)


def test_one_trials_own_retries_do_not_stop_its_variant(ledger: Ledger, of_plan: Plan) -> None:
    def first_only(start: Start, epoch: int) -> dict[str, Any] | None:
        return failed("bug", TRACE.format(1)) if start.number == 0 else None

    conductor = Conductor(ledger, of_plan)
    play(conductor, fate=first_only)
    assert conductor.given_up() == ()
    assert Counter(trial.status == "failed" for trial in ledger.trials()) == {True: 2, False: 10}


def test_errors_that_a_retry_got_past_do_not_stop_their_variant(
    ledger: Ledger, of_plan: Plan
) -> None:
    def once_each(start: Start, epoch: int) -> dict[str, Any] | None:
        return failed("bug", TRACE.format(1)) if (start.attempt, epoch) == (1, 1) else None

    conductor = Conductor(ledger, of_plan)
    play(conductor, fate=once_each)
    assert conductor.given_up() == ()
    assert {trial.status for trial in ledger.trials()} <= {"complete", "stopped"}
    assert len(ledger.trials()) == 12


def test_a_variant_stays_given_up_where_its_failed_trials_are_left_alone(
    ledger: Ledger, of_plan: Plan
) -> None:
    play(Conductor(ledger, of_plan), fate=lambda start, epoch: failed("bug", TRACE.format(1)))
    attempts = ledger.attempts()
    assert len(ledger.trials()) == 2 * IDENTICAL_FAILURES
    again = Conductor(ledger, of_plan, retry_failed=False)
    assert again.given_up() == of_plan.variants
    assert again.next_start() is None
    assert ledger.attempts() == attempts


def test_a_trial_that_never_started_does_not_fail_with_its_variant(
    ledger: Ledger, of_plan: Plan
) -> None:
    conductor = Conductor(ledger, of_plan)
    starts = [conductor.next_start() for _ in range(IDENTICAL_FAILURES)]
    planned = conductor._plan_trial("cnn2")  # where a driver was killed before its first attempt
    again = Conductor(ledger, of_plan)
    starts = [again.next_start() for _ in range(IDENTICAL_FAILURES)]
    for start in starts:
        assert start is not None
        again.on_end(start.signature, start.attempt, **failed("bug", TRACE.format(1)))
    assert again.given_up() == ("cnn2",)
    assert ledger.trial(planned.signature).status == "planned"
    assert ledger.attempts(planned.signature) == []


def test_different_tracebacks_do_not_stop_a_variant(ledger: Ledger, of_plan: Plan) -> None:
    def each_its_own(start: Start, epoch: int) -> dict[str, Any] | None:
        return failed("bug", f"ValueError: {'abcdef'[start.number]}")

    conductor = Conductor(ledger, of_plan)
    play(conductor, fate=each_its_own)
    assert conductor.given_up() == ()
    assert [trial.status for trial in ledger.trials()] == ["failed"] * 12


def test_what_runs_when_its_variant_is_given_up_may_finish(tmp_path: Path) -> None:
    of = plan(space(variants=("cnn2",), trials=5))
    ledger = new_ledger(tmp_path / "ledger.sqlite", of)
    conductor = Conductor(ledger, of)
    starts = [conductor.next_start() for _ in range(5)]
    for start in starts[:3]:
        assert start is not None
        conductor.on_end(start.signature, 1, **failed("bug", TRACE.format(1)))
    assert conductor.given_up() == ("cnn2",)
    assert conductor.next_start() is None
    assert conductor.num_running() == 2
    survivor, another = starts[3:]
    assert survivor is not None
    assert another is not None
    conductor.on_end(survivor.signature, 1, outcome="complete")
    conductor.on_end(another.signature, 1, **failed("killed"))
    statuses = [trial.status for trial in ledger.trials()]
    assert statuses == ["failed"] * 3 + ["complete", "failed"]


def test_a_new_conductor_tries_failed_trials_again(ledger: Ledger, one: Plan) -> None:
    _, trial = only(ledger, one, lambda start, epoch: failed("bug") if epoch == 2 else None)
    assert trial.status == "failed"
    [start] = play(Conductor(ledger, one))
    assert (start.attempt, start.resume_from) == (
        4,
        f"trials/{trial.signature}/attempt_1/epoch_0001",
    )
    [mended] = ledger.trials()
    assert (mended.status, mended.best_epoch) == ("complete", 8)
    assert play(Conductor(ledger, one)) == []


def test_passwords_and_tokens_do_not_reach_the_ledger(
    ledger: Ledger, one: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2hunter2")
    text = "ConnectionError: http://ann:pass@host/x refused hunter2hunter2"
    only(ledger, one, lambda start, epoch: failed("bug", text))
    assert {attempt.failure_text for attempt in ledger.attempts()} == {
        "ConnectionError: http://[redacted]@host/x refused [redacted]"
    }


# What is planned.


def test_a_finished_sweep_has_no_work_left(ledger: Ledger, of_plan: Plan) -> None:
    conductor = Conductor(ledger, of_plan)
    assert conductor.has_work()
    play(conductor)
    assert not conductor.has_work()
    assert not Conductor(ledger, of_plan).has_work()


def test_more_trials_than_before_continue_the_same_sequence(tmp_path: Path) -> None:
    few, many = plan(space(trials=3)), plan(space(trials=6))
    at_once = quick(new_ledger(tmp_path / "at_once.sqlite", many))
    play(Conductor(at_once, many))
    in_two = quick(new_ledger(tmp_path / "in_two.sqlite", few))
    play(Conductor(in_two, few))
    assert len(in_two.trials()) == 6
    play(Conductor(in_two, many))
    assert sorted(map(repr, table(in_two))) == sorted(map(repr, table(at_once)))
    assert play(Conductor(in_two, few)) == []


def test_variants_left_out_keep_what_they_have(ledger: Ledger, of_plan: Plan) -> None:
    play(Conductor(ledger, of_plan), fate=lambda start, epoch: failed("data"))
    one_variant = plan(space(variants=("cnn3",), trials=6))
    started = play(Conductor(ledger, one_variant))
    assert {start.variant for start in started} == {"cnn3"}
    statuses = [trial.status for trial in ledger.trials() if trial.variant == "cnn2"]
    assert statuses == ["failed"] * 6


def test_a_space_without_ranges_plans_one_trial_per_variant_and_seed(tmp_path: Path) -> None:
    of = plan(space(params={}, trials=3, first_rung_epochs=0, base={"epochs": 2, "dropout": 0.1}))
    ledger = quick(new_ledger(tmp_path / "ledger.sqlite", of))
    play(Conductor(ledger, of))
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
        ledger = quick(new_ledger(tmp_path / f"{seed}.sqlite", of))
        play(Conductor(ledger, of))
        signatures.append({trial.signature for trial in ledger.trials()})
    assert signatures[0].isdisjoint(signatures[1])


def test_a_trial_is_judged_by_the_epoch_it_selects(tmp_path: Path) -> None:
    of = plan(
        space(
            variants=("cnn2",),
            trials=1,
            first_rung_epochs=0,
            base={"epochs": 4, "select_by": "val_loss"},
        )
    )
    ledger = new_ledger(tmp_path / "ledger.sqlite", of)
    conductor = Conductor(ledger, of)
    start = conductor.next_start()
    assert start is not None
    rows = [(0.9, 0.3), (math.nan, 0.9), (0.2, 0.5), (0.4, 0.6)]
    for epoch, (loss, top1) in enumerate(rows):
        values = metrics(val_loss=loss, val_top1=top1)
        assert not conductor.on_epoch(start.signature, 1, epoch, values, None)
    conductor.on_end(start.signature, 1, outcome="complete")
    [trial] = ledger.trials()
    assert (trial.best_epoch, trial.best_value) == (2, 0.5)


def test_early_stopping_compares_within_a_variant_alone(tmp_path: Path) -> None:
    of = plan(space(trials=3, first_rung_epochs=1))
    ledger = new_ledger(tmp_path / "ledger.sqlite", of)
    conductor = Conductor(ledger, of)
    starts = [conductor.next_start() for _ in range(6)]
    stops = {}
    # Every trial of the second variant is worse than all of the first.
    for start, value in zip(starts, (0.9, 0.8, 0.85, 0.1, 0.2, 0.3), strict=True):
        assert start is not None
        stops[start.variant, start.number] = conductor.on_epoch(
            start.signature, 1, 0, metrics(val_top1=value), None
        )
    assert [key for key, stopped in stops.items() if stopped] == [("cnn2", 2)]


def test_failed_trials_are_left_alone_when_told_so(ledger: Ledger, one: Plan) -> None:
    only(ledger, one, lambda start, epoch: failed("bug") if epoch == 2 else None)
    conductor = Conductor(ledger, one, retry_failed=False)
    assert not conductor.has_work()
    assert conductor.next_start() is None


def test_from_scratch_starts_failed_trials_anew_and_keeps_their_first_values(
    ledger: Ledger, one: Plan
) -> None:
    _, trial = only(ledger, one, lambda start, epoch: failed("bug") if epoch == 2 else None)
    before = ledger.epochs(trial.signature)
    # The new start is cut off after one epoch and continued: never from what lay before it.
    conductor = Conductor(ledger, one, from_scratch=True)
    playing = begin(conductor)
    assert playing is not None
    assert (playing.start.attempt, playing.start.resume_from) == (4, None)
    assert step(conductor, playing, goes_well)
    conductor.interrupt()
    wrote = {f"trials/{trial.signature}/attempt_4/epoch_0000"}
    wrote |= {str(row.checkpoint) for row in before}
    [start] = play(Conductor(ledger, one, is_whole=wrote.__contains__))
    assert start.resume_from == f"trials/{trial.signature}/attempt_4/epoch_0000"
    assert ledger.epochs(trial.signature)[:2] == before
    assert ledger.trial(trial.signature).status == "complete"


def test_an_epoch_trained_again_is_gone_on_from_where_its_row_s_checkpoint_is_broken(
    ledger: Ledger, one: Plan
) -> None:
    ends = iter([failed("killed"), failed("killed")])
    broken = "attempt_1/epoch_0001"
    conductor = Conductor(ledger, one, is_whole=lambda path: not path.endswith(broken))
    starts = play(
        conductor,
        fate=lambda start, epoch: next(ends, None) if epoch == start.attempt + 1 else None,
    )
    assert [start.resume_from and start.resume_from[-20:] for start in starts] == [
        None,
        "attempt_1/epoch_0000",
        "attempt_2/epoch_0002",
    ]


def test_trials_beyond_a_smaller_number_stay_as_they_are(ledger: Ledger, of_plan: Plan) -> None:
    play(Conductor(ledger, of_plan), fate=lambda start, epoch: failed("data"))
    fewer = dataclasses.replace(of_plan, trials=2)
    starts = play(Conductor(ledger, fewer))
    assert sorted({start.number for start in starts}) == [0, 1]


def test_a_full_disk_pauses_the_sweep_then_stops_it_and_costs_no_trial_an_attempt(
    ledger: Ledger, one: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "DISK_PAUSES_S", (0.02, 0.02))
    conductor = Conductor(ledger, one)
    for _ in range(2):
        playing = wait_for_start(conductor)
        conductor.on_end(playing.signature, playing.attempt, **failed("disk", "No space left"))
        assert conductor.is_paused()
        assert conductor.next_start() is None
        assert conductor.has_work()
    playing = wait_for_start(conductor)
    conductor.on_end(playing.signature, playing.attempt, **failed("disk", "No space left"))
    assert conductor.halted() == "No space left"
    assert conductor.next_start() is None
    trial = ledger.trials()[0]
    assert trial.status == "running"
    play(Conductor(ledger, one))
    assert ledger.trial(trial.signature).status == "complete"


def test_an_epoch_that_was_saved_ends_the_count_of_pauses(
    ledger: Ledger, one: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "DISK_PAUSES_S", (0.01,))
    conductor = Conductor(ledger, one)
    for epoch in range(4):
        start = wait_for_start(conductor)
        assert not conductor.on_epoch(
            start.signature, start.attempt, epoch, metrics(val_top1=0.5), None
        )
        conductor.on_end(start.signature, start.attempt, **failed("disk", "No space left"))
    assert conductor.halted() is None


def test_nothing_starts_while_the_disk_has_no_room(
    ledger: Ledger, one: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "DISK_PAUSES_S", (0.01,))
    room = iter([False, True])
    conductor = Conductor(ledger, one, has_room=lambda variant: next(room))
    assert conductor.next_start() is None
    assert ledger.trials() == []
    assert wait_for_start(conductor).attempt == 1


def wait_for_start(conductor: Conductor) -> Start:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        start = conductor.next_start()
        if start is not None:
            return start
        time.sleep(0.005)
    raise AssertionError("nothing was started")


def test_a_stop_that_could_not_be_stored_is_made_up_for_by_the_next_driver(
    ledger: Ledger, of_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full between a row and its decision; the attempt was then closed as lost."""
    conductor, original = Conductor(ledger, of_plan), ledger.end_attempt
    stopped = []

    def full(signature: str, attempt: int, **how: Any) -> None:
        if how["outcome"] == "stopped":
            stopped.append(signature)
            raise OSError("no space left")
        original(signature, attempt, **how)

    monkeypatch.setattr(ledger, "end_attempt", full)
    with pytest.raises(OSError, match="no space left"):
        play(conductor)
    conductor._running[stopped[0]] = 1  # as `interrupt` finds it
    conductor.interrupt()
    monkeypatch.undo()
    assert [a.outcome for a in ledger.attempts(stopped[0])] == ["lost"]
    play(Conductor(ledger, of_plan))
    check_invariants(ledger, of_plan)
    assert ledger.trial(stopped[0]).status == "stopped"
    assert len(ledger.attempts(stopped[0])) == 1


def test_attempts_of_a_variant_that_is_left_out_are_closed(ledger: Ledger, of_plan: Plan) -> None:
    start = Conductor(ledger, of_plan).next_start()  # and then the driver dies
    assert start is not None
    assert start.variant == "cnn2"
    play(Conductor(ledger, dataclasses.replace(of_plan, variants=("cnn3",))))
    assert [a.outcome for a in ledger.attempts(start.signature)] == ["lost"]
    assert ledger.trial(start.signature).status == "running"
    play(Conductor(ledger, of_plan))
    check_invariants(ledger, of_plan)
