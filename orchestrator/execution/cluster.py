"""Starts or joins a Ray cluster, with a token and on the loopback interface."""

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

from orchestrator.errors import UsageError
from orchestrator.execution.ray_internals import end_autoscaler, stay_on_loopback
from orchestrator.plan.machines import Machine, planned_machines, total

# Set before ray is imported; each has its reason.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # an open Ray port is remote code execution
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the record
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # nobody reads Tune's own state
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # a stopped trial may take long to let go of its model
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also how often a worker group's reports arrive
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less to start; every epoch is saved
    "RAY_USAGE_STATS_ENABLED": "0",
    # After an interrupt a late call of Tune's thread must not start a second Ray, which would end
    # this process with status 1 a minute after it lost its server.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "TUNE_DISABLE_AUTO_INIT": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What Ray said about where trials will run. `is_local` means this process started it.

    `machines` are those there are, or all there may be once its autoscaler has added what it may.
    """

    address: str
    is_local: bool
    nodes: int
    cpus: float
    gpus: float
    machines: tuple[Machine, ...]

    @property
    def may_have_many_nodes(self) -> bool:
        """Whether trials run on other machines than this one, or may once some are added."""
        return max(self.nodes, len(self.machines)) > 1

    def describe(self) -> str:
        """Return one line for the user."""
        where = "a local Ray" if self.is_local else f"the Ray cluster at {self.address}"
        hosts = "" if self.is_local else f" on {self.nodes} nodes"
        cpus, gpus = total(self.machines)
        more = ""
        if (cpus, gpus) != (self.cpus, self.gpus):
            more = f"; up to {cpus:g} and {gpus:g} as trials ask for them, which takes minutes"
        return f"Using {where}: {self.cpus:g} CPUs, {self.gpus:g} GPUs{hosts}{more}."


def connect(address: str | None, *, needs_state_api: bool) -> Cluster:
    """Join the given cluster, `RAY_ADDRESS`'s or this host's; else start a local Ray.

    Args:
        address: host:port, "auto", "local", or None to choose as above.
        needs_state_api: worker groups need Ray's dashboard, or placement groups are never freed.

    Raises:
        UsageError: there is no cluster at the address, or its token is refused.
    """
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    ensure_token()
    import ray
    from ray._private.services import find_bootstrap_address

    asked = address or os.environ.get("RAY_ADDRESS") or "auto"
    if asked == "auto":
        # What `ray start` or `ray up` left behind. Ray's own "auto" would also join the private
        # Ray of another sweep on this host, wait for its CPUs and end with it.
        found = find_bootstrap_address(None)
        is_local = not (found and _answers(found))
    else:
        is_local = asked == "local"
        found = asked
    if not is_local and not _answers(str(found)):
        raise UsageError(
            f"No Ray cluster can be joined at {asked!r}: nothing answers there. Start one with "
            "`ray start --head` or `ray up cluster.yaml`, or leave `--address` out to use this "
            "machine."
        )
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    # Ray's own handler of SIGTERM ends this process with status 15 wherever it stands.
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        if is_local:
            os.environ.pop("RAY_ADDRESS", None)
            stay_on_loopback()
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                include_dashboard=needs_state_api,
                dashboard_host="127.0.0.1",
                **quiet,
            )
        else:
            ray.init(address=found, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        # Ray does not say so when it was the token.
        token = (
            "It answers, so most likely its token is another one: copy ~/.ray/auth_token from the "
            "machine that started it, and do not set RAY_AUTH_MODE. Or else: "
        )
        raise UsageError(
            f"No Ray cluster can be joined at {asked!r}: {error} {'' if is_local else token}Start "
            "one with `ray start --head` or `ray up cluster.yaml`, or leave `--address` out to use "
            "this machine."
        ) from error
    now = ray.cluster_resources()
    return Cluster(
        address=ray.get_runtime_context().gcs_address,
        is_local=is_local,
        nodes=sum(node["Alive"] for node in ray.nodes()),
        cpus=now.get("CPU", 0.0),
        gpus=now.get("GPU", 0.0),
        machines=machines(),
    )


def machines() -> tuple[Machine, ...]:
    """Return the machines of the cluster, or those it may have once its autoscaler has added all.

    Ray 2.60 itself knows its autoscaler's limits nowhere but in the file that `ray up` leaves on
    the head, so they are known to a driver there.
    """
    import ray

    now = tuple(
        (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    )
    planned: tuple[Machine, ...] = ()
    file = Path.home() / "ray_bootstrap_config.yaml"
    head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    if head == ray.util.get_node_ip_address() and file.is_file():
        planned = planned_machines(file.read_text())
    return max(now, planned, key=lambda each: total(each)[::-1])  # GPUs first


def disconnect() -> None:
    """Leave the cluster, if one was joined; a local Ray ends with all its processes."""
    with leaving():
        pass


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Leave the cluster while the block runs, which must not use it: it takes Ray a second.

    Garbage that holds Ray's handles, as tracebacks of dead actors do, must go before: collected by
    another thread while Ray shuts down, it makes Ray end this process without a word.
    """
    if "ray" not in sys.modules or not (ray := sys.modules["ray"]).is_initialized():
        yield
        return
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()

    def leave() -> None:
        try:
            end_autoscaler()
            ray.shutdown()
        finally:
            if was_enabled:
                gc.enable()

    thread = threading.Thread(target=leave, name="leaving")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def ensure_token() -> None:
    """Make sure that Ray's token exists and only its owner can read it.

    Ray itself writes the file with mode 0644.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_text().strip():
            path.unlink()  # its writer was killed; no Ray can have started with it
        if not path.exists():
            _write_token(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise UsageError(
            f"Ray's token must be in {path}, readable and writable by its owner only: {error}. Set "
            "its owner and mode (chmod 600), or RAY_AUTH_TOKEN_PATH to a file that is so."
        ) from error


def _write_token(path: Path) -> None:
    """Create the file with a new token, in one step; a file that is there already stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another driver was first
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _answers(address: str) -> bool:
    """Return whether something listens there; Ray keeps the addresses of clusters long gone."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False
