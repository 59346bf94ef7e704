"""The names in a zip, a tar or a folder, each of which passes the checks."""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import re
import stat
import zipfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.data.archives import checks
from orchestrator.data.archives.checks import (
    UNPACK,
    ambiguous,
    check_count,
    check_size,
    checked_name,
    normal_name,
    refused,
)
from orchestrator.data.archives.file_kinds import HEAD_BYTES, JOIN_SPLIT_ZIP, explained
from orchestrator.data.archives.tar_members import tar_content, tar_entries
from orchestrator.data.archives.zip_member import METHODS, ZipMember
from orchestrator.data.archives.zip_names import zip_names
from orchestrator.errors import UsageError


@dataclass(frozen=True, slots=True)
class Listing:
    """The names in a source.

    A file's value is its member of a zip, or the name of the member of a tar that has its content,
    which for a hard link is another one.
    """

    files: dict[str, Any] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    unstated_encoding: str = "utf-8"  # in which names are read that state none


def listing_of(source: Path) -> Listing:
    """Return the names in a source whose entries all pass the checks."""
    if source.is_dir():
        listing = Listing()
        _walk(source, "", {}, listing)
        return listing
    if not source.is_file():
        raise UsageError(f"The source must be a file or a folder that exists; got {source}.")
    status = source.stat()
    return _listed(source, (status.st_ino, status.st_size, status.st_mtime_ns))


# Several readers list the same archive in turn, and listing can be half of all the work.
@lru_cache(maxsize=1)
def _listed(source: Path, state: tuple[int, int, int]) -> Listing:
    """Return the names in an archive; `state` makes a changed archive another cache entry."""
    with explained(source):
        # A tar may end with a zip, in which `zipfile` would see the whole.
        with source.open("rb") as raw:
            is_tar = raw.read(HEAD_BYTES)[257:262] == b"ustar"
        is_zip = not is_tar and zipfile.is_zipfile(source)
        return _zip_listing(source) if is_zip else _tar_listing(source)


def _walk(root: Path, relative: str, seen: dict[tuple[int, int], str], listing: Listing) -> None:
    """Add the files and folders in a folder to the listing, following links.

    A folder that two paths reach is refused: two classes, or training and test images, would be
    the same.
    """
    status = os.stat(root / relative)
    first = seen.setdefault((status.st_dev, status.st_ino), relative)
    if first != relative:
        if any(part.startswith(".") for part in relative.split("/")):
            return  # nothing reads hidden folders
        if not first or relative.startswith(f"{first}/"):
            why = "is a link to a folder that holds it; remove the link"
        else:
            why = f"is the same folder as {first!r}; remove one of them, or copy its images"
        raise refused(root, relative, why)
    if relative:
        listing.folders.add(relative)
    for entry in _entries(root, relative):
        name = f"{relative}/{entry.name}" if relative else entry.name
        if entry.is_dir():
            _walk(root, name, seen, listing)
        elif entry.is_file():
            listing.files[name] = name
        elif not entry.name.startswith("."):  # such as an editor's lock
            raise refused(root, name, "is a broken link or a special file; remove it")
    check_count(root, len(listing.files) + len(listing.folders))


def _entries(root: Path, relative: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, hidden ones last."""
    try:
        with os.scandir(root / relative) as found:
            return sorted(found, key=lambda entry: (entry.name.startswith("."), entry.name))
    except OSError as error:
        raise refused(root, relative or ".", f"cannot be read ({error.strerror})") from error


def _zip_listing(source: Path) -> Listing:
    _check_is_whole(source)
    _check_entries(source)
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
    check_count(source, len(entries))
    # Entries that share bytes could each keep the ratio and still unpack to petabytes.
    if sum(info.compress_size for info in entries) > source.stat().st_size:
        raise UsageError(f"{source} was refused: its members overlap.")
    names, encoding = zip_names(entries)
    listing, total = Listing(unstated_encoding=encoding), 0
    for info, (raw_name, stored_name) in zip(entries, names, strict=True):
        name = checked_name(source, stored_name)
        _check_zip_entry(source, name, info)
        total = check_size(source, name, info.file_size, total)
        if stored_name.endswith("/"):
            listing.folders.add(name)
            continue
        member = ZipMember(
            archive=source,
            name=name,
            raw_name=raw_name,
            at=info.header_offset,
            packed_bytes=info.compress_size,
            size_bytes=info.file_size,
            crc=info.CRC,
            method=info.compress_type,
        )
        same = listing.files.setdefault(name, member)
        if (same.size_bytes, same.crc) != (member.size_bytes, member.crc):
            raise ambiguous(source, name)
    return listing


def _check_zip_entry(source: Path, name: str, info: zipfile.ZipInfo) -> None:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refused(source, name, f"is a link or a special file; {UNPACK}")
    if info.flag_bits & 0x1:
        raise refused(
            source, name, "is encrypted; unpack the archive with its password and give the folder"
        )
    if info.compress_type not in METHODS:
        why = f"is compressed with method {info.compress_type}, which is not read"
        raise refused(source, name, f"{why}; {UNPACK}")
    if info.file_size > max(checks.RATIO_EXEMPT_BYTES, checks.MAX_RATIO * info.compress_size):
        raise refused(source, name, f"unpacks to more than {checks.MAX_RATIO} times its size")


def _tar_listing(source: Path) -> Listing:
    listing, total = Listing(), 0
    sizes: dict[str, int] = {}
    repeated: set[str] = set()
    for _, info, name in tar_entries(source):
        if info.isdir():
            listing.folders.add(name)
            continue
        holder = listing.files.get(normal_name(info.linkname)) if info.islnk() else name
        if holder is None:
            raise refused(source, name, f"is a link or a special file; {UNPACK}")
        size = sizes[holder] if info.islnk() else info.size
        total = check_size(source, name, size, total)
        if name in listing.files:
            repeated.add(name)
        if listing.files.setdefault(name, holder) != holder:
            raise ambiguous(source, name)
        sizes.setdefault(holder, size)
    if repeated:
        _check_repeated(source, repeated)
    return listing


def _check_repeated(source: Path, repeated: set[str]) -> None:
    """Refuse a tar in which members of the same name differ."""
    digests: dict[str, bytes] = {}
    for archive, info, name in tar_entries(source):
        if name in repeated and info.isreg():
            digest = hashlib.sha256(tar_content(source, archive, info)).digest()
            if digests.setdefault(name, digest) != digest:
                raise ambiguous(source, name)


def _check_is_whole(source: Path) -> None:
    """Refuse the last part of a split zip, whose directory is that of all parts."""
    with source.open("rb") as raw:
        raw.seek(max(0, source.stat().st_size - 2**16))
        tail = raw.read()
    # The end of the directory: its signature and the number of the part that it is in, from 0.
    end = tail.rfind(b"PK\x05\x06")
    if end >= 0 and 0 < int.from_bytes(tail[end + 4 : end + 6], "little") < 2**16 - 1:
        raise UsageError(f"{source} was refused: it is a part of a split zip; {JOIN_SPLIT_ZIP}.")


def _check_entries(source: Path) -> None:
    """Refuse a zip of too many entries before `zipfile` lists them, half a kilobyte each."""
    if source.stat().st_size <= checks.MAX_MEMBERS * 46:  # bytes of the smallest entry
        return
    with source.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Every entry begins with this signature.
        entries = itertools.islice(re.finditer(b"PK\x01\x02", content), checks.MAX_MEMBERS + 1)
        count = sum(1 for _ in entries)
        del entries  # it keeps the map open
    check_count(source, count)
