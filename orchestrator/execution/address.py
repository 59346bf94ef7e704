"""Chooses the Ray cluster that a sweep joins: `--address`, `RAY_ADDRESS` or this host's."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.execution import ray_internals

_DEFAULT = "the default of --address"
_TIMEOUT_S = 2
_LISTENS = "0A"  # a state in /proc/net/tcp


@dataclass(frozen=True, slots=True)
class Wanted:
    """The address that the user gave: host:port, "auto" or "local", and where it was given."""

    address: str
    source: str

    @property
    def is_given(self) -> bool:
        """Whether the user gave it."""
        return self.source != _DEFAULT

    def cannot_join(self, why: str) -> UsageError:
        """Return the error for a cluster that this process cannot join."""
        return UsageError(
            f"No Ray cluster can be joined at {self.address!r} ({self.source}): {why} Use this "
            "machine alone with `--address local`, or start a cluster with `ray start --head` or "
            "`ray up cluster.yaml`"
            + (" and unset RAY_ADDRESS." if self.source == "RAY_ADDRESS" else ".")
        )


def wanted_address(given: str | None) -> Wanted:
    """Return the address of `--address`, else of `RAY_ADDRESS`, else "auto"."""
    if given:
        return Wanted(given, "--address")
    if in_environment := os.environ.get("RAY_ADDRESS", "").strip():
        return Wanted(in_environment, "RAY_ADDRESS")
    return Wanted("auto", _DEFAULT)


def find(wanted: Wanted) -> str | None:
    """Return the address of the cluster to join; None to start a local Ray.

    Raises:
        UsageError: the address is not one of a cluster, nothing answers there, or the user asked
            for a running cluster of this machine and there is none, or several.
    """
    if wanted.address == "local":
        return None
    if wanted.address == "auto":
        # The cluster of `ray start` or `ray up`. Ray's own "auto" would also join the private Ray
        # of another sweep on this host, wait for its CPUs and end with it.
        found, _ = ray_internals.this_node()
        return found if found and answers(found) else _own_cluster(wanted)
    if wanted.address.startswith("ray://"):
        raise wanted.cannot_join(
            "a sweep cannot run through Ray Client, since its driver must be on a machine of the "
            "cluster. Run the command there with the cluster's own address, such as "
            "127.0.0.1:6379, or send it with `ray job submit`."
        )
    if wanted.address.startswith(("http://", "https://")):
        raise wanted.cannot_join(
            "this is the address of Ray's dashboard, where `ray job submit` sends jobs; a sweep "
            "needs the one of the cluster, such as 127.0.0.1:6379."
        )
    if _host_and_port(wanted.address) is None:
        raise wanted.cannot_join("an address is host:port, such as 127.0.0.1:6379.")
    if not answers(wanted.address):
        raise wanted.cannot_join("nothing answers there.")
    return wanted.address


def _own_cluster(wanted: Wanted) -> str | None:
    """Return the address of a cluster of this user that was started with another `TMPDIR`."""
    found = [address for address in ray_internals.own_clusters() if answers(address)]
    if len(found) > 1:
        raise wanted.cannot_join(
            f"several are running here: {', '.join(found)}. Choose one with `--address`."
        )
    if not found and wanted.is_given:
        raise wanted.cannot_join("no Ray of `ray start` is running on this machine.")
    return found[0] if found else None


def authentication_mode(wanted: Wanted, address: str) -> str:
    """Return the mode, "token" or "disabled", with which to join the cluster that was found.

    A cluster without tokens accepts work from everyone who can reach it. It is joined if this user
    started it on this host, or if `RAY_AUTH_MODE` says so.

    Raises:
        UsageError: it is not a cluster, or not one that may be joined like this.
    """
    given = os.environ.get("RAY_AUTH_MODE", "").lower()
    owner = owner_on_this_host(address)
    if wanted.address == "auto" and owner not in (None, os.getuid()):
        raise wanted.cannot_join(
            f"another user of this machine (uid {owner}) started the cluster at {address}; to join "
            f"it all the same, give `--address {address}`."
        )
    try:
        needs_token = ray_internals.needs_token(address)
    except ConnectionError as error:
        raise wanted.cannot_join(
            f"what answers at {address} is not a Ray cluster: {error}."
        ) from error
    mode = "token" if needs_token else "disabled"
    if given and given != mode:
        raise wanted.cannot_join(
            f"the cluster at {address} was started {'with' if needs_token else 'without'} a token, "
            f"and RAY_AUTH_MODE is {given!r} here. Unset RAY_AUTH_MODE."
        )
    if not (needs_token or given or owner == os.getuid()):
        raise wanted.cannot_join(
            f"the cluster at {address} was started without a token, so everyone who reaches it can "
            "run code on it. To join it all the same, set RAY_AUTH_MODE=disabled."
        )
    return mode


def answers(address: str) -> bool:
    """Return whether something listens at the address: Ray keeps those of clusters that ended."""
    place = _host_and_port(address)
    with contextlib.suppress(OSError, UnicodeError):  # UnicodeError: not the name of a host
        if place is not None:
            socket.create_connection(place, timeout=_TIMEOUT_S).close()
            return True
    return False


def owner_on_this_host(address: str, proc: Path = Path("/proc")) -> int | None:
    """Return the uid of the process that listens at an address; None if it is on another host.

    On a system without /proc it counts as this user's.
    """
    place = _host_and_port(address)
    if place is None:
        return None
    with socket.create_connection(place, timeout=_TIMEOUT_S) as connection:
        # A connection within one host has the same address at both ends.
        if connection.getsockname()[0] != connection.getpeername()[0]:
            return None
    if not (proc / "net/tcp").exists():
        return os.getuid()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # no IPv6
            for line in (proc / "net" / name).read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, *_ = line.split()
                if state == _LISTENS and int(local.rpartition(":")[2], 16) == place[1]:
                    return int(uid)
    return None


def _host_and_port(address: str) -> tuple[str, int] | None:
    """Return the two parts of host:port; None if it has not this form."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        return None
    return host.strip("[]"), int(port)
