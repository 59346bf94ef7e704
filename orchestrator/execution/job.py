"""What the driver sends to a worker, and what the worker reports."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.execution.failure_class import classify

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One attempt as it travels to a worker. Paths are absolute or relative to `sweep_dir`."""

    signature: str
    attempt: int
    config: dict[str, Any]
    dataset_dir: str
    sweep_dir: str
    log: str
    resume_from: str | None
    keep_all: bool  # every epoch's checkpoint, not just the last and the best
    is_evaluated: bool  # by the test split, after the last epoch
    cpus: float  # of one worker
    gpus: float  # of one worker
    says_where: bool = False  # at its first step: a node is about to go, and it may be this one's
    data_address: str | None = None  # where to fetch the dataset from, should this host lack it
    storage: str | None = None  # address of the sweep's folder, where `sweep_dir` is not its place

    def to_json(self) -> str:
        """Return the job as one string; `from_json` is the inverse."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Rebuild a job."""
        return cls(**json.loads(text))


def end_report(job: Job, error: BaseException) -> dict[str, Any]:
    """Return the report of a failed attempt: its class and traceback."""
    return {
        **address(job),
        "kind": "end",
        "outcome": "failed",
        "failure_class": classify(error),
        "failure_text": "".join(traceback.format_exception(error)),
    }


def address(job: Job) -> dict[str, Any]:
    """Return what says whose report it is, and where it comes from: the id of Ray's node."""
    return {"signature": job.signature, "attempt": job.attempt, "node": _node()}


@functools.cache
def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""
