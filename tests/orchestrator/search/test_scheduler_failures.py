"""What the scheduler does after failures: retries, variants given up, pauses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import Clock
from orchestrator.ledger.ledger import Ledger, open_ledger
from orchestrator.ledger.records import Trial
from orchestrator.plan.plan import Plan
from orchestrator.search.retry_policy import DISK_PAUSES_S, IDENTICAL_FAILURES, MAX_UNCOUNTED
from orchestrator.search.scheduler import AttemptStart, TrialScheduler
from tests.orchestrator.simulated_sweeps import (
    EndAt,
    Killed,
    check_invariants,
    failed,
    kill_at,
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


@pytest.fixture
def one() -> Plan:
    return plan(space(variants=("cnn2",), trials=1))


def only(ledger: Ledger, of: Plan, end_at: EndAt) -> tuple[list[AttemptStart], Trial]:
    """Run the only trial of a plan and return its attempts and the trial."""
    started = run_trials(TrialScheduler(ledger, of), end_at=end_at)
    [trial] = ledger.trials()
    return started, trial


class Time:
    """A clock's monotonic time, which moves when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.clock = Clock(monotonic_s=lambda: self.now_s)

    def start_after_pause(self, scheduler: TrialScheduler) -> AttemptStart:
        """Return the attempt that starts when the longest pause is over."""
        self.now_s += DISK_PAUSES_S[-1]
        start = scheduler.next_start()
        assert start is not None
        return start


def test_a_bug_is_attempted_max_attempts_times(ledger: Ledger, one: Plan) -> None:
    started, trial = only(ledger, one, lambda start, epoch: failed("bug", "boom"))
    assert [start.attempt for start in started] == [1, 2, 3]
    assert (trial.status, trial.best_value, trial.ended_seq) == ("failed", None, ledger.seq)
    assert [(a.outcome, a.failure_class, a.failure_text) for a in ledger.attempts()] == [
        ("failed", "bug", "boom")
    ] * 3


