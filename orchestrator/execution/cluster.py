"""Starts or joins a Ray cluster, with a token and on loopback, and says how many trials fit."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.execution import address, ray_internals
from orchestrator.plan.machines import (
    Machine,
    Shape,
    counted,
    fitting,
    planned_machines,
    shapes,
    total,
)
from orchestrator.plan.plan import Plan
from orchestrator.threads import run_within
from trainables import limits
from trainables.files import temporary

REFRESH_EVERY_S = 1.0  # shortest time between two questions for the cluster's nodes
ASK_EVERY_S, LOST_AFTER_S = 5.0, 30.0  # a control server that is restarted is back before that
START_LIMIT_S = 180.0  # Ray itself can wait for five minutes and longer
START_ADVICE = (
    "Most often memory, processes or disk space are missing, or a limit of `ulimit -a` is too low."
)

# Defaults that must be set before ray is imported.
_ENVIRONMENT = {
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
        hosts = "" if self.is_local else f" on {counted(self.nodes, 'node')}"
        cpus, gpus = total(self.machines)
        more = ""
        if (cpus, gpus) != (self.cpus, self.gpus):
            more = f"; its autoscaler adds up to {cpus:g} and {gpus:g} in all, which takes minutes"
        has = f"{counted(self.cpus, 'CPU')}, {counted(self.gpus, 'GPU')}"
        return f"Using {where}: {has}{hosts}{more}."


class RayStartError(OrchestratorError):
    """A local Ray does not start: the machine, or a limit on this process, is the cause."""


def connect(
    given: str | None, *, needs_state_api: bool, must_end: Callable[[], bool] = lambda: False
) -> Cluster:
    """Join the given cluster, `RAY_ADDRESS`'s or this host's; else start a local Ray.

    `given` is host:port, "auto", "local", or None to choose as above. `needs_state_api` starts
    Ray's dashboard: without it the placement groups of worker groups are never freed. `must_end`
    is called often; once it returns true, this does not wait for Ray any longer.

    Raises:
        UsageError: there is no cluster at the address, or it rejects the token.
        RayStartError: a local Ray does not start.
        KeyboardInterrupt: `must_end` returned true.
    """
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    check_loopback()
    ensure_home()
    import ray

    wanted = address.wanted_address(given)
    found = address.find(wanted)
    # An open Ray port is remote code execution, so a local Ray has a token.
    mode = address.authentication_mode(wanted, found) if found else os.environ.get("RAY_AUTH_MODE")
    if (mode or "token") == "token":
        ensure_token()
    ray_internals.set_authentication_mode(mode or "token")
    if found:
        _join(wanted, found, must_end)
    else:
        _start(must_end, needs_state_api=needs_state_api)
    now = ray.cluster_resources()
    return Cluster(
        address=ray.get_runtime_context().gcs_address,
        is_local=found is None,
        nodes=sum(node["Alive"] for node in ray.nodes()),
        cpus=now.get("CPU", 0.0),
        gpus=now.get("GPU", 0.0),
        machines=machines(),
    )


def ensure_home() -> None:
    """Give a user without a home directory an empty one, which Ray's modules need to be imported.

    It is deleted when this process ends.
    """
    try:
        Path.home()
    except RuntimeError:  # neither HOME nor an entry of this user in /etc/passwd
        os.environ["HOME"] = tempfile.mkdtemp(prefix="sweep-home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)


def check_loopback() -> None:
    """Raise a `RayStartError` if this process cannot connect to itself, as all parts of Ray do.

    Ray itself would wait for minutes without a message.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=10).close()
    except OSError as error:
        raise RayStartError(
            f"Ray needs the loopback interface, and 127.0.0.1 cannot be used here: {error}. Switch "
            "it on with `ip link set lo up`, or run the sweep where it is on."
        ) from error


