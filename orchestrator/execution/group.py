"""Runs one attempt on several devices as a Ray Train worker group that reports through Tune.

Nothing of Ray Train's own state is kept. All processes of a group start anew for each trial, so
there are as few as possible, and only the workers import torch: on 2 cores this shortened the time
between two trials from 11 s to 8 s.
"""

from __future__ import annotations

import functools
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.execution import ray_internals
from orchestrator.execution.failure_class import classify, classify_death
from orchestrator.execution.job import Job, failure_report, make_report
from orchestrator.execution.worker import train

if TYPE_CHECKING:
    import torch


def group_resources(config: dict[str, Any]) -> Any:
    """Return the resources of the actor that waits for a worker group.

    The group has its own placement group. A share of a CPU here would leave one CPU too few for a
    group that needs all of them.
    """
    from ray import tune

    return tune.PlacementGroupFactory([{ray_internals.HEAD_NODE_RESOURCE: 0.001}])


def run_group_trial(config: dict[str, Any], *, workers: int, storage: str) -> None:
    """Run one attempt on `workers` devices; the function of a Tune trial.

    `storage` is a folder for Ray Train's own state, which nothing here reads.
    """
    import ray
    from ray import tune
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.tune.integration.ray_train import TuneReportCallback

    job = Job.from_json(config["job"])
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
    except Exception as error:  # the group itself cannot report it
        causes = ray_internals.root_causes(error)
        died = [cause for cause in causes if isinstance(cause, ray.exceptions.RayActorError)]
        # If one worker dies or fails, the others fail too: they lose their connection to it.
        classes = [classify_death(str(cause)) for cause in died]
        classes += [found for found in map(classify, causes) if found != "bug"]
        tune.report({**failure_report(job, error), "failure_class": (*classes, "bug")[0]})


def _train_as_rank(job_text: str) -> None:
    """Train as one rank of a worker group. Every rank reports; Tune gets the first one's."""
    import ray
    import ray.train

    job = Job.from_json(job_text)
    # So that the driver can remove the placement group at once, however the group ends.
    place = ray.util.get_current_placement_group()
    group_id = place.id.hex() if place else ""
    ray.train.report(make_report(job, "start", placement_group=group_id))
    rank = ray.train.get_context().get_world_rank()
    if rank:
        job = replace(job, log=f"{job.log}.rank{rank}")
    train(job, ray.train.report, is_first=not rank, device=_join())


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
    descriptor = listener.detach() if listener else None
    store = distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, workers, is_master=rank == 0, master_listen_fd=descriptor
    )
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, backend = torch.device("cuda", 0), "nccl"  # each worker sees only its own device
        torch.cuda.set_device(device)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=workers)
    return device
