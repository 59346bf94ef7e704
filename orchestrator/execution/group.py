"""One attempt on several devices: a Ray Train worker group of its own, reporting through Tune.

`worker.py` says what a report is. Nothing of Ray Train's state is kept. Between two trials lie the
starts of all these processes, so there are as few as can be and torch is imported by the workers
alone: on 2 cores that took the wait from 11 s to 8 s.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.execution.failure_class import classify
from orchestrator.execution.job import Job, Report, address, end_report
from orchestrator.execution.ray_internals import group_trainer
from orchestrator.execution.worker import train

if TYPE_CHECKING:
    import torch


def group_trial(workers: int, storage: str) -> Callable[[dict[str, Any]], None]:
    """Return the function of a Tune trial whose attempt runs on a worker group of its own.

    Args:
        workers: how many.
        storage: a folder for Ray Train's own state, which nothing here reads.
    """
    return functools.partial(_run_group_trial, workers=workers, storage=storage)


def _run_group_trial(config: dict[str, Any], *, workers: int, storage: str) -> None:
    from ray import tune

    run_attempt_on_group(
        Job.from_json(config["job"]), tune.report, workers=workers, storage=storage
    )


def group_resources(config: dict[str, Any]) -> Any:
    """Return the placement of the actor that waits for a worker group.

    The group has a placement group of its own. A share of a CPU here would leave one CPU too few
    for a group that wants them all.
    """
    from ray import tune

    return tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])


def run_attempt_on_group(job: Job, report: Report, *, workers: int, storage: str) -> None:
    """Run one attempt on several devices.

    Args:
        job: the attempt.
        report: for what the group itself cannot say, its failure.
        workers: how many, with `job.cpus` and `job.gpus` each.
        storage: a folder for Ray Train's own state, which nothing here reads.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2._internal import constants
    from ray.tune.integration.ray_train import TuneReportCallback

    # Whatever of Ray asks for "the" Ray of this host would otherwise take any of several.
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    trainer = group_trainer()(
        functools.partial(_train_as_rank, job.to_json()),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.gpus > 0,
            resources_per_worker={"CPU": job.cpus, **({"GPU": job.gpus} if job.gpus else {})},
        ),
        run_config=RunConfig(
            name=f"{job.signature}-{job.attempt}",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=0),
            # A Train callback, which Ray annotates as Tune's.
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        causes = _causes(error)
        died = [cause for cause in causes if isinstance(cause, ray.exceptions.RayActorError)]
        if died:  # what the other workers say follows from that
            report({**end_report(job, error), "failure_class": None, "death": str(died[0])})
            return
        # Where one of them fails, the others only lose the connection to it.
        classes = [kind for kind in map(classify, causes) if kind != "bug"]
        report({**end_report(job, error), "failure_class": next(iter(classes), "bug")})


def _train_as_rank(job_text: str) -> None:
    """Train as one rank of a worker group; every rank reports, the first one's counts."""
    import ray
    import ray.train

    def report(values: dict[str, Any]) -> None:
        ray.train.report(values)

    job = Job.from_json(job_text)
    # So that the driver can free the group's place itself, at once and in any case.
    place = ray.util.get_current_placement_group()
    report({**address(job), "kind": "start", "placement_group": place.id.hex() if place else ""})
    rank = ray.train.get_context().get_world_rank()
    if rank:
        job = replace(job, log=f"{job.log}.rank{rank}")
    train(job, report, is_first=not rank, device=_join())


def _join() -> torch.device:
    """Connect this worker with the others and return its device.

    The rendezvous listens at this node's address; torch's own would at every interface's.
    """
    import ray
    import ray.train
    import torch
    from ray.train.collective import broadcast_from_rank_zero
    from torch import distributed

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    listener = socket.create_server((ray.util.get_node_ip_address(), 0)) if rank == 0 else None
    host, port = broadcast_from_rank_zero(listener.getsockname()[:2] if listener else None)
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        workers,
        is_master=rank == 0,
        master_listen_fd=listener.detach() if listener else None,
    )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        # Ray shows each worker its own device only.
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=workers)
    return device


def _causes(error: BaseException) -> list[BaseException]:
    """Return what lies at the bottom of the error of a worker group, one cause for each worker."""
    return [_innermost(e) for e in list(getattr(error, "worker_failures", {}).values()) or [error]]


def _innermost(error: BaseException) -> BaseException:
    """Return what Ray wrapped, however often."""
    for name in ("controller_failure", "health_check_failure", "_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _innermost(inner)
    return error
