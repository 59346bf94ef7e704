"""Classes of failure and what is done about each: policy as data, one decision function.

Beside it the two things that failures of several trials say together: that a variant cannot be
trained, and that the disk takes no more. Each belongs to one scheduler, which has the lock.
"""

from __future__ import annotations

import collections
import math
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.ledger.records import Attempt

FailureClass = Literal[
    "out_of_memory", "diverged", "data", "disk", "node", "preempted", "killed", "hung", "bug"
]

# The same traceback this many times stops a variant: it will not get better by itself.
IDENTICAL_FAILURES = 3

# These say nothing about the trial, so they are retried and never counted. After "disk" the whole
# sweep pauses (`DISK_PAUSES_S`), because every other trial would meet the same.
UNCOUNTED: tuple[FailureClass, ...] = ("node", "preempted", "killed", "disk")
# In a row without a new epoch between them: a machine that kills everything it is given.
MAX_UNCOUNTED = 20

# Pauses of a sweep whose disk is full or cannot be written; after the last one it stops.
DISK_PAUSES_S = (1.0, 3.0, 10.0, 30.0)

# Batch norm cannot train on a single image of one pixel.
SMALLEST_MICRO_BATCH = 2


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows a failed attempt. `micro_batch_size` 0 means the whole batch at once."""

    retry: bool
    micro_batch_size: int = 0


def decide(
    attempts: Sequence[Attempt], fruitful: Collection[int], batch_size: int, max_attempts: int
) -> Decision:
    """Decide about a trial from its attempts, the last of which has just failed.

    Args:
        attempts: all of the trial's, oldest first.
        fruitful: numbers of the attempts that brought a new epoch.
        batch_size: one worker's images per step, which smaller micro-batches still add up to.
        max_attempts: how many counted attempts a trial has.
    """
    last = attempts[-1]
    if last.failure_class in UNCOUNTED:
        in_vain = 0
        for attempt in reversed(attempts):
            if attempt.attempt in fruitful:
                break
            in_vain += attempt.failure_class in UNCOUNTED
        return Decision(in_vain <= MAX_UNCOUNTED, last.micro_batch_size)
    if last.failure_class == "out_of_memory":
        half = (last.micro_batch_size or batch_size) // 2
        return Decision(half >= SMALLEST_MICRO_BATCH, half)
    if last.failure_class == "data":
        return Decision(False)
    failed = [attempt.failure_class for attempt in attempts if attempt.outcome == "failed"]
    counted = sum(each not in (*UNCOUNTED, "out_of_memory") for each in failed)
    return Decision(counted < max_attempts, last.micro_batch_size)


class RepeatedErrors:
    """The errors in the code that trials of one variant have in common."""

    def __init__(self) -> None:
        # By traceback: the trials whose last word it is so far.
        self._trials: collections.defaultdict[str, set[str]] = collections.defaultdict(set)

    def note(self, attempt: Attempt) -> None:
        """Remember the error of a trial's last attempt, where it is one in the code."""
        if attempt.outcome == "failed" and attempt.failure_class == "bug":
            self._trials[fingerprint(attempt.failure_text or "")].add(attempt.signature)

    def forget(self, signature: str) -> None:
        """Forget the errors of a trial that got past them."""
        for same in self._trials.values():
            same.discard(signature)

    def are_enough(self) -> bool:
        """Return whether the same one is the last word of so many that none will get past it."""
        return max(map(len, self._trials.values()), default=0) >= IDENTICAL_FAILURES


class DiskPauses:
    """Pauses of a sweep whose disk fails: each longer, and after the last one an end.

    Every trial would meet the same disk, so none of them is charged for it.
    """

    def __init__(self) -> None:
        self.halted: str | None = None  # why nothing starts any more
        self._until_s = -math.inf  # on the monotonic clock
        self._number = 0  # in a row, without an epoch between them

    def begin(self, reason: str) -> None:
        """Start nothing for a while; after the last pause in a row, nothing any more."""
        if self.halted or self.is_on():
            return  # others that ran when it began
        if self._number == len(DISK_PAUSES_S):
            self.halted = reason
            return
        self._until_s = time.monotonic() + DISK_PAUSES_S[self._number]
        self._number += 1

    def is_on(self) -> bool:
        """Return whether nothing starts for now."""
        return not self.halted and time.monotonic() < self._until_s

    def end_count(self) -> None:
        """Take it that the disk works again: a checkpoint could be written."""
        self._number = 0


def last_line(failure_text: str) -> str:
    """Return what a traceback says in the end."""
    return next((line for line in reversed(failure_text.splitlines()) if line.strip()), "")


def fingerprint(failure_text: str) -> str:
    """Return what makes two tracebacks the same: frames and error, without addresses or numbers."""
    lines = [line.strip() for line in failure_text.splitlines()]
    kept = [line for line in lines if line.startswith("File ")] + [lines[-1] if lines else ""]
    return re.sub(r"0x[0-9a-f]+|\d+", "#", "\n".join(kept))