def _join(wanted: address.Wanted, found: str, must_end: Callable[[], bool]) -> None:
    try:
        _init(must_end, address=found)
    except UnicodeEncodeError:  # an argument or a path, not the cluster
        raise
    except Exception as error:  # Ray raises plain exceptions, too
        # Ray's message does not name the token as the cause.
        raise wanted.cannot_join(
            f"{_first_line(error)} The address answers, so its token is probably different: copy "
            "~/.ray/auth_token from the machine that started it, and do not set RAY_AUTH_MODE."
        ) from error


def _start(must_end: Callable[[], bool], *, needs_state_api: bool) -> None:
    os.environ.pop("RAY_ADDRESS", None)
    ray_internals.stay_on_loopback()
    try:
        ray_internals.use_short_folder()
        _init(
            must_end,
            address="local",
            num_cpus=limits.num_cpus(),
            dashboard_host="127.0.0.1",
            include_dashboard=needs_state_api,
        )
    except UnicodeEncodeError:  # an argument or a path, not the machine
        raise
    except Exception as error:  # Ray raises plain exceptions, too
        raise RayStartError(
            f"Ray did not start on this machine: {_first_line(error)} {START_ADVICE}"
        ) from error


def _init(must_end: Callable[[], bool], **arguments: Any) -> None:
    """Start or join Ray; a `TimeoutError` after `START_LIMIT_S`."""
    import ray

    arguments |= {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        run_within(START_LIMIT_S, functools.partial(ray.init, **arguments), must_end)
    except BaseException:
        ray_internals.forget()
        raise


def _first_line(error: BaseException) -> str:
    """Return the beginning of Ray's message, which can have dozens of lines, as a sentence."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return text if text.endswith(".") else f"{text}."


def machines() -> tuple[Machine, ...]:
    """Return the cluster's machines, or all that its autoscaler may add if those are more.

    Ray publishes its autoscaler's limits only in the file that `ray up` leaves on the head node,
    so only a driver there knows them.
    """
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    now = tuple((has.get("CPU", 0.0), has.get("GPU", 0.0)) for has in alive)
    planned: tuple[Machine, ...] = ()
    head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    if head == ray.util.get_node_ip_address():
        with contextlib.suppress(OSError, RuntimeError):  # no such file, or no home directory
            planned = planned_machines((Path.home() / ray_internals.AUTOSCALER_CONFIG).read_text())
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


class Watch:
    """Notices that the cluster has ended, before Ray's library ends this process for it.

    That happens without a message a minute after the cluster's control server has gone.
    """

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self._answered_s = self._asked_s = clock.monotonic_s()

    def lost(self) -> str | None:
        """Return a sentence about what has ended; None while the cluster works."""
        if self._cluster.is_local:
            ended = ray_internals.ended_process()
            return ended and f"Ray's process {ended} on this machine has ended unexpectedly."
        now_s = self._clock.monotonic_s()
        if now_s - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now_s
            if address.answers(self._cluster.address):
                self._answered_s = now_s
        if now_s - self._answered_s < LOST_AFTER_S:
            return None
        return f"The Ray cluster at {self._cluster.address} does not answer any more."


def disconnect() -> None:
    """Leave the cluster, if this process joined one; a local Ray ends with all its processes."""
    with leaving():
        pass


@contextlib.contextmanager
def leaving(*, is_lost: bool = False) -> Iterator[None]:
    """Leave the cluster, which takes a second, while the block runs; the block must not use Ray.

    With `is_lost` the cluster has ended already, and nothing is left to talk to.
    Garbage that holds handles of Ray, such as tracebacks of dead actors, must be collected first:
    if another thread collects it while Ray shuts down, Ray ends this process without a message.
    """
    if is_lost:
        ray_internals.forget()
        yield
        return
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

    Ray itself creates the file with mode 0644. Without a home directory that can be written, the
    token is in the environment of this process and of those that it starts.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without an entry in /etc/passwd
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return
    os.environ.setdefault("HOME", str(path.parent.parent))  # Ray looks nowhere else
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
