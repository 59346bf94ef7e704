"""Every private call into Ray, with the version it was read at: 2.60."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, cast

from orchestrator.errors import OrchestratorError


def group_trainer() -> Any:
    """Return Ray Train's data-parallel trainer without the process that frees the group's place.

    The driver frees it (`launch`), at once and also where that process would ask another Ray.
    `TorchTrainer` is this trainer with a rendezvous that imports torch in every process; `_join`
    does it in the workers.
    """
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class GroupTrainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            usual = super()._create_default_callbacks()
            return [one for one in usual if not isinstance(one, PlacementGroupCleanerCallback)]

    return GroupTrainer


def set_trial_environment(is_local: bool) -> None:
    """Choose what of this process's environment Tune gives the trials' processes.

    To a local Ray nothing, as its processes have it: an environment of their own would keep them
    from being those that Ray has started in advance, one per CPU (1 s of each process's start).
    """
    from ray.tune.execution import class_cache

    if is_local:
        class_cache.DEFAULT_ENV_VARS.clear()
        class_cache.ENV_VARS_TO_PROPAGATE.clear()
    else:
        # Letting go of a trial may take longer than the 2 s that a joined cluster's give it.
        class_cache.ENV_VARS_TO_PROPAGATE.add("TUNE_FUNCTION_THREAD_TIMEOUT_S")


def death_message(trial: Any) -> str:
    """Return what Ray says of the death of a trial's process.

    `trial.get_error()` looks where Tune has not copied it yet.
    """
    try:
        return Path(trial.error_file).read_text()
    except (OSError, TypeError):
        return "The worker process died."


def accept_every_actor_death() -> None:
    """Make an actor's death of any cause the end of its trial, not of all of Tune.

    Ray says of an actor that it killed for want of memory `OutOfMemoryError`, of others
    `NodeDiedError` or `WorkerCrashedError`; Tune 2.60 knows `RayActorError` only and raises at the
    rest (`ray/air/execution/_internal/actor_manager.py`).
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import RayActorError, RayError, RayTaskError

    original = RayActorManager._actor_task_failed
    if getattr(original, "takes_every_death", False):
        return

    def take(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(
            exception, RayActorError | RayTaskError
        ):
            text = f"{type(exception).__name__}: {exception}"
            exception = RayActorError(error_msg=text)
        original(self, tracked_actor_task, exception)

    take.takes_every_death = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = take  # type: ignore[method-assign]


def stay_on_loopback() -> None:
    """Make a local Ray listen on 127.0.0.1 only, in this process and those it starts.

    On Linux its servers otherwise listen on every interface of the host, whatever address
    `ray.init` is given. On macOS, where the firewall would ask, it has this switch.
    """
    from ray._private import ray_constants

    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that are about to go: preempted, or idle and to be ended."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def nodes_of_place(place: str) -> set[str]:
    """Return the ids of the nodes that a placement group, named by its id in hex, lies on."""
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table

    if not place:
        return set()
    table = placement_group_table(PlacementGroup(PlacementGroupID(bytes.fromhex(place))))
    return set(table.get("bundles_to_node_id", {}).values())


def drain(address: str, node_ip: str, left_s: float, why: str) -> str:
    """Tell Ray that a node is about to go.

    Args:
        address: of the cluster, host:port.
        node_ip: of the node.
        left_s: seconds until it goes, 0 or more.
        why: for Ray's log.

    Returns:
        The node's id.

    Raises:
        OrchestratorError: the cluster has no such node, or refuses.
    """
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2, gcs_pb2

    # Both are compiled, so their types are not known.
    raylet, gcs_types, reasons = cast(Any, _raylet), cast(Any, gcs_pb2), cast(Any, autoscaler_pb2)
    gcs = raylet.GcsClient(address=address)
    ids = [
        str(node_id.hex())
        for node_id, info in gcs.get_all_node_info(timeout=10).items()
        if info.node_manager_address == node_ip and info.state == gcs_types.GcsNodeInfo.ALIVE
    ]
    if not ids:
        raise OrchestratorError(f"The cluster at {address} has no living node at {node_ip}.")
    reason = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + max(left_s, 0)) * 1000)
    # What the hidden `ray drain-node` does.
    is_accepted, refusal = gcs.drain_node(ids[0], reason, why, deadline_ms)
    if not is_accepted:
        raise OrchestratorError(f"Ray refused to drain the node: {refusal}")
    return ids[0]


def this_node() -> tuple[str | None, str]:
    """Return the address of the cluster that this host has joined, if any, and the host's own."""
    from ray._private.services import find_bootstrap_address
    from ray.util import get_node_ip_address

    return find_bootstrap_address(None), get_node_ip_address()


def end_autoscaler() -> None:
    """End the autoscaler of a Ray that this process started; it has nothing to scale.

    Asked to go by `ray.shutdown`, it first tells Ray's server, which has gone before it, for a
    second.
    """
    from ray._private import worker

    if worker._global_node is not None:
        worker._global_node.kill_monitor(check_alive=False)
