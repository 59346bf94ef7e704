"""All uses of Ray's undocumented interfaces.

All of it was read in Ray 2.60.0. Each definition names the file of Ray that it depends on;
`tests/orchestrator/execution/test_ray_internals.py` fails when a new version of Ray changes it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from orchestrator import processes
from orchestrator.errors import OrchestratorError

READ_AT = "2.60.0"  # the version of Ray that this file was checked against

# A resource that only the head node has. `ray/_common/constants.py`.
HEAD_NODE_RESOURCE = "node:__internal_head__"
# Where `ray up` leaves its configuration on the head node, in the home directory.
# `ray/tune/execution/cluster_info.py`.
AUTOSCALER_CONFIG = "ray_bootstrap_config.yaml"
# Longest path of Ray's folder in bytes: 107 less "/session_2026-01-31_23-59-59_999999_4194304",
# "/sockets/" and a socket's name, dash_PlatformEventsHead for one. `ray/_private/node.py`.
LONGEST_FOLDER = 32


# Start and end of Ray.


def this_node() -> tuple[str | None, str]:
    """Return the address of the cluster that this host joined, if any, and the host's own.

    It joined by `ray start` or `ray up`; the cluster may have ended since, or be another user's.
    `ray/_private/services.py`.
    """
    from ray._private.services import find_bootstrap_address
    from ray.util import get_node_ip_address

    found = None
    with contextlib.suppress(PermissionError):  # another user's, in a file that is theirs alone
        found = find_bootstrap_address(None)
    return found, get_node_ip_address()


def own_clusters(proc: Path = Path("/proc")) -> list[str]:
    """Return the addresses of the clusters that this user started or joined on this host.

    `ray start` and `ray up` write the address to a file in the folder of their Ray, which depends
    on `TMPDIR`. The private Ray of another sweep has no such file.
    `ray/_private/services.py` and `ray/_common/utils.py`.
    """
    from ray._common.utils import get_ray_address_file

    found = set()
    for path in proc.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended, or it has no such file
            words = os.fsdecode(path.read_bytes()).split("\0")
            if Path(words[0]).name != "raylet" or path.stat().st_uid != os.getuid():
                continue
            flags = dict(word.partition("=")[::2] for word in words)
            written = Path(get_ray_address_file(flags.get("--temp_dir")))
            if written.read_text().strip() == flags.get("--gcs-address"):
                found.add(flags["--gcs-address"])
    return sorted(found)


def needs_token(address: str) -> bool:
    """Return whether a cluster's control server refuses requests without a token.

    With TLS this cannot be asked without the certificates, and counts as true.
    `ray/core/generated/gcs_service_pb2_grpc.py` and `ray/_private/ray_constants.py`.

    Raises:
        ConnectionError: what listens there is not a cluster's control server.
    """
    import grpc
    from ray._private import ray_constants
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    messages, services = cast(Any, gcs_service_pb2), cast(Any, gcs_service_pb2_grpc)
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True
    options = ray_constants.GLOBAL_GRPC_OPTIONS
    with grpc.insecure_channel(address, options=options) as channel:
        client = services.NodeInfoGcsServiceStub(channel)
        try:
            client.CheckAlive(messages.CheckAliveRequest(), timeout=10)
        except grpc.RpcError as error:
            answer = cast(Any, error)
            if answer.code() == grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise ConnectionError(f"{answer.code().name}, {answer.details()}") from error
    return False


def set_authentication_mode(mode: str) -> None:
    """Make this process, and the Ray that it starts, use "token" or "disabled".

    Ray has read its own settings when it was imported, so it must read them again.
    `ray/_private/authentication/authentication_token_setup.py`.
    """
    from ray import _raylet

    os.environ["RAY_AUTH_MODE"] = mode
    cast(Any, _raylet).Config.initialize("")


def use_short_folder() -> None:
    """Give a local Ray a folder of its own in /tmp if its usual one cannot hold its sockets.

    The path of a socket has at most 107 bytes, and Ray adds up to 75 to its folder's path.
    The folder is deleted when this process ends. `ray/_private/node.py` and `ray/_common/utils.py`.

    Raises:
        OSError: no folder can be made in /tmp.
    """
    from ray._common.utils import get_default_ray_temp_dir

    usual = Path(get_default_ray_temp_dir())
    with contextlib.suppress(OSError):
        if usual.is_absolute() and len(os.fsencode(usual)) <= LONGEST_FOLDER:
            usual.mkdir(parents=True, exist_ok=True)
            if os.access(usual, os.W_OK | os.X_OK):
                return
    own = tempfile.mkdtemp(prefix="sweep-ray-", dir="/tmp")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    os.environ["RAY_TMPDIR"] = own


def ended_process() -> str | None:
    """Return which of the servers of the Ray that this process started has ended, if one has.

    `ray/_private/worker.py` and `ray/_private/node.py`.
    """
    from ray._private import worker

    started: dict[str, Any] = worker._global_node.all_processes if worker._global_node else {}
    for name in ("gcs_server", "raylet"):
        if any(info.process.poll() is not None for info in started.get(name, [])):
            return name
    return None


def forget() -> None:
    """Leave out what Ray and Tune do at the end of this process: they would wait for Ray's servers.

    Those end with this process. Their own processes would look for them for a minute, so they are
    killed. `ray/_private/worker.py`, `ray/_private/node.py` and `ray/tune/registry.py`.
    """
    from ray._private import worker

    atexit.unregister(worker.shutdown)
    if registry := sys.modules.get("ray.tune.registry"):
        atexit.unregister(registry._unregister_all)
    atexit.register(lambda: processes.kill(processes.descendants()[::-1]))


def stay_on_loopback() -> None:
    """Make a local Ray listen on 127.0.0.1 only, in this process and those it starts.

    On Linux, Ray's servers otherwise listen on every interface of the host, whatever address
    `ray.init` gets. Ray has this switch for macOS, where the firewall would ask the user.
    `ray/_private/ray_constants.py`, read by `get_node_ip_address` in `ray/_private/services.py`.
    """
    from ray._private import ray_constants

    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def end_autoscaler() -> None:
    """End the autoscaler of a Ray that this process started; it has nothing to scale.

    At shutdown it otherwise spends a second notifying a server that has already stopped.
    `ray/_private/worker.py` and `ray/_private/node.py`.
    """
    from ray._private import worker

    if worker._global_node is not None:
        worker._global_node.kill_monitor(check_alive=False)


# Nodes.


def draining_nodes() -> set[str]:
    """Return the ids of the nodes that will stop soon: preempted, or idle and scaled down.

    `ray/_private/state.py`.
    """
    from ray._private.state import state

    return set(state.get_draining_nodes())


def drain(address: str, node_ip: str, left_s: float, reason: str) -> str:
    """Tell Ray that a node will stop in `left_s` seconds, 0 or more, and return the node's id.

    The hidden command `ray drain-node` does the same. `ray/_raylet.so` (`GcsClient`) and
    `ray/core/generated/`. `address` is the cluster's host:port; `reason` is for Ray's log.

    Raises:
        OrchestratorError: the cluster has no such node, or Ray rejects the request.
    """
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2, gcs_pb2

    # These modules are compiled, so their types are unknown.
    raylet, gcs_types, reasons = cast(Any, _raylet), cast(Any, gcs_pb2), cast(Any, autoscaler_pb2)
    gcs = raylet.GcsClient(address=address)
    ids = [
        str(node_id.hex())
        for node_id, info in gcs.get_all_node_info(timeout=10).items()
        if info.node_manager_address == node_ip and info.state == gcs_types.GcsNodeInfo.ALIVE
    ]
    if not ids:
        raise OrchestratorError(f"The cluster at {address} has no living node at {node_ip}.")
    preemption = reasons.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + max(left_s, 0)) * 1000)
    is_accepted, rejection = gcs.drain_node(ids[0], preemption, reason, deadline_ms)
    if not is_accepted:
        raise OrchestratorError(f"Ray refused to drain the node: {rejection}")
    return ids[0]


# Processes of Tune's trials.


def set_trial_environment(is_local: bool) -> None:
    """Choose which variables of this process's environment Tune copies to the trials' processes.

    With a local Ray none: they inherit the environment anyway, and a process with an environment
    of its own cannot be one of those that Ray starts in advance, one per CPU (1 s per process).
    `ray/tune/execution/class_cache.py`.
    """
    from ray.tune.execution import class_cache

    if is_local:
        class_cache.DEFAULT_ENV_VARS.clear()
        class_cache.ENV_VARS_TO_PROPAGATE.clear()
    else:
        # A stopped trial may need longer to free its model than the 2 s that Tune allows.
        class_cache.ENV_VARS_TO_PROPAGATE.add("TUNE_FUNCTION_THREAD_TIMEOUT_S")


def accept_every_actor_death() -> None:
    """Make every death of an actor end its trial only, instead of the whole of Tune.

    Ray raises `OutOfMemoryError` for an actor that it killed to free memory, and `NodeDiedError`
    or `WorkerCrashedError` for others. Tune handles `RayActorError` only and re-raises the rest.
    `ray/air/execution/_internal/actor_manager.py`.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import RayActorError, RayError, RayTaskError

    handled = RayActorError | RayTaskError
    original = RayActorManager._actor_task_failed
    if getattr(original, "accepts_every_death", False):
        return

    def failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, handled):
            exception = RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
        original(self, tracked_actor_task, exception)

    failed.accepts_every_death = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = failed  # type: ignore[method-assign]