def test_a_trial_completes_after_a_bug_that_does_not_recur(ledger: Ledger, one: Plan) -> None:
    def once(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug") if start.attempt == 1 and epoch == 3 else None

    started, trial = only(ledger, one, once)
    assert trial.status == "complete"
    assert started[1].resume_from == f"trials/{trial.signature}/attempt_1/epoch_0002"
    assert [row.attempt for row in ledger.epochs(trial.signature)] == [1] * 3 + [2] * 6


@pytest.mark.parametrize("kind", ["killed", "node", "preempted"])
def test_deaths_that_the_trial_did_not_cause_do_not_count(
    ledger: Ledger, one: Plan, kind: str
) -> None:
    def often(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed(kind) if start.attempt <= 8 else None

    started, trial = only(ledger, one, often)
    assert (len(started), trial.status) == (9, "complete")


def test_a_trial_that_is_always_killed_fails_in_the_end(ledger: Ledger, one: Plan) -> None:
    started, trial = only(ledger, one, lambda start, epoch: failed("killed"))
    assert (len(started), trial.status) == (MAX_UNCOUNTED + 1, "failed")


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(
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


def test_out_of_memory_with_two_images_fails_the_trial(ledger: Ledger, one: Plan) -> None:
    started, trial = only(ledger, one, lambda start, epoch: failed("out_of_memory"))
    assert started[-1].config.micro_batch_size == 2
    assert (len(started), trial.status) == (trial.config["batch_size"].bit_length() - 1, "failed")


def test_the_micro_batch_is_a_share_of_one_workers_batch(tmp_path: Path) -> None:
    of = plan(space(variants=("cnn2",), trials=1))
    object.__setattr__(of, "overrides", {"workers": 4})
    scheduler = TrialScheduler(new_ledger(tmp_path / "ledger.sqlite", of), of)
    start = scheduler.next_start()
    assert start is not None
    scheduler.on_end(start.signature, 1, **failed("out_of_memory"))
    again = scheduler.next_start()
    assert again is not None
    assert again.config.micro_batch_size == start.config.batch_size // 4 // 2


def test_a_new_driver_keeps_the_micro_batch(ledger: Ledger, one: Plan) -> None:
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


def test_the_same_traceback_in_several_trials_stops_their_variant_only(
    ledger: Ledger, of_plan: Plan
) -> None:
    def broken(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        if start.variant != "cnn2":
            return None
        return failed("bug", TRACE.format(start.number + start.attempt))

    scheduler = TrialScheduler(ledger, of_plan)
    run_trials(scheduler, end_at=broken)
    assert scheduler.given_up() == ("cnn2",)
    by_variant = {
        variant: [t.status for t in ledger.trials() if t.variant == variant]
        for variant in of_plan.variants
    }
    assert by_variant["cnn2"] == ["failed"] * IDENTICAL_FAILURES
    assert len(by_variant["cnn3"]) == 6
    assert set(by_variant["cnn3"]) <= {"complete", "stopped"}


def test_a_variant_is_given_up_the_same_way_when_the_driver_is_killed(tmp_path: Path) -> None:
    def broken(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug", TRACE.format(1)) if start.variant == "cnn2" else None

    of = plan(space(trials=4, base={"epochs": 2}))
    whole = without_fsync(new_ledger(tmp_path / "whole.sqlite", of))
    run_trials(TrialScheduler(whole, of), end_at=broken)
    for change in range(2, 40, 3):
        ledger = without_fsync(new_ledger(tmp_path / f"{change}.sqlite", of))
        kill_at(ledger, change, before=True)
        with pytest.raises(Killed):
            run_trials(TrialScheduler(ledger, of), end_at=broken)
        ledger.close()
        again = without_fsync(open_ledger(tmp_path / f"{change}.sqlite"))
        run_trials(TrialScheduler(again, of), end_at=broken)
        assert results(again) == results(whole)


def test_repeated_failures_of_one_trial_do_not_stop_its_variant(
    ledger: Ledger, of_plan: Plan
) -> None:
    def first_only(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug", TRACE.format(1)) if start.number == 0 else None

    scheduler = TrialScheduler(ledger, of_plan)
    run_trials(scheduler, end_at=first_only)
    assert scheduler.given_up() == ()
    assert Counter(trial.status == "failed" for trial in ledger.trials()) == {True: 2, False: 10}


def test_errors_that_do_not_recur_in_a_retry_do_not_stop_their_variant(
    ledger: Ledger, of_plan: Plan
) -> None:
    def once_each(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug", TRACE.format(1)) if (start.attempt, epoch) == (1, 1) else None

    scheduler = TrialScheduler(ledger, of_plan)
    run_trials(scheduler, end_at=once_each)
    assert scheduler.given_up() == ()
    assert {trial.status for trial in ledger.trials()} <= {"complete", "stopped"}
    assert len(ledger.trials()) == 12


def test_a_variant_stays_given_up_without_retry_failed(ledger: Ledger, of_plan: Plan) -> None:
    run_trials(
        TrialScheduler(ledger, of_plan), end_at=lambda start, epoch: failed("bug", TRACE.format(1))
    )
    attempts = ledger.attempts()
    assert len(ledger.trials()) == 2 * IDENTICAL_FAILURES
    again = TrialScheduler(ledger, of_plan, retry_failed=False)
    assert again.given_up() == of_plan.variants
    assert again.next_start() is None
    assert ledger.attempts() == attempts


def test_a_trial_without_an_attempt_does_not_fail_with_its_variant(
    ledger: Ledger, of_plan: Plan
) -> None:
    scheduler = TrialScheduler(ledger, of_plan)
    starts = [scheduler.next_start() for _ in range(IDENTICAL_FAILURES)]
    planned = scheduler._plan_trial("cnn2")  # as if the driver was killed before the first attempt
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
    run_trials(scheduler, end_at=each_its_own)
    assert scheduler.given_up() == ()
    assert [trial.status for trial in ledger.trials()] == ["failed"] * 12


def test_running_trials_of_a_variant_that_is_given_up_may_finish(tmp_path: Path) -> None:
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


def test_a_new_scheduler_retries_failed_trials(ledger: Ledger, one: Plan) -> None:
    _, trial = only(ledger, one, lambda start, epoch: failed("bug") if epoch == 2 else None)
    assert trial.status == "failed"
    [start] = run_trials(TrialScheduler(ledger, one))
    assert (start.attempt, start.resume_from) == (
        4,
        f"trials/{trial.signature}/attempt_1/epoch_0001",
    )
    [mended] = ledger.trials()
    assert (mended.status, mended.best_epoch) == ("complete", 8)
    assert run_trials(TrialScheduler(ledger, one)) == []


def test_passwords_and_tokens_do_not_reach_the_ledger(
    ledger: Ledger, one: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2hunter2")
    text = "ConnectionError: http://ann:pass@host/x refused hunter2hunter2"
    only(ledger, one, lambda start, epoch: failed("bug", text))
    assert {attempt.failure_text for attempt in ledger.attempts()} == {
        "ConnectionError: http://[redacted]@host/x refused [redacted]"
    }


# Options of a resumed sweep, and the disk.


def test_failed_trials_are_not_retried_without_retry_failed(ledger: Ledger, one: Plan) -> None:
    only(ledger, one, lambda start, epoch: failed("bug") if epoch == 2 else None)
    scheduler = TrialScheduler(ledger, one, retry_failed=False)
    assert not scheduler.has_work()
    assert scheduler.next_start() is None


def test_from_scratch_ignores_checkpoints_and_keeps_the_first_values(
    ledger: Ledger, one: Plan
) -> None:
    _, trial = only(ledger, one, lambda start, epoch: failed("bug") if epoch == 2 else None)
    before = ledger.epochs(trial.signature)
    # Interrupted after one epoch, it resumes from that epoch, not from an older checkpoint.
    scheduler = TrialScheduler(ledger, one, from_scratch=True)
    running = start_next(scheduler)
    assert running is not None
    assert (running.start.attempt, running.start.resume_from) == (4, None)
    assert run_epoch(scheduler, running, no_early_end)
    scheduler.interrupt()
    wrote = {f"trials/{trial.signature}/attempt_4/epoch_0000"}
    wrote |= {str(row.checkpoint) for row in before}
    [start] = run_trials(TrialScheduler(ledger, one, is_loadable=wrote.__contains__))
    assert start.resume_from == f"trials/{trial.signature}/attempt_4/epoch_0000"
    assert ledger.epochs(trial.signature)[:2] == before
    assert ledger.trial(trial.signature).status == "complete"


def test_a_full_disk_pauses_then_ends_the_sweep_and_counts_no_attempt(
    ledger: Ledger, one: Plan
) -> None:
    time = Time()
    scheduler = TrialScheduler(ledger, one, clock=time.clock)
    for pause_s in DISK_PAUSES_S:
        start = time.start_after_pause(scheduler)
        scheduler.on_end(start.signature, start.attempt, **failed("disk", "No space left"))
        time.now_s += pause_s - 0.01
        assert scheduler.is_paused()
        assert scheduler.next_start() is None
        assert scheduler.has_work()
    start = time.start_after_pause(scheduler)
    scheduler.on_end(start.signature, start.attempt, **failed("disk", "No space left"))
    assert scheduler.halted() == "No space left"
    assert scheduler.next_start() is None
    trial = ledger.trials()[0]
    assert trial.status == "running"
    run_trials(TrialScheduler(ledger, one))
    assert ledger.trial(trial.signature).status == "complete"


def test_a_saved_epoch_resets_the_number_of_pauses(ledger: Ledger, one: Plan) -> None:
    time = Time()
    scheduler = TrialScheduler(ledger, one, clock=time.clock)
    for epoch in range(2 * len(DISK_PAUSES_S)):
        start = time.start_after_pause(scheduler)
        values = metrics(val_top1=0.5)
        assert not scheduler.on_epoch(start.signature, start.attempt, epoch, values, None)
        scheduler.on_end(start.signature, start.attempt, **failed("disk", "No space left"))
    assert scheduler.halted() is None


def test_no_attempt_starts_while_the_disk_has_no_room(ledger: Ledger, one: Plan) -> None:
    room, time = iter([False, True]), Time()
    scheduler = TrialScheduler(ledger, one, has_room=lambda variant: next(room), clock=time.clock)
    assert scheduler.next_start() is None
    assert ledger.trials() == []
    assert time.start_after_pause(scheduler).attempt == 1


def test_a_new_driver_makes_a_stop_that_could_not_be_stored(
    ledger: Ledger, of_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after the row and before the stop, so the attempt is closed as lost."""
    scheduler, original = TrialScheduler(ledger, of_plan), ledger.end_attempt
    stopped = []

    def full(signature: str, attempt: int, **how: Any) -> None:
        if how["outcome"] == "stopped":
            stopped.append(signature)
            raise OSError("no space left")
        original(signature, attempt, **how)

    monkeypatch.setattr(ledger, "end_attempt", full)
    with pytest.raises(OSError, match="no space left"):
        run_trials(scheduler)
    scheduler._running[stopped[0]] = 1  # as `interrupt` finds it
    scheduler.interrupt()
    monkeypatch.undo()
    assert [a.outcome for a in ledger.attempts(stopped[0])] == ["lost"]
    run_trials(TrialScheduler(ledger, of_plan))
    check_invariants(ledger, of_plan)
    assert ledger.trial(stopped[0]).status == "stopped"
    assert len(ledger.attempts(stopped[0])) == 1


def test_an_attempt_resumes_from_the_second_checkpoint_of_a_repeated_epoch(
    ledger: Ledger, one: Plan
) -> None:
    ends = iter([failed("killed"), failed("killed")])
    broken = "attempt_1/epoch_0001"
    scheduler = TrialScheduler(ledger, one, is_loadable=lambda path: not path.endswith(broken))
    starts = run_trials(
        scheduler,
        end_at=lambda start, epoch: next(ends, None) if epoch == start.attempt + 1 else None,
    )
    assert [start.resume_from and start.resume_from[-20:] for start in starts] == [
        None,
        "attempt_1/epoch_0000",
        "attempt_2/epoch_0002",
    ]
