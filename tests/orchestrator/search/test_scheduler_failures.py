"""What the scheduler does about failures: who is tried again, who is given up, what waits."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger, open_ledger
from orchestrator.ledger.records import Trial
from orchestrator.plan.plan import Plan
from orchestrator.search import retry_policy
from orchestrator.search.retry_policy import IDENTICAL_FAILURES, MAX_UNCOUNTED
from orchestrator.search.scheduler import AttemptStart, TrialScheduler
from tests.orchestrator.played_sweeps import (
    Fate,
    Killed,
    begin,
    check_invariants,
    die_at,
    failed,
    goes_well,
    num_running,
    play,
    quick,
    step,
    table,
)
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space


@pytest.fixture
def of_plan() -> Plan:
    return plan(space(trials=6))


@pytest.fixture
def ledger(tmp_path: Path, of_plan: Plan) -> Ledger:
    return quick(new_ledger(tmp_path / "ledger.sqlite", of_plan))


@pytest.fixture
def one() -> Plan:
    return plan(space(variants=("cnn2",), trials=1))


def only(ledger: Ledger, of: Plan, fate: Fate) -> tuple[list[AttemptStart], Trial]:
    """Play a single trial of a plan of one and return its starts and its end."""
    started = play(TrialScheduler(ledger, of), fate=fate)
    [trial] = ledger.trials()
    return started, trial


def wait_for_start(scheduler: TrialScheduler) -> AttemptStart:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        start = scheduler.next_start()
        if start is not None:
            return start
        time.sleep(0.005)
    raise AssertionError("nothing was started")


def test_a_bug_is_tried_max_attempts_times(ledger: Ledger, one: Plan) -> None:
    started, trial = only(ledger, one, lambda start, epoch: failed("bug", "boom"))
    assert [start.attempt for start in started] == [1, 2, 3]
    assert (trial.status, trial.best_value, trial.ended_seq) == ("failed", None, ledger.seq)
    assert [(a.outcome, a.failure_class, a.failure_text) for a in ledger.attempts()] == [
        ("failed", "bug", "boom")
    ] * 3


def test_a_bug_that_passes_is_forgotten(ledger: Ledger, one: Plan) -> None:
    def once(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug") if start.attempt == 1 and epoch == 3 else None

    started, trial = only(ledger, one, once)
    assert trial.status == "complete"
    assert started[1].resume_from == f"trials/{trial.signature}/attempt_1/epoch_0002"
    assert [row.attempt for row in ledger.epochs(trial.signature)] == [1] * 3 + [2] * 6


@pytest.mark.parametrize("kind", ["killed", "node", "preempted"])
def test_deaths_from_outside_are_not_counted(ledger: Ledger, one: Plan, kind: str) -> None:
    def often(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed(kind) if start.attempt <= 8 else None

    started, trial = only(ledger, one, often)
    assert (len(started), trial.status) == (9, "complete")


def test_what_is_killed_for_ever_is_given_up_at_last(ledger: Ledger, one: Plan) -> None:
    started, trial = only(ledger, one, lambda start, epoch: failed("killed"))
    assert (len(started), trial.status) == (MAX_UNCOUNTED + 1, "failed")


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(
    ledger: Ledger, one: Plan
) -> None:
    def too_big(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
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
    scheduler = TrialScheduler(new_ledger(tmp_path / "ledger.sqlite", of), of)
    start = scheduler.next_start()
    assert start is not None
    scheduler.on_end(start.signature, 1, **failed("out_of_memory"))
    again = scheduler.next_start()
    assert again is not None
    assert again.config.micro_batch_size == start.config.batch_size // 4 // 2


def test_a_micro_batch_outlives_the_driver(ledger: Ledger, one: Plan) -> None:
    first = TrialScheduler(ledger, one)
    start = first.next_start()
    assert start is not None
    first.on_end(start.signature, 1, **failed("out_of_memory"))
    half = start.config.batch_size // 2
    second = TrialScheduler(ledger, one).next_start()  # before the retry had started
    assert second is not None
    assert second.config.micro_batch_size == half
    third = TrialScheduler(ledger, one).next_start()  # while it ran
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
    def broken(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        if start.variant != "cnn2":
            return None
        return failed("bug", TRACE.format(start.number + start.attempt))

    scheduler = TrialScheduler(ledger, of_plan)
    play(scheduler, fate=broken)
    assert scheduler.given_up() == ("cnn2",)
    by_variant = {
        variant: [t.status for t in ledger.trials() if t.variant == variant]
        for variant in of_plan.variants
    }
    assert by_variant["cnn2"] == ["failed"] * IDENTICAL_FAILURES
    assert len(by_variant["cnn3"]) == 6
    assert set(by_variant["cnn3"]) <= {"complete", "stopped"}


def test_a_variant_is_given_up_alike_however_often_the_driver_dies(tmp_path: Path) -> None:
    def broken(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug", TRACE.format(1)) if start.variant == "cnn2" else None

    of = plan(space(trials=4, base={"epochs": 2}))
    whole = quick(new_ledger(tmp_path / "whole.sqlite", of))
    play(TrialScheduler(whole, of), fate=broken)
    for change in range(2, 40, 3):
        ledger = quick(new_ledger(tmp_path / f"{change}.sqlite", of))
        die_at(ledger, change, before=True)
        with pytest.raises(Killed):
            play(TrialScheduler(ledger, of), fate=broken)
        ledger.close()
        again = quick(open_ledger(tmp_path / f"{change}.sqlite"))
        play(TrialScheduler(again, of), fate=broken)
        assert table(again) == table(whole)


def test_one_trials_own_retries_do_not_stop_its_variant(ledger: Ledger, of_plan: Plan) -> None:
    def first_only(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug", TRACE.format(1)) if start.number == 0 else None

    scheduler = TrialScheduler(ledger, of_plan)
    play(scheduler, fate=first_only)
    assert scheduler.given_up() == ()
    assert Counter(trial.status == "failed" for trial in ledger.trials()) == {True: 2, False: 10}


def test_errors_that_a_retry_got_past_do_not_stop_their_variant(
    ledger: Ledger, of_plan: Plan
) -> None:
    def once_each(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug", TRACE.format(1)) if (start.attempt, epoch) == (1, 1) else None

    scheduler = TrialScheduler(ledger, of_plan)
    play(scheduler, fate=once_each)
    assert scheduler.given_up() == ()
    assert {trial.status for trial in ledger.trials()} <= {"complete", "stopped"}
    assert len(ledger.trials()) == 12


def test_a_variant_stays_given_up_where_its_failed_trials_are_left_alone(
    ledger: Ledger, of_plan: Plan
) -> None:
    play(TrialScheduler(ledger, of_plan), fate=lambda start, epoch: failed("bug", TRACE.format(1)))
    attempts = ledger.attempts()
    assert len(ledger.trials()) == 2 * IDENTICAL_FAILURES
    again = TrialScheduler(ledger, of_plan, retry_failed=False)
    assert again.given_up() == of_plan.variants
    assert again.next_start() is None
    assert ledger.attempts() == attempts


def test_a_trial_that_never_started_does_not_fail_with_its_variant(
    ledger: Ledger, of_plan: Plan
) -> None:
    scheduler = TrialScheduler(ledger, of_plan)
    starts = [scheduler.next_start() for _ in range(IDENTICAL_FAILURES)]
    planned = scheduler._plan_trial("cnn2")  # where a driver was killed before its first attempt
    again = TrialScheduler(ledger, of_plan)
    starts = [again.next_start() for _ in range(IDENTICAL_FAILURES)]
    for start in starts:
        assert start is not None
        again.on_end(start.signature, start.attempt, **failed("bug", TRACE.format(1)))
    assert again.given_up() == ("cnn2",)
    assert ledger.trial(planned.signature).status == "planned"
    assert ledger.attempts(planned.signature) == []


def test_different_tracebacks_do_not_stop_a_variant(ledger: Ledger, of_plan: Plan) -> None:
    def each_its_own(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug", f"ValueError: {'abcdef'[start.number]}")

    scheduler = TrialScheduler(ledger, of_plan)
    play(scheduler, fate=each_its_own)
    assert scheduler.given_up() == ()
    assert [trial.status for trial in ledger.trials()] == ["failed"] * 12


def test_what_runs_when_its_variant_is_given_up_may_finish(tmp_path: Path) -> None:
    of = plan(space(variants=("cnn2",), trials=5))
    ledger = new_ledger(tmp_path / "ledger.sqlite", of)
    scheduler = TrialScheduler(ledger, of)
    starts = [scheduler.next_start() for _ in range(5)]
    for start in starts[:3]:
        assert start is not None
        scheduler.on_end(start.signature, 1, **failed("bug", TRACE.format(1)))
    assert scheduler.given_up() == ("cnn2",)
    assert scheduler.next_start() is None
    assert num_running(ledger) == 2
    survivor, another = starts[3:]
    assert survivor is not None
    assert another is not None
    scheduler.on_end(survivor.signature, 1, outcome="complete")
    scheduler.on_end(another.signature, 1, **failed("killed"))
    statuses = [trial.status for trial in ledger.trials()]
    assert statuses == ["failed"] * 3 + ["complete", "failed"]


def test_a_new_scheduler_tries_failed_trials_again(ledger: Ledger, one: Plan) -> None:
    _, trial = only(ledger, one, lambda start, epoch: failed("bug") if epoch == 2 else None)
    assert trial.status == "failed"
    [start] = play(TrialScheduler(ledger, one))
    assert (start.attempt, start.resume_from) == (
        4,
        f"trials/{trial.signature}/attempt_1/epoch_0001",
    )
    [mended] = ledger.trials()
    assert (mended.status, mended.best_epoch) == ("complete", 8)
    assert play(TrialScheduler(ledger, one)) == []


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


def test_failed_trials_are_left_alone_when_told_so(ledger: Ledger, one: Plan) -> None:
    only(ledger, one, lambda start, epoch: failed("bug") if epoch == 2 else None)
    scheduler = TrialScheduler(ledger, one, retry_failed=False)
    assert not scheduler.has_work()
    assert scheduler.next_start() is None


def test_from_scratch_starts_failed_trials_anew_and_keeps_their_first_values(
    ledger: Ledger, one: Plan
) -> None:
    _, trial = only(ledger, one, lambda start, epoch: failed("bug") if epoch == 2 else None)
    before = ledger.epochs(trial.signature)
    # The new start is cut off after one epoch and continued: never from what lay before it.
    scheduler = TrialScheduler(ledger, one, from_scratch=True)
    playing = begin(scheduler)
    assert playing is not None
    assert (playing.start.attempt, playing.start.resume_from) == (4, None)
    assert step(scheduler, playing, goes_well)
    scheduler.interrupt()
    wrote = {f"trials/{trial.signature}/attempt_4/epoch_0000"}
    wrote |= {str(row.checkpoint) for row in before}
    [start] = play(TrialScheduler(ledger, one, is_loadable=wrote.__contains__))
    assert start.resume_from == f"trials/{trial.signature}/attempt_4/epoch_0000"
    assert ledger.epochs(trial.signature)[:2] == before
    assert ledger.trial(trial.signature).status == "complete"


def test_a_full_disk_pauses_the_sweep_then_stops_it_and_costs_no_trial_an_attempt(
    ledger: Ledger, one: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry_policy, "DISK_PAUSES_S", (0.02, 0.02))
    scheduler = TrialScheduler(ledger, one)
    for _ in range(2):
        playing = wait_for_start(scheduler)
        scheduler.on_end(playing.signature, playing.attempt, **failed("disk", "No space left"))
        assert scheduler.is_paused()
        assert scheduler.next_start() is None
        assert scheduler.has_work()
    playing = wait_for_start(scheduler)
    scheduler.on_end(playing.signature, playing.attempt, **failed("disk", "No space left"))
    assert scheduler.halted() == "No space left"
    assert scheduler.next_start() is None
    trial = ledger.trials()[0]
    assert trial.status == "running"
    play(TrialScheduler(ledger, one))
    assert ledger.trial(trial.signature).status == "complete"


def test_an_epoch_that_was_saved_ends_the_count_of_pauses(
    ledger: Ledger, one: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry_policy, "DISK_PAUSES_S", (0.01,))
    scheduler = TrialScheduler(ledger, one)
    for epoch in range(4):
        start = wait_for_start(scheduler)
        assert not scheduler.on_epoch(
            start.signature, start.attempt, epoch, metrics(val_top1=0.5), None
        )
        scheduler.on_end(start.signature, start.attempt, **failed("disk", "No space left"))
    assert scheduler.halted() is None


def test_nothing_starts_while_the_disk_has_no_room(
    ledger: Ledger, one: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry_policy, "DISK_PAUSES_S", (0.01,))
    room = iter([False, True])
    scheduler = TrialScheduler(ledger, one, has_room=lambda variant: next(room))
    assert scheduler.next_start() is None
    assert ledger.trials() == []
    assert wait_for_start(scheduler).attempt == 1


def test_a_stop_that_could_not_be_stored_is_made_up_for_by_the_next_driver(
    ledger: Ledger, of_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full between a row and its decision; the attempt was then closed as lost."""
    scheduler, original = TrialScheduler(ledger, of_plan), ledger.end_attempt
    stopped = []

    def full(signature: str, attempt: int, **how: Any) -> None:
        if how["outcome"] == "stopped":
            stopped.append(signature)
            raise OSError("no space left")
        original(signature, attempt, **how)

    monkeypatch.setattr(ledger, "end_attempt", full)
    with pytest.raises(OSError, match="no space left"):
        play(scheduler)
    scheduler._running[stopped[0]] = 1  # as `interrupt` finds it
    scheduler.interrupt()
    monkeypatch.undo()
    assert [a.outcome for a in ledger.attempts(stopped[0])] == ["lost"]
    play(TrialScheduler(ledger, of_plan))
    check_invariants(ledger, of_plan)
    assert ledger.trial(stopped[0]).status == "stopped"
    assert len(ledger.attempts(stopped[0])) == 1


def test_an_epoch_trained_again_is_gone_on_from_where_its_row_s_checkpoint_is_broken(
    ledger: Ledger, one: Plan
) -> None:
    ends = iter([failed("killed"), failed("killed")])
    broken = "attempt_1/epoch_0001"
    scheduler = TrialScheduler(ledger, one, is_loadable=lambda path: not path.endswith(broken))
    starts = play(
        scheduler,
        fate=lambda start, epoch: next(ends, None) if epoch == start.attempt + 1 else None,
    )
    assert [start.resume_from and start.resume_from[-20:] for start in starts] == [
        None,
        "attempt_1/epoch_0000",
        "attempt_2/epoch_0002",
    ]
