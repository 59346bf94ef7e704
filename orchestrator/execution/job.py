"""The messages between driver and worker: a job starts an attempt, reports come back.

A report is a flat dictionary, because Tune flattens nested ones. Each has the trial's `signature`
and `attempt`, so that the driver can ignore an attempt that was replaced; `node`, the id of the
Ray node that sent it; and its `kind` with further fields:

    alive       Training continues. Sent now and then between epochs.
    start       A worker group has its resources. `placement_group`: the group's id in hex.
    epoch       An epoch's checkpoint is durable. `epoch`; `checkpoint`: its path in the sweep's
                folder, or None; the fields of EpochMetrics. `outcome`: "complete", if no report
                follows.
    evaluation  A trial was evaluated on the test split. `result`: JSON.
    end         `outcome`: "complete", "diverged" or "failed". If failed, `failure_text` and
                `failure_class`.
"""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orchestrator.execution.failure_class import classify

Report = dict[str, Any]
Send = Callable[[Report], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a worker needs to run one attempt. Paths are absolute or relative to `sweep_dir`."""

    signature: str
    attempt: int
    config: dict[str, Any]
    dataset_dir: str
    sweep_dir: str
    log: str
    resume_from: str | None
    keep_all: bool  # every epoch's checkpoint, not just the last and the best
    is_evaluated: bool  # on the test split, after the last epoch
    cpus: float  # per worker
    gpus: float  # per worker
    reports_first_step: bool = False  # so that the driver learns at once which node this is
    data_address: str | None = None  # where a host without the dataset fetches it
    storage: str | None = None  # address of the sweep's folder, if that is not `sweep_dir`

    def to_json(self) -> str:
        """Return the job as one string; `from_json` is the inverse."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Rebuild a job."""
        return cls(**json.loads(text))


def make_report(
    job: Job, kind: Literal["alive", "start", "epoch", "evaluation", "end"], **values: Any
) -> Report:
    """Return a report of a job's attempt."""
    address = {"signature": job.signature, "attempt": job.attempt, "node": _node()}
    return {**address, "kind": kind, **values}


def failure_report(job: Job, error: BaseException) -> Report:
    """Return the report of a failed attempt, with the failure's class and traceback."""
    text = "".join(traceback.format_exception(error))
    failure_class = classify(error)
    return make_report(job, "end", outcome="failed", failure_class=failure_class, failure_text=text)


@functools.cache
def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""
