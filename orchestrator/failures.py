"""Classes of failure and what is done about each: policy as data, one decision function."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.ledger import Attempt

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


def classify_death(text: str) -> FailureClass:
    """Return the class of a worker that died without a word, from what Ray says of it.

    Of every death Ray adds what its cause might be, out of memory and preemption among them;
    that says nothing of this one.
    """
    text = re.sub(
        r"(Some common causes include|There are some potential root causes"
        r"|This can happen if).*",
        "",
        text,
        flags=re.DOTALL,
    )
    if re.search(r"OutOfMemory|out of memory|low on memory|memory pressure", text):
        return "out_of_memory"
    if re.search(r"preempt", text, re.IGNORECASE):
        return "preempted"
    if re.search(r"node.{0,40}(died|dead|crashed|terminated|removed)", text, re.IGNORECASE):
        return "node"
    return "killed"


def last_line(failure_text: str) -> str:
    """Return what a traceback says in the end."""
    return next((line for line in reversed(failure_text.splitlines()) if line.strip()), "")


def fingerprint(failure_text: str) -> str:
    """Return what makes two tracebacks the same: frames and error, without addresses or numbers."""
    lines = [line.strip() for line in failure_text.splitlines()]
    kept = [line for line in lines if line.startswith("File ")] + [lines[-1] if lines else ""]
    return re.sub(r"0x[0-9a-f]+|\d+", "#", "\n".join(kept))
