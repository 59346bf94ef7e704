"""Runs one attempt on several devices: as a Ray Train worker group that reports through Tune.

Nothing of Ray Train's own state is kept. All processes of a group start anew for each trial, so
there are as few as possible, and only the workers import torch: on 2 cores this shortened the time
between two trials from 11 s to 8 s.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.execution import ray_internals
from orchestrator.execution.failure_class import classify
from orchestrator.execution.job import Job, Send, failure_report, make_report
from orchestrator.execution.worker import train

if TYPE_CHECKING:
    import torch


def group_trial(workers: int, storage: str) -> Callable[[dict[str, Any]], None]:
    """Return the function of a Tune trial that runs its attempt on a worker group.

    Args:
        workers: number of workers.
        storage: folder for Ray Train's own state, which nothing here reads.
    """
    return functools.partial(_run_group_trial, workers=workers, storage=storage)


def _run_group_trial(config: dict[str, Any], *, workers: int, storage: str) -> None:
    from ray import tune

    run_attempt_on_group(
        Job.from_json(config["job"]), tune.report, workers=workers, storage=storage
    )


def group_resources(config: dict[str, Any]) -> Any:
    """Return the resources of the actor that waits for a worker group.

    The group has its own placement group. A share of a CPU here would leave one CPU too few for a
    group that needs all of them.
    """
    from ray import tune

    return tune.PlacementGroupFactory([{ray_internals.HEAD_NODE_RESOURCE: 0.001}])


def run_attempt_on_group(job: Job, send: Send, *, workers: int, storage: str) -> None:
    """Run one attempt on several devices.

    Args:
        job: the attempt.
        send: sends the report of a failure, which the group itself cannot.
        workers: number of workers, with `job.cpus` and `job.gpus` each.
        storage: folder for Ray Train's own state, which nothing here reads.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.tune.integration.ray_train import TuneReportCallback

    ray_internals.give_group_ray_address()
    trainer = ray_internals.group_trainer()(
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
            # This is a callback of Train, but Ray annotates it as one of Tune.
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        causes = ray_internals.root_causes(error)
        died = [cause for cause in causes if isinstance(cause, ray.exceptions.RayActorError)]
        if died:  # the errors of the other workers follow from this one
            send({**failure_report(job, error), "failure_class": None, "death": str(died[0])})
            return
        # If one worker fails, the others fail too because they lose their connection to it.
        classes = [kind for kind in map(classify, causes) if kind != "bug"]
        send({**failure_report(job, error), "failure_class": next(iter(classes), "bug")})


def _train_as_rank(job_text: str) -> None:
    """Train as one rank of a worker group. Every rank reports; Tune gets the first one's."""
    import ray
    import ray.train

    def send(report: dict[str, Any]) -> None:
        ray.train.report(report)

    job = Job.from_json(job_text)
    # So that the driver can remove the placement group at once, however the group ends.
    place = ray.util.get_current_placement_group()
    send(make_report(job, "start", placement_group=place.id.hex() if place else ""))
    rank = ray.train.get_context().get_world_rank()
    if rank:
        job = replace(job, log=f"{job.log}.rank{rank}")
    train(job, send, is_first=not rank, device=_join())


def _join() -> torch.device:
    """Connect this worker to the others and return its device.

    The rendezvous listens on this node's address only; torch's own would on every interface.
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
        # Each worker sees only its own device.
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=workers)
    return device
