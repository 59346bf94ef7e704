"""What follows each class of failure."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.ledger.records import Attempt
from orchestrator.search.retry_policy import (
    IDENTICAL_FAILURES,
    MAX_UNCOUNTED,
    UNCOUNTED,
    Decision,
    RepeatedErrors,
    decide,
    fingerprint,
)


def attempts(*ends: tuple[str | None, int]) -> list[Attempt]:
    """Return attempts with these failure classes (None: lost with its driver) and micro-batches."""
    return [
        Attempt(
            signature="a",
            attempt=number,
            started_s=0.0,
            ended_s=1.0,
            resumed_from=None,
            micro_batch_size=micro,
            log=None,
            outcome="lost" if kind is None else "failed",
            failure_class=kind,
            failure_text="",
        )
        for number, (kind, micro) in enumerate(ends, start=1)
    ]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([("bug", 0)], Decision(True, 0)),
        ([("bug", 0), ("bug", 0)], Decision(True, 0)),
        ([("bug", 0), ("bug", 0), ("bug", 0)], Decision(False, 0)),
        ([("bug", 0), ("hung", 0), ("bug", 0)], Decision(False, 0)),
        ([("disk", 0), ("bug", 0), ("disk", 0), ("bug", 0)], Decision(True, 0)),
        ([("bug", 0), (None, 0), (None, 0), ("bug", 0)], Decision(True, 0)),
        ([("bug", 0), ("killed", 0), ("node", 0), ("bug", 0)], Decision(True, 0)),
        ([("data", 0)], Decision(False, 0)),
        ([("out_of_memory", 0)], Decision(True, 16)),
        ([("out_of_memory", 0), ("out_of_memory", 16)], Decision(True, 8)),
        ([("out_of_memory", 5)], Decision(True, 2)),
        ([("out_of_memory", 2)], Decision(False, 1)),
        # Out of memory does not count as an attempt, and the micro-batch stays.
        ([("out_of_memory", 0)] * 3 + [("bug", 4)], Decision(True, 4)),
        ([("out_of_memory", 0), ("killed", 16)], Decision(True, 16)),
        ([("preempted", 0)] * MAX_UNCOUNTED, Decision(True, 0)),
        ([("preempted", 0)] * (MAX_UNCOUNTED + 1), Decision(False, 0)),
        ([("bug", 0)] * 2 + [("killed", 0)], Decision(True, 0)),
    ],
)
def test_decision_after_a_failure(ends: list[tuple[str | None, int]], expected: Decision) -> None:
    assert decide(attempts(*ends), set(), 32, 3) == expected


def test_uncounted_failures_are_limited_only_without_a_new_epoch_between_them() -> None:
    ends = attempts(*[("killed", 0)] * (2 * MAX_UNCOUNTED))
    assert decide(ends, {MAX_UNCOUNTED}, 32, 3) == Decision(True, 0)
    assert decide(ends, {MAX_UNCOUNTED - 1}, 32, 3) == Decision(False, 0)


def test_uncounted_classes_are_those_that_the_trial_did_not_cause() -> None:
    assert set(UNCOUNTED) == {"node", "preempted", "killed", "disk"}


TRACE = """Traceback (most recent call last):
  File "/tmp/a/loop.py", line 12, in fit
    loss.backward()
RuntimeError: shape [{}, 3] at 0x{} is invalid
"""


def test_fingerprint_ignores_numbers_and_addresses() -> None:
    first = fingerprint(TRACE.format(7, "7f00ab"))
    assert fingerprint(TRACE.format(12, "9e11cd")) == first
    assert fingerprint(TRACE.format(7, "7f00ab").replace("invalid", "wrong")) != first
    assert fingerprint(TRACE.format(7, "7f00ab").replace("in fit", "in step")) != first
    assert fingerprint("") == ""


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [("bug", "a", True), ("bug", "b", False), ("killed", "a", False)],
)
def test_only_a_trials_latest_failure_counts_towards_giving_up_its_variant(
    kind: str, text: str, expected: bool
) -> None:
    """A driver that resumes reads the latest attempt alone: a running one counts it alone too."""
    errors = RepeatedErrors()
    [template] = attempts(("bug", 0))
    for number in range(IDENTICAL_FAILURES):
        trial = dataclasses.replace(template, signature=str(number), failure_text="a")
        errors.note(trial)
    assert errors.reached_limit()
    errors.note(dataclasses.replace(trial, failure_class=kind, failure_text=text))
    assert errors.reached_limit() == expected
