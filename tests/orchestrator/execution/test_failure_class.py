"""The failure class of a worker that died, from Ray's message."""

from __future__ import annotations

import pytest

from orchestrator.execution.failure_class import classify_death
from orchestrator.search.retry_policy import FailureClass

# The exact message of Ray 2.60 about an actor that was killed with SIGKILL.
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
def test_classify_death_ignores_the_possible_causes_that_ray_lists(
    text: str, expected: FailureClass
) -> None:
    assert classify_death(text) == expected
