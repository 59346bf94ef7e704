"""Starts or joins a Ray cluster, with a token and on loopback, and says how many trials fit."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.clock import Clock
from orchestrator.errors import UsageError
from orchestrator.execution import ray_internals
from orchestrator.plan.machines import Machine, Shape, fitting, planned_machines, shapes, total
from orchestrator.plan.plan import Plan
from trainables import limits
from trainables.files import temporary

REFRESH_EVERY_S = 1.0  # shortest time between two questions for the cluster's nodes

# Defaults that must be set before ray is imported.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # an open Ray port is remote code execution
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the record
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # nothing reads Tune's own state
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # a stopped trial may be slow to free its model
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also how often a worker group's reports arrive
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves a process; every epoch is saved anyway
    "RAY_USAGE_STATS_ENABLED": "0",
    # After an interrupt, a late call from Tune's thread must not start a second Ray: it would end
    # this process with status 1 a minute after losing its server.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "TUNE_DISABLE_AUTO_INIT": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A cluster that this process joined, or a local Ray that it started (`is_local`).

    `machines` are the current ones, or all that the autoscaler may add up to its limits.
    """

    address: str
    is_local: bool
    nodes: int
    cpus: float
    gpus: float
    machines: tuple[Machine, ...]

    @property
    def may_have_many_nodes(self) -> bool:
        """Whether trials run on several machines, or may once the autoscaler adds some."""
        return max(self.nodes, len(self.machines)) > 1

    def describe(self) -> str:
        """Return one line for the user."""
        where = "a local Ray" if self.is_local else f"the Ray cluster at {self.address}"
        hosts = "" if self.is_local else f" on {self.nodes} nodes"
        cpus, gpus = total(self.machines)
        more = ""
        if (cpus, gpus) != (self.cpus, self.gpus):
            more = f"; its autoscaler adds up to {cpus:g} and {gpus:g} in all, which takes minutes"
        return f"Using {where}: {self.cpus:g} CPUs, {self.gpus:g} GPUs{hosts}{more}."


