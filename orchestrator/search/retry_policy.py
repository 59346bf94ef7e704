"""Decides what happens after a failed attempt; defines the failure classes.

Two classes cover failures of several trials: `RepeatedErrors` those of a variant whose trials all
fail in the same way, `DiskPauses` those of a disk that cannot be written. The scheduler guards both
with its lock.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.clock import Clock
from orchestrator.ledger.records import Attempt

FailureClass = Literal[
    "out_of_memory", "diverged", "data", "disk", "node", "preempted", "killed", "hung", "bug"
]

# A variant is given up when this many of its trials end with the same traceback: more trials would
# fail alike.
IDENTICAL_FAILURES = 3

# The trial did not cause these, so they are retried and do not count as attempts. After "disk" the
# whole sweep pauses (`DISK_PAUSES_S`), because every other trial would fail the same way.
UNCOUNTED: tuple[FailureClass, ...] = ("node", "preempted", "killed", "disk")
# Limit of uncounted failures in a row without a new epoch, as on a machine that kills every trial.
MAX_UNCOUNTED = 20

# Pauses of a sweep whose disk is full or not writable; after the last one the sweep ends.
DISK_PAUSES_S = (1.0, 3.0, 10.0, 30.0)

# Batch norm cannot train on a single image of one pixel.
SMALLEST_MICRO_BATCH = 2


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows a failed attempt. `micro_batch_size` 0 means the whole batch at once."""

    retry: bool
    micro_batch_size: int = 0


def decide(
    attempts: Sequence[Attempt], productive: Collection[int], batch_size: int, max_attempts: int
) -> Decision:
    """Return what follows the last of a trial's attempts, oldest first, which failed.

    `productive` are the numbers of the attempts that completed a new epoch. `batch_size` are the
    images per step of one worker; a smaller micro-batch keeps this total by gradient accumulation.
    `max_attempts` is the limit of counted failures of a trial.
    """
    last = attempts[-1]
    if last.failure_class in UNCOUNTED:
        in_a_row = 0
        for attempt in reversed(attempts):
            if attempt.attempt in productive:
                break
            in_a_row += attempt.failure_class in UNCOUNTED
        return Decision(in_a_row <= MAX_UNCOUNTED, last.micro_batch_size)
    if last.failure_class == "out_of_memory":
        half = (last.micro_batch_size or batch_size) // 2
        return Decision(half >= SMALLEST_MICRO_BATCH, half)
    if last.failure_class == "data":
        return Decision(False)
    failed = [attempt.failure_class for attempt in attempts if attempt.outcome == "failed"]
    counted = sum(each not in (*UNCOUNTED, "out_of_memory") for each in failed)
    return Decision(counted < max_attempts, last.micro_batch_size)


class RepeatedErrors:
    """The errors in the code that the trials of one variant share."""

    def __init__(self) -> None:
        self._by_trial: dict[str, str] = {}  # the traceback of each trial's latest attempt

    def note(self, attempt: Attempt) -> None:
        """Remember an error in the code that ended a trial's latest attempt, or its absence."""
        self.forget(attempt.signature)
        if attempt.outcome == "failed" and attempt.failure_class == "bug":
            self._by_trial[attempt.signature] = fingerprint(attempt.failure_text or "")

    def forget(self, signature: str) -> None:
        """Forget the errors of a trial that made progress since."""
        self._by_trial.pop(signature, None)

    def reached_limit(self) -> bool:
        """Return whether `IDENTICAL_FAILURES` trials failed with the same error."""
        counts = collections.Counter(self._by_trial.values())
        return max(counts.values(), default=0) >= IDENTICAL_FAILURES


class DiskPauses:
    """Pauses of a sweep whose disk fails: each is longer, and after the last one the sweep ends.

    Every trial uses the same disk, so disk failures do not count as attempts of a trial.
    """

    def __init__(self, clock: Clock) -> None:
        self.halted: str | None = None  # the reason why no attempt starts any more
        self._monotonic_s = clock.monotonic_s
        self._until_s = -math.inf  # on the monotonic clock
        self._number = 0  # pauses since the last completed epoch

    def start(self, reason: str) -> None:
        """Start no attempts for a while or, after the last pause, ever again."""
        if self.halted or self.is_active():
            return  # reported by another trial that was running when the pause started
        if self._number == len(DISK_PAUSES_S):
            self.halted = reason
            return
        self._until_s = self._monotonic_s() + DISK_PAUSES_S[self._number]
        self._number += 1

    def is_active(self) -> bool:
        """Return whether no attempt may start at the moment."""
        return not self.halted and self._monotonic_s() < self._until_s

    def reset(self) -> None:
        """Count pauses from the first again: a checkpoint was written, so the disk works."""
        self._number = 0


def last_line(failure_text: str) -> str:
    """Return the last line of a traceback, which names the error."""
    return next((line for line in reversed(failure_text.splitlines()) if line.strip()), "")


def fingerprint(failure_text: str) -> str:
    """Return a traceback's frames and error without addresses and numbers.

    Two failures have the same cause if these are equal.
    """
    lines = [line.strip() for line in failure_text.splitlines()]
    kept = [line for line in lines if line.startswith("File ")] + [lines[-1] if lines else ""]
    return re.sub(r"0x[0-9a-f]+|\d+", "#", "\n".join(kept))
