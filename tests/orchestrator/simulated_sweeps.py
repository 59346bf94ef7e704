"""Runs a scheduler's trials epoch by epoch from a learning curve instead of training them."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import ENDED
from orchestrator.plan.plan import Plan, trial_seed
from orchestrator.search.early_stopping import is_stopped
from orchestrator.search.scheduler import AttemptStart, TrialScheduler
from tests.orchestrator.sweeps import curve, evaluation, metrics

# How an attempt ends instead of training this epoch: the arguments of `on_end`; None: it does not.
EndAt = Callable[[AttemptStart, int], dict[str, Any] | None]


def no_early_end(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
    return None


def mixed_ends(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
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


def failed(kind: str, text: str = "") -> dict[str, Any]:
    return {"outcome": "failed", "failure_class": kind, "failure_text": text or kind}


@dataclass
class Running:
    """A running attempt and the next epoch that it trains."""

    start: AttemptStart
    epoch: int


def start_next(scheduler: TrialScheduler) -> Running | None:
    start = scheduler.next_start()
    if start is None:
        return None
    path = start.resume_from
    return Running(start, 0 if path is None else int(path.rpartition("_")[2]) + 1)


def run_epoch(scheduler: TrialScheduler, running: Running, end_at: EndAt) -> bool:
    """Report one epoch, or the end after the last one; return whether the attempt continues."""
    start, epoch = running.start, running.epoch
    address = start.signature, start.attempt
    if epoch >= start.config.epochs:
        if start.is_evaluated:
            rows = scheduler.ledger.epochs(start.signature)
            best = max(rows, key=lambda row: row.metrics["val_top1"])
            if not start.config.validation_fraction:
                best = rows[-1]
            scheduler.on_evaluation(*address, evaluation(best.epoch))
        scheduler.on_end(*address, outcome="complete")
        return False
    end = end_at(start, epoch)
    if end is not None:
        scheduler.on_end(*address, **end)
        return False
    value = curve(start.config.to_dict(), epoch)
    path = f"trials/{start.signature}/attempt_{start.attempt}/epoch_{epoch:04d}"
    running.epoch += 1
    return not scheduler.on_epoch(*address, epoch, metrics(val_top1=value), path)


def run_trials(
    scheduler: TrialScheduler,
    *,
    limit: int = 1,
    end_at: EndAt = no_early_end,
    draws: random.Random | None = None,
) -> list[AttemptStart]:
    """Run trials until the scheduler has none left; return the attempts that were started."""
    running: list[Running] = []
    started: list[AttemptStart] = []
    draws = draws or random.Random(0)
    while True:
        while len(running) < limit and (new := start_next(scheduler)):
            running.append(new)
            started.append(new.start)
        assert num_running(scheduler.ledger) == len(running) <= limit
        if not running:
            assert scheduler.next_start() is None
            return started
        one = draws.choice(running)
        if not run_epoch(scheduler, one, end_at):
            running.remove(one)


def num_running(ledger: Ledger) -> int:
    """Return how many attempts are open."""
    return sum(attempt.outcome is None for attempt in ledger.attempts())


def without_fsync(ledger: Ledger) -> Ledger:
    """Let the ledger skip fsync, because no test here cuts the power."""
    ledger.database.connection.execute("PRAGMA synchronous = OFF")
    return ledger


def results(ledger: Ledger) -> list[tuple[Any, ...]]:
    """Return the rows that must be equal with and without kills of the driver."""
    return [
        (
            *(trial.signature, trial.variant, trial.number, trial.params, trial.status),
            *(trial.best_epoch, trial.best_value),
            [(row.epoch, row.metrics["val_top1"]) for row in ledger.epochs(trial.signature)],
        )
        for trial in ledger.trials()
    ]


def check_invariants(ledger: Ledger, plan: Plan) -> None:
    """Check a finished sweep: every trial ended once, without gaps, and stopped by the rule."""
    trials = ledger.trials()
    assert Counter(trial.variant for trial in trials) == dict.fromkeys(plan.variants, plan.trials)
    for variant in plan.variants:
        numbers = [trial.number for trial in trials if trial.variant == variant]
        assert numbers == list(range(plan.trials))
    seqs = []
    for trial in trials:
        rows, attempts = ledger.epochs(trial.signature), ledger.attempts(trial.signature)
        assert trial.status in ENDED
        assert all(attempt.outcome is not None for attempt in attempts)
        assert [attempt.attempt for attempt in attempts] == list(range(1, len(attempts) + 1))
        assert [row.epoch for row in rows] == list(range(len(rows)))
        assert [row.seq for row in rows] == sorted(row.seq for row in rows)
        assert trial.config["seed"] == trial_seed(plan.seed, trial.variant, trial.number)
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
                first_rung=plan.space.first_rung_epochs,
                factor=plan.space.rung_factor,
                mode="max",
            )
            is_last = row is rows[-1]
            if row.epoch + 1 < trial.config["epochs"]:
                assert stopped_here == (is_last and trial.status == "stopped")
    assert len(seqs) == len(set(seqs))


class Killed(BaseException):
    """Simulates the end of the driver's process; a BaseException, so that no code catches it."""


def kill_at(ledger: Ledger, change: int, *, before: bool) -> None:
    """Raise `Killed` at the ledger's n-th change from now, before or after it is committed."""
    original, count = ledger.database.change, 0

    @contextlib.contextmanager
    def change_or_kill() -> Iterator[Any]:
        nonlocal count
        count += 1
        if (count == change and before) or count > change:
            raise Killed
        with original() as connection:
            yield connection
        if count == change:
            raise Killed

    ledger.database.change = change_or_kill  # type: ignore[method-assign]
