"""One driver per sweep, wherever the drivers run: a lease in the sweep's storage.

The driver that holds it writes it anew every few seconds. An object store has no locks, so a lease
is taken by writing it, waiting, and reading it back, and whoever finds another's name in it later
stops. Times are differences on one clock, the store's or this process's; no two are compared.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.storage.paths import LEASE
from orchestrator.storage.store import Storage, StorageError

RENEW_S = 5.0  # between two renewals
STALE_S = 60.0  # without a renewal the lease is anyone's
SETTLE_S = 2.0  # until a lease that was written is read back: longer than a write takes to be seen


class LeaseLostError(OrchestratorError):
    """Another driver has taken the sweep; this one must write nothing more."""


class Lease:
    """A lease that is held and renewed by a thread of its own until it is released."""

    def __init__(self, storage: Storage, token: str) -> None:
        self.storage, self.token = storage, token
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="lease", daemon=True)

    @property
    def lost(self) -> str | None:
        """Why this driver must stop, once another one has the lease; None while it has it."""
        return self._lost

    def check(self) -> None:
        """Read the lease.

        Raises:
            LeaseLostError: it is another driver's.
            StorageError: it could not be read.
        """
        text = self.storage.get(LEASE, keep_trying_s=0)
        if text is not None and _facts(text).get("token") != self.token:
            self._lost = (
                f"The sweep in {self.storage.shown} was taken over by {_holder(_facts(text))}, "
                f"because this driver could not renew its lease for {STALE_S:.0f} s. This one "
                "stops and writes nothing there; the other goes on from what was stored."
            )
        if self._lost is not None:
            raise LeaseLostError(self._lost)

    def start(self) -> None:
        """Begin to renew it."""
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing; the lease becomes stale by itself."""
        self._stop.set()

    def release(self) -> None:
        """Stop renewing, and let the next driver begin at once."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(RENEW_S)
        try:
            self.check()
            self.storage.delete(LEASE)
        except (LeaseLostError, StorageError):
            pass  # it is another's, or becomes stale by itself

    def _loop(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                self.check()
                self.storage.put(LEASE, _own(self.token), keep_trying_s=0)
            except StorageError:
                continue  # the next round tries again
            except LeaseLostError:
                return


def take(storage: Storage, say: Callable[[str], None]) -> Lease:
    """Take a sweep's lease, or one that nobody renews any more.

    Args:
        storage: the sweep's.
        say: tells the user why it takes long.

    Raises:
        UsageError: another driver holds it.
        StorageError: the storage cannot be used.
    """
    found = storage.get(LEASE)
    if found is not None and not _is_gone(_facts(found)):
        _wait_until_stale(storage, found, say)
    lease = Lease(storage, uuid.uuid4().hex[:12])
    storage.put(LEASE, _own(lease.token))
    time.sleep(SETTLE_S)
    try:
        lease.check()
    except LeaseLostError as error:  # both wrote at the same time: the later one stays
        raise _taken(storage, storage.get(LEASE) or b"") from error
    lease.start()
    return lease


def holder(storage: Storage) -> str | None:
    """Return which process on which host runs a sweep by its lease; None when nobody does.

    Raises:
        StorageError: the storage cannot be used.
    """
    found = storage.get(LEASE)
    if found is None or _is_gone(_facts(found)):
        return None
    age_s = storage.age_s(LEASE, f".now-{uuid.uuid4().hex[:8]}")
    return None if age_s is None or age_s > STALE_S else _holder(_facts(found))


def _wait_until_stale(storage: Storage, found: bytes, say: Callable[[str], None]) -> None:
    """Return when a lease has not been renewed for `STALE_S`; raise as soon as it is."""
    age_s = storage.age_s(LEASE, f".now-{uuid.uuid4().hex[:8]}")
    until_s = time.monotonic() + STALE_S - (age_s or 0.0)
    if age_s is not None and until_s > time.monotonic() + RENEW_S:
        say(
            f"The sweep was being run by {_holder(_facts(found))} {age_s:.0f} s ago. Waiting to "
            f"see whether it still is, for {STALE_S - age_s:.0f} s at most."
        )
    while time.monotonic() < until_s:
        time.sleep(1.0)
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


def _own(token: str) -> bytes:
    pid = os.getpid()
    return json.dumps(
        {
            "host": socket.gethostname(),
            "pid": pid,
            "boot": _boot(),
            "began": _began(pid),
            "token": token,
            "renewed_s": time.time(),
        },
        sort_keys=True,
    ).encode()


def _facts(text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    return facts if isinstance(facts, dict) else {}


def _holder(facts: dict[str, Any]) -> str:
    return f"process {facts.get('pid', 'unknown')} on {facts.get('host', 'an unknown host')}"


def _is_gone(facts: dict[str, Any]) -> bool:
    """Return whether a holder was a process of this very machine that has ended."""
    if not facts or facts.get("host") != socket.gethostname() or facts.get("boot") != _boot():
        return False
    return _began(int(facts.get("pid", 0))) != facts.get("began")


def _boot() -> str:
    """Return what names this start of this machine, and the container in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # not on Linux: then no lease is known to be gone


def _began(pid: int) -> str | None:
    """Return when a process began, in the kernel's ticks, since numbers are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