def death_message(trial: Any) -> str:
    """Return Ray's message about the death of a trial's process.

    `trial.get_error()` reads a place to which Tune has not copied the message yet.
    `ray/tune/experiment/trial.py`.
    """
    try:
        return Path(trial.error_file).read_text()
    except (OSError, TypeError):
        return "The worker process died."


def kill_process(trial: Any) -> None:
    """Kill the actor that runs a trial, if it has one. `ray/tune/experiment/trial.py`."""
    import ray

    if actor := trial.temporary_state.ray_actor:
        ray.kill(actor)


# Worker groups of Ray Train.


def group_trainer() -> Any:
    """Return Ray Train's data-parallel trainer, without the process that frees placement groups.

    The driver frees a group's placement group itself (`attempts`): at once, and also where that
    process would ask another Ray. `TorchTrainer` is this trainer with a rendezvous that imports
    torch in every process; here only the workers do (`group`).
    `ray/train/v2/api/data_parallel_trainer.py`.
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


def give_group_ray_address() -> None:
    """Make the processes of a worker group connect to the Ray of this process.

    Without an address they would join any of several on this host.
    `ray/train/v2/_internal/constants.py`.
    """
    import ray
    from ray.train.v2._internal import constants

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


def root_causes(error: BaseException) -> list[BaseException]:
    """Return the exceptions that a worker group's error wraps, one per failed worker.

    `ray/train/v2/api/exceptions.py` and `ray/train/v2/_internal/exceptions.py`.
    """
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    return [_unwrapped(failure) for failure in failures.values() or [error]]


def _unwrapped(error: BaseException) -> BaseException:
    """Return the innermost exception."""
    for name in ("controller_failure", "health_check_failure", "_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _unwrapped(inner)
    return error


# Placement groups. `PlacementGroup` is documented, but building one from its id is not.


def nodes_of_group(group_id: str) -> set[str]:
    """Return the ids of the nodes that hold a placement group, given by its id in hex.

    `ray/_private/state.py`.
    """
    from ray.util.placement_group import placement_group_table

    if not group_id:
        return set()
    return set(placement_group_table(_group(group_id)).get("bundles_to_node_id", {}).values())


def remove_group(group_id: str) -> None:
    """Remove a placement group, given by its id in hex, if it still exists.

    `ray/util/placement_group.py`.
    """
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(_group(group_id))


def _group(group_id: str) -> Any:
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID(bytes.fromhex(group_id)))
