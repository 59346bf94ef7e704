"""Limits of archives, and the checks that every member passes."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from orchestrator.errors import UsageError

# Limits of an archive. The largest official one has 120,609 members of 237 MiB in total; the
# largest official member, CIFAR-100's training batch, has 148 MiB.
MAX_MEMBERS = 2_000_000
MAX_TOTAL_BYTES = 64 * 2**30
MAX_MEMBER_BYTES = 256 * 2**20
MAX_RATIO = 200  # uncompressed over compressed; real images are near 1, deflate's limit is 1032
RATIO_EXEMPT_BYTES = 2**20  # up to this size a high ratio is harmless, and usual for small text

UNPACK = "unpack the archive and give the folder"


def check_count(source: Path, count: int) -> None:
    """Refuse a source with too many members."""
    if count > MAX_MEMBERS:
        raise UsageError(f"{source} was refused: it has more than {MAX_MEMBERS:,} members.")


def checked_name(source: Path, name: str) -> str:
    """Return the normal form of a name; refuse those that lead out, on this system or another."""
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name):
        raise refused(source, name, f"is not a relative path with forward slashes; {UNPACK}")
    if ".." in parts or "\0" in name:
        raise refused(source, name, "leads out of the archive")
    return normal_name(name)


def normal_name(name: str) -> str:
    """Return a name without "." and empty parts."""
    if name.startswith(".") or "/." in name or "//" in name:
        return PurePosixPath(name).as_posix()
    return name.rstrip("/")  # the same in a fraction of the time


def check_size(source: Path, name: str, size: int, total: int) -> int:
    """Return the total size of all members with this one; refuse it beyond a limit."""
    if size > MAX_MEMBER_BYTES:
        raise refused(source, name, f"is larger than {MAX_MEMBER_BYTES:,} bytes")
    if total + size > MAX_TOTAL_BYTES:
        raise refused(source, name, f"brings the total to more than {MAX_TOTAL_BYTES:,} bytes")
    return total + size


def refused(source: Path, name: str, why: str) -> UsageError:
    """Return the error for a member; `why` begins with a verb."""
    return UsageError(f"{source} was refused: its member {name!r} {why}.")


def ambiguous(source: Path, name: str) -> UsageError:
    """Return the error for two members of one name that differ."""
    return refused(source, name, "appears twice, so its content is ambiguous")
