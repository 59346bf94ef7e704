"""One driver per sweep on any number of machines: a lease in the sweep's storage.

The driver that holds the lease rewrites it every few seconds. An object store has no locks, so a
lease is taken by writing it, waiting, and reading it back; a driver that later finds another's
name in it stops. A time is a difference on one clock, the store's or this process's; two clocks are
never compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.storage import locks, sweeps
from orchestrator.storage.paths import LEASE, SweepPaths
from orchestrator.storage.store import Storage, StorageError
from orchestrator.threads import StepThread

RENEW_S = 5.0  # between two renewals
STALE_S = 60.0  # without a renewal; then another driver may take the lease
SETTLE_S = 2.0  # between writing and reading back: longer than a write takes to be visible


class LeaseLostError(OrchestratorError):
    """Another driver has taken over the sweep; this one must write nothing more."""


class Lease:
    """A lease that is held, and renewed by a thread of its own until it is released."""

    def __init__(self, storage: Storage, token: str, clock: Clock) -> None:
        self.storage, self.token, self.clock = storage, token, clock
        self.lost: str | None = None  # the reason to stop once another driver holds the lease
        self._is_stopped = False
        self._thread = StepThread("lease", self.step, RENEW_S)

    def check(self) -> None:
        """Compare the lease in the storage with this driver's.

        Raises:
            LeaseLostError: another driver holds it.
            StorageError: it could not be read.
        """
        text = self.storage.get(LEASE, keep_trying_s=0)
        if text is not None and _facts(text).get("token") != self.token:
            self.lost = (
                f"The sweep in {self.storage.shown} was taken over by {_holder(_facts(text))}, "
                f"because this driver could not renew its lease for {STALE_S:.0f} s. This driver "
                "stops and writes nothing there; the other one resumes from the stored ledger."
            )
        if self.lost is not None:
            raise LeaseLostError(self.lost)

    def start(self) -> None:
        """Start renewing it."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing it; it becomes stale."""
        self._is_stopped = True
        self._thread.wake()

    def release(self) -> None:
        """Stop renewing it and delete it, so that the next driver starts at once."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(RENEW_S)
        # If another driver holds it, it stays; if the storage does not answer, it becomes stale.
        with contextlib.suppress(LeaseLostError, StorageError):
            self.check()
            self.storage.delete(LEASE)

    def step(self) -> float | None:
        """Renew the lease; return the seconds until the next time, None if it is not held."""
        if self._is_stopped:
            return None
        with contextlib.suppress(StorageError, LeaseLostError):  # the next step tries again
            self.check()
            self.storage.put(LEASE, _own(self.token, self.clock), keep_trying_s=0)
        return None if self.lost else RENEW_S


def take(storage: Storage, say: Callable[[str], None], *, clock: Clock | None = None) -> Lease:
    """Return the sweep's lease, which nobody else holds or which is stale.

    `say` prints why it takes long.

    Raises:
        UsageError: another driver holds it.
        StorageError: the storage cannot be used.
    """
    clock = clock or Clock()
    found = storage.get(LEASE)
    if found is not None and not _is_gone(_facts(found)):
        _wait_until_stale(storage, found, say, clock)
    lease = Lease(storage, uuid.uuid4().hex[:12], clock)
    storage.put(LEASE, _own(lease.token, clock))
    clock.sleep(SETTLE_S)
    try:
        lease.check()
    except LeaseLostError as error:  # two drivers wrote at the same time: the later one holds it
        raise _taken(storage, storage.get(LEASE) or b"") from error
    lease.start()
    return lease


def holder(storage: Storage) -> str | None:
    """Return the process and host that hold a sweep's lease; None if nobody does.

    Raises:
        StorageError: the storage cannot be used.
    """
    found = storage.get(LEASE)
    if found is None or _is_gone(_facts(found)):
        return None
    age_s = storage.age_s(LEASE)
    return None if age_s is None or age_s > STALE_S else _holder(_facts(found))


def driver_of(paths: SweepPaths) -> str | None:
    """Return the process and host that run a sweep, on any machine; None if none does.

    Raises:
        StorageError: the storage cannot be used.
    """
    driver = locks.driver_of(paths)
    if driver is None and (storage := sweeps.storage_of(paths)) is not None:
        driver = holder(storage)
    return driver


def _wait_until_stale(
    storage: Storage, found: bytes, say: Callable[[str], None], clock: Clock
) -> None:
    """Return when a lease has not been renewed for `STALE_S`; raise as soon as it is renewed."""
    age_s = storage.age_s(LEASE)
    until_s = clock.monotonic_s() + STALE_S - (age_s or 0.0)
    if age_s is not None and until_s > clock.monotonic_s() + RENEW_S:
        say(
            f"{age_s:.0f} s ago, {_holder(_facts(found))} was running the sweep. Waiting for at "
            f"most {STALE_S - age_s:.0f} s to see whether it is still running."
        )
    while clock.monotonic_s() < until_s:
        clock.sleep(1.0)
        now = storage.get(LEASE)
        if now is None:
            return  # released
        if now != found:
            raise _taken(storage, now)


def _taken(storage: Storage, text: bytes) -> UsageError:
    return UsageError(
        f"The sweep in {storage.shown} is already being run by {_holder(_facts(text))}. Wait for "
        "it, or stop that process."
    )


def _own(token: str, clock: Clock) -> bytes:
    pid = os.getpid()
    process = {"host": socket.gethostname(), "pid": pid, "boot": _boot(), "began": _began(pid)}
    own = {**process, "token": token, "renewed_s": clock.now_s()}
    return json.dumps(own, sort_keys=True).encode()


def _facts(text: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        if isinstance(facts := json.loads(text), dict):
            return facts
    return {}


def _holder(facts: dict[str, Any]) -> str:
    return f"process {facts.get('pid', 'unknown')} on {facts.get('host', 'an unknown host')}"


def _is_gone(facts: dict[str, Any]) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    if not facts or facts.get("host") != socket.gethostname() or facts.get("boot") != _boot():
        return False
    return _began(int(facts.get("pid", 0))) != facts.get("began")


def _boot() -> str:
    """Return an identity of this boot of the machine and of the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # not on Linux: no lease is known to be gone


def _began(pid: int) -> str | None:
    """Return a process's start time in the kernel's ticks, because process ids are reused."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
