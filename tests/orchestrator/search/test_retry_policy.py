"""Which class a death has, and what follows from it."""

from __future__ import annotations

import pytest

from orchestrator.execution.failure_class import classify_death
from orchestrator.ledger.records import Attempt
from orchestrator.redaction import redacted
from orchestrator.search.retry_policy import (
    MAX_UNCOUNTED,
    UNCOUNTED,
    Decision,
    FailureClass,
    decide,
    fingerprint,
)

# What Ray 2.60 said of an actor that was killed with SIGKILL, word by word.
SIGKILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: A\n\tactor_id: "
    "8a43931fbf2a48f4c77d2a1901000000\n\tpid: 16497\n\tnamespace: cea44753-d06c-4dd1\n\tip: "
    "192.0.2.2\nThe actor is dead because its worker process has died. Worker exit type: "
    "SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. "
    "End of file. Some common causes include: (1) the process was killed by the OOM killer due to "
    "high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly "
    "due to SIGSEGV or another unexpected error. If the process was killed by the kernel OOM "
    "killer (verifiable by checking for OOM in dmesg of the OOMing node), consider enabling "
    "resource isolation via --enable-resource-isolation to prevent node deaths by resource "
    "contention and significant loss of progress by uninformed kernel OOM killing."
)


def attempts(*ends: tuple[str | None, int]) -> list[Attempt]:
    """Attempts by failure class (None: lost with its driver) and micro-batch."""
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
        # Running out of memory is not held against what fails otherwise, and the size stays.
        ([("out_of_memory", 0)] * 3 + [("bug", 4)], Decision(True, 4)),
        ([("out_of_memory", 0), ("killed", 16)], Decision(True, 16)),
        ([("preempted", 0)] * MAX_UNCOUNTED, Decision(True, 0)),
        ([("preempted", 0)] * (MAX_UNCOUNTED + 1), Decision(False, 0)),
        ([("bug", 0)] * 2 + [("killed", 0)], Decision(True, 0)),
    ],
)
def test_what_follows_a_failure_is_a_table(
    ends: list[tuple[str | None, int]], expected: Decision
) -> None:
    assert decide(attempts(*ends), set(), 32, 3) == expected


def test_what_says_nothing_of_a_trial_counts_only_in_a_row_without_an_epoch_between() -> None:
    ends = attempts(*[("killed", 0)] * (2 * MAX_UNCOUNTED))
    assert decide(ends, {MAX_UNCOUNTED}, 32, 3) == Decision(True, 0)
    assert decide(ends, {MAX_UNCOUNTED - 1}, 32, 3) == Decision(False, 0)


def test_uncounted_classes_are_those_that_say_nothing_of_the_trial() -> None:
    assert set(UNCOUNTED) == {"node", "preempted", "killed", "disk"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SIGKILLED, "killed"),
        ("The worker process died.", "killed"),
        ("", "killed"),
        ("2 worker(s) were killed due to the node running low on memory.", "out_of_memory"),
        ("ray.exceptions.OutOfMemoryError: Task was killed", "out_of_memory"),
        ("CUDA error: out of memory", "out_of_memory"),
        ("The actor died because its node has died. Node Id: 12ab", "node"),
        (
            "Task failed because the node it was running on is dead or unavailable. Node IP: "
            "192.0.2.7. This can happen if the node was preempted, had a hardware failure, or its "
            "raylet crashed unexpectedly.",
            "node",
        ),
        ("Actor died by preemption.", "preempted"),
        (
            "The actor died because its node has died. Node Id: 12ab\n\tthe actor's node was "
            "preempted: spot instance reclaimed",
            "preempted",
        ),
    ],
)
def test_the_class_of_a_death_is_read_from_what_ray_knows_not_from_its_guesses(
    text: str, expected: FailureClass
) -> None:
    assert classify_death(text) == expected


TRACE = """Traceback (most recent call last):
  File "/tmp/a/loop.py", line 12, in fit
    loss.backward()
RuntimeError: shape [{}, 3] at 0x{} is invalid
"""


def test_tracebacks_are_the_same_up_to_numbers_and_addresses() -> None:
    first = fingerprint(TRACE.format(7, "7f00ab"))
    assert fingerprint(TRACE.format(12, "9e11cd")) == first
    assert fingerprint(TRACE.format(7, "7f00ab").replace("invalid", "wrong")) != first
    assert fingerprint(TRACE.format(7, "7f00ab").replace("in fit", "in step")) != first
    assert fingerprint("") == ""


def test_secrets_are_taken_out_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    monkeypatch.setenv("HARMLESS", "visible")
    text = "visible 1: correct horse, hf_abcdef, postgresql://ann:pw@db/x and http://host/a@b"
    assert redacted(text) == (
        "visible 1: [redacted], [redacted], postgresql://[redacted]@db/x and http://host/a@b"
    )