def connect(address: str | None, *, needs_state_api: bool) -> Cluster:
    """Join the given cluster, `RAY_ADDRESS`'s or this host's; else start a local Ray.

    `address` is host:port, "auto", "local", or None to choose as above. `needs_state_api` starts
    Ray's dashboard: without it the placement groups of worker groups are never freed.

    Raises:
        UsageError: there is no cluster at the address, or it rejects the token.
    """
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    ensure_token()
    import ray

    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    found = _find(wanted)
    arguments: dict[str, Any] = {"address": found}
    if found is None:
        os.environ.pop("RAY_ADDRESS", None)
        ray_internals.stay_on_loopback()
        arguments = {
            "address": "local",
            "num_cpus": limits.num_cpus(),
            "dashboard_host": "127.0.0.1",
        }
        arguments["include_dashboard"] = needs_state_api
    ray_internals.keep_sigterm_handler()
    try:
        ray.init(**arguments, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        # Ray's message does not name the token as the cause.
        token = (
            "The address answers, so its token is probably different: copy ~/.ray/auth_token from "
            "the machine that started it, and do not set RAY_AUTH_MODE. Otherwise: "
        )
        raise _cannot_join(wanted, str(error), token if found else "") from error
    now = ray.cluster_resources()
    return Cluster(
        address=ray.get_runtime_context().gcs_address,
        is_local=found is None,
        nodes=sum(node["Alive"] for node in ray.nodes()),
        cpus=now.get("CPU", 0.0),
        gpus=now.get("GPU", 0.0),
        machines=machines(),
    )


def _find(wanted: str) -> str | None:
    """Return the address of the cluster to join; None to start a local Ray.

    Raises:
        UsageError: nothing answers at the address that the user gave.
    """
    if wanted == "local":
        return None
    if wanted == "auto":
        # The cluster of `ray start` or `ray up`. Ray's own "auto" would also join the private Ray
        # of another sweep on this host, wait for its CPUs and end with it.
        found, _ = ray_internals.this_node()
        return found if found and _answers(found) else None
    if not _answers(wanted):
        raise _cannot_join(wanted, "nothing answers there.")
    return wanted


def _cannot_join(wanted: str, why: str, way_out: str = "") -> UsageError:
    return UsageError(
        f"No Ray cluster can be joined at {wanted!r}: {why} {way_out}Start one with "
        "`ray start --head` or `ray up cluster.yaml`, or omit `--address` to use this machine."
    )


def machines() -> tuple[Machine, ...]:
    """Return the cluster's machines, or all that its autoscaler may add if those are more.

    Ray publishes its autoscaler's limits only in the file that `ray up` leaves on the head node,
    so only a driver there knows them.
    """
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    now = tuple((has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in alive)
    planned: tuple[Machine, ...] = ()
    file = Path.home() / ray_internals.AUTOSCALER_CONFIG
    head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    if head == ray.util.get_node_ip_address() and file.is_file():
        planned = planned_machines(file.read_text())
    return max(now, planned, key=lambda each: total(each)[::-1])  # GPUs first


class Capacity:
    """The cluster's capacity for a plan's trials, which changes as nodes join and leave."""

    def __init__(
        self, plan: Plan, *, max_concurrent: int | None, gpus_per_trial: float | None, clock: Clock
    ) -> None:
        self._plan, self._clock = plan, clock
        self._max_concurrent, self._gpus_per_trial = max_concurrent, gpus_per_trial
        self._has_gpus = False  # stays true: if the last GPU leaves, trials wait for the next
        self._refreshed_s: float | None = None
        self.shapes: dict[str, Shape] = {}  # by variant
        self.limit = 0  # trials at a time
        self.draining: set[str] = set()  # ids of the nodes that will stop soon

    def refresh(self) -> None:
        """Ask Ray for the cluster's nodes, at most once a second."""
        now_s = self._clock.monotonic_s()
        if self._refreshed_s is not None and now_s - self._refreshed_s < REFRESH_EVERY_S:
            return
        self._refreshed_s = now_s
        plan, found = self._plan, machines()
        self._has_gpus = self._has_gpus or total(found)[1] > 0
        self.shapes = shapes(plan, has_gpus=self._has_gpus, gpus_per_trial=self._gpus_per_trial)
        fits = max(fitting(plan, found, self.shapes).values())
        # One trial may always wait for a machine: its request makes an autoscaler add one.
        self.limit = max(1, min(self._max_concurrent or fits, fits))
        self.draining = ray_internals.draining_nodes()


def disconnect() -> None:
    """Leave the cluster, if this process joined one; a local Ray ends with all its processes."""
    with leaving():
        pass


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Leave the cluster, which takes a second, while the block runs; the block must not use Ray.

    Garbage that holds handles of Ray, such as tracebacks of dead actors, must be collected first:
    if another thread collects it while Ray shuts down, Ray ends this process without a message.
    """
    if "ray" not in sys.modules or not (ray := sys.modules["ray"]).is_initialized():
        yield
        return
    gc.collect()
    gc.disable()

    def leave() -> None:
        try:
            ray_internals.end_autoscaler()
            ray.shutdown()
        finally:
            gc.enable()

    thread = threading.Thread(target=leave, name="leaving")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def ensure_token() -> None:
    """Create Ray's token if it is missing, and make it readable by its owner only.

    Ray itself creates the file with mode 0644.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        if path.exists() and not path.read_text().strip():
            path.unlink()  # its writer was killed before Ray could use it
        if not path.exists():
            with temporary(path) as new:
                new.touch(0o600, exist_ok=False)
                new.write_text(secrets.token_hex(32))
                with contextlib.suppress(FileExistsError):  # another driver wrote it first
                    os.link(new, path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise UsageError(
            f"Ray's token must be in {path}, readable and writable by its owner only: {error}. Set "
            "the file's owner and mode (chmod 600), or set RAY_AUTH_TOKEN_PATH to such a file."
        ) from error


def _answers(address: str) -> bool:
    """Return whether something listens at the address: Ray keeps those of clusters that ended."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False
