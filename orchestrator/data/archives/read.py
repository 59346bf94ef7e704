"""Safe reading of archives and folders, member by member.

Nothing is extracted to disk. A member is read into memory by name, after the name, kind and size of
every member have been checked. Names are relative paths without "." and empty parts.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from orchestrator.data.archives import checks
from orchestrator.data.archives.checks import refused
from orchestrator.data.archives.listing import listing_of
from orchestrator.data.archives.tar_members import tar_content, tar_entries
from orchestrator.data.archives.zip_member import ZipMember
from trainables import files

# The content of a member: bytes, or where they can be read.
Content = bytes | Path | ZipMember


def member_names(source: Path) -> list[str]:
    """Return the sorted names of all regular files in a zip, a tar (also compressed) or a folder.

    Links in a folder are followed, because it is the user's own. In an archive they are refused,
    except hard links of a tar to a member in front of them.

    Raises:
        UsageError: the source is missing or unreadable, or a member is refused; it is named.
    """
    return sorted(listing_of(source).files)


def folder_names(source: Path) -> set[str]:
    """Return the names of all folders, empty ones among them. Raises like `member_names`."""
    listing = listing_of(source)
    return folders_above([*listing.files, *(f"{name}/" for name in listing.folders - {"."})])


def has_guessed_names(source: Path) -> bool:
    """Return whether names are read as code page 437; they may be wrong."""
    return listing_of(source).unstated_encoding == "cp437"


def folders_above(names: Iterable[str]) -> set[str]:
    """Return all folders in which the named files lie."""
    found: set[str] = set()
    for name in names:
        while (name := name.rpartition("/")[0]) and name not in found:
            found.add(name)
    return found


def read_members(source: Path, wanted: Iterable[str]) -> Iterator[tuple[str, Content]]:
    """Yield each wanted member's name with its content.

    The order is that of the archive: a tar is read once from front to back.

    Raises:
        UsageError: a wanted member is missing, damaged or over a limit; it is named.
    """
    names = dict.fromkeys(wanted)
    if source.is_dir():
        yield from _folder_contents(source, names)
        return
    listed = listing_of(source).files
    for name in names:
        if name not in listed:
            raise refused(source, name, "is missing")
    if any(isinstance(member, ZipMember) for member in listed.values()):
        yield from ((name, member) for name, member in listed.items() if name in names)
    else:
        yield from _tar_contents(source, names, listed)


def _folder_contents(source: Path, wanted: Iterable[str]) -> Iterator[tuple[str, Content]]:
    for name in wanted:
        path = source / name
        if path.stat().st_size > checks.MAX_MEMBER_BYTES:
            raise refused(source, name, f"is larger than {checks.MAX_MEMBER_BYTES:,} bytes")
        yield name, path


def read_small(source: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of a few members by name. Raises like `read_members`."""
    found: dict[str, bytes] = {}
    for name, content in read_members(source, wanted):
        try:
            if isinstance(content, ZipMember):
                content = content.read()  # noqa: PLW2901
            found[name] = content.read_bytes() if isinstance(content, Path) else content
        except ValueError as error:
            raise refused(source, name, str(error)) from error
    return found


def sha256_of(source: Path) -> str:
    """Return the hex SHA-256 of a file, or of a folder's relative names and contents in order."""
    if not source.is_dir():
        return files.sha256(source)
    total = hashlib.sha256()
    for name in member_names(source):
        total.update(f"{name}\0".encode(errors="surrogateescape"))
        total.update(bytes.fromhex(files.sha256(source / name)))
    return total.hexdigest()


def _tar_contents(
    source: Path, wanted: Iterable[str], listed: Mapping[str, str]
) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files of a tar with their contents."""
    names_of: dict[str, list[str]] = defaultdict(list)
    for name in wanted:
        names_of[listed[name]].append(name)
    for archive, info, holder in tar_entries(source):
        if info.isreg() and holder in names_of:
            content = tar_content(source, archive, info)
            for name in names_of.pop(holder):  # a second member of the same name is not read
                yield name, content
