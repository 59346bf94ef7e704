"""A fake runner: plays a scheduler's trials epoch by epoch instead of training them."""

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

# What becomes of an epoch that would start now: None, or the arguments of `on_end`.
Fate = Callable[[AttemptStart, int], dict[str, Any] | None]


def goes_well(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
    return None


def failed(kind: str, text: str = "") -> dict[str, Any]:
    return {"outcome": "failed", "failure_class": kind, "failure_text": text or kind}


@dataclass
class Playing:
    """An attempt under way in the fake runner."""

    start: AttemptStart
    epoch: int


def begin(scheduler: TrialScheduler) -> Playing | None:
    start = scheduler.next_start()
    if start is None:
        return None
    path = start.resume_from
    return Playing(start, 0 if path is None else int(path.rpartition("_")[2]) + 1)


def step(scheduler: TrialScheduler, playing: Playing, fate: Fate) -> bool:
    """Play one epoch, or the end after the last one; return whether the attempt goes on."""
    start, epoch = playing.start, playing.epoch
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
    end = fate(start, epoch)
    if end is not None:
        scheduler.on_end(*address, **end)
        return False
    value = curve(start.config.to_dict(), epoch)
    path = f"trials/{start.signature}/attempt_{start.attempt}/epoch_{epoch:04d}"
    playing.epoch += 1
    return not scheduler.on_epoch(*address, epoch, metrics(val_top1=value), path)


def play(
    scheduler: TrialScheduler,
    *,
    limit: int = 1,
    fate: Fate = goes_well,
    draws: random.Random | None = None,
) -> list[AttemptStart]:
    """Play until the scheduler has nothing left, as `launch` does; return what was started."""
    running: list[Playing] = []
    started: list[AttemptStart] = []
    draws = draws or random.Random(0)
    while True:
        while len(running) < limit and (new := begin(scheduler)):
            running.append(new)
            started.append(new.start)
        assert num_running(scheduler.ledger) == len(running) <= limit
        if not running:
            assert scheduler.next_start() is None
            return started
        playing = draws.choice(running)
        if not step(scheduler, playing, fate):
            running.remove(playing)


def num_running(ledger: Ledger) -> int:
    """Return how many attempts are open."""
    return sum(attempt.outcome is None for attempt in ledger.attempts())


def quick(ledger: Ledger) -> Ledger:
    """Leave out waiting for the disk, of which no test here takes the power away."""
    ledger.database.connection.execute("PRAGMA synchronous = OFF")
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


class Killed(BaseException):
    """Stands for the end of the process, so nothing may catch it."""


def die_at(ledger: Ledger, change: int, *, before: bool) -> None:
    """Make the ledger's n-th change from now the driver's last: not made, or made and no more."""
    original, count = ledger.database.change, 0

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

    ledger.database.change = change_or_die  # type: ignore[method-assign]
