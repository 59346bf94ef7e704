"""Safe reading of archives and folders, member by member.

Nothing is extracted to disk. A member is read into memory by name, after the name, kind and size of
every member have been checked. Names are relative paths without "." and empty parts.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import itertools
import lzma
import mmap
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from orchestrator.data.file_kinds import HEAD_BYTES, JOIN_SPLIT_ZIP, other_kind
from orchestrator.data.zip_member import METHODS, ZipMember, zip_names
from orchestrator.errors import UsageError
from trainables import files

# Limits of an archive. The largest official one has 120,609 members of 237 MiB in total; the
# largest official member, CIFAR-100's training batch, has 148 MiB.
MAX_MEMBERS = 2_000_000
MAX_TOTAL_BYTES = 64 * 2**30
MAX_MEMBER_BYTES = 256 * 2**20
MAX_RATIO = 200  # uncompressed over compressed; real images are near 1, deflate's limit is 1032
RATIO_EXEMPT_BYTES = 2**20  # up to this size a high ratio is harmless, and usual for small text

# How compressed tars begin, and what opens them.
_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)

# The content of a member: bytes, or where they can be read.
Content = bytes | Path | ZipMember


@dataclass(frozen=True, slots=True)
class _Listing:
    """The names in a source.

    A file's value is its member of a zip, or the name of the member of a tar that has its content,
    which for a hard link is another one.
    """

    files: dict[str, Any] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)


def member_names(source: Path) -> list[str]:
    """Return the sorted names of all regular files in a zip, a tar (also compressed) or a folder.

    Links in a folder are followed, because it is the user's own. In an archive they are refused,
    except hard links of a tar to a member in front of them.

    Raises:
        UsageError: the source is missing or unreadable, or a member is refused; it is named.
    """
    return sorted(_listing(source).files)


def folder_names(source: Path) -> set[str]:
    """Return the names of all folders, empty ones among them. Raises like `member_names`."""
    listing = _listing(source)
    return folders_above([*listing.files, *(f"{name}/" for name in listing.folders - {"."})])


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
    listed = _listing(source).files
    for name in names:
        if name not in listed:
            raise _refused(source, name, "is missing")
    if any(isinstance(member, ZipMember) for member in listed.values()):
        yield from ((name, member) for name, member in listed.items() if name in names)
    else:
        yield from _tar_contents(source, names, listed)


def _folder_contents(source: Path, wanted: Iterable[str]) -> Iterator[tuple[str, Content]]:
    for name in wanted:
        path = source / name
        if path.stat().st_size > MAX_MEMBER_BYTES:
            raise _refused(source, name, f"is larger than {MAX_MEMBER_BYTES:,} bytes")
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
            raise _refused(source, name, str(error)) from error
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


def _listing(source: Path) -> _Listing:
    """Return the names in a source whose entries all pass the checks."""
    if source.is_dir():
        listing = _Listing()
        _walk(source, "", {}, listing)
        return listing
    if not source.is_file():
        raise UsageError(f"The source must be a file or a folder that exists; got {source}.")
    status = source.stat()
    return _listed(source, (status.st_ino, status.st_size, status.st_mtime_ns))


# Several readers list the same archive in turn, and listing can be half of all the work.
@lru_cache(maxsize=1)
def _listed(source: Path, state: tuple[int, int, int]) -> _Listing:
    """Return the names in an archive; `state` makes a changed archive another cache entry."""
    with _explained(source):
        # A tar may end with a zip, in which `zipfile` would see the whole.
        with source.open("rb") as raw:
            is_tar = raw.read(HEAD_BYTES)[257:262] == b"ustar"
        is_zip = not is_tar and zipfile.is_zipfile(source)
        return _zip_listing(source) if is_zip else _tar_listing(source)


def _walk(root: Path, relative: str, seen: dict[tuple[int, int], str], listing: _Listing) -> None:
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
        raise _refused(root, relative, why)
    if relative:
        listing.folders.add(relative)
    for entry in _entries(root, relative):
        name = f"{relative}/{entry.name}" if relative else entry.name
        if entry.is_dir():
            _walk(root, name, seen, listing)
        elif entry.is_file():
            listing.files[name] = name
        elif not entry.name.startswith("."):  # such as an editor's lock
            raise _refused(root, name, "is a broken link or a special file")
    _check_count(root, len(listing.files) + len(listing.folders))


def _entries(root: Path, relative: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, hidden ones last."""
    try:
        with os.scandir(root / relative) as found:
            return sorted(found, key=lambda entry: (entry.name.startswith("."), entry.name))
    except OSError as error:
        raise _refused(root, relative or ".", f"cannot be read ({error.strerror})") from error


def _zip_listing(source: Path) -> _Listing:
    _check_is_whole(source)
    _check_entries(source)
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
    _check_count(source, len(entries))
    # Entries that share bytes could each keep the ratio and still unpack to petabytes.
    if sum(info.compress_size for info in entries) > source.stat().st_size:
        raise UsageError(f"{source} was refused: its members overlap.")
    listing, total = _Listing(), 0
    for info in entries:
        raw_name, stored_name = zip_names(info)
        name = _checked_name(source, stored_name)
        _check_zip_entry(source, name, info)
        total = _check_size(source, name, info.file_size, total)
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
            raise _ambiguous(source, name)
    return listing


def _check_zip_entry(source: Path, name: str, info: zipfile.ZipInfo) -> None:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(source, name, "is a link or a special file")
    if info.flag_bits & 0x1:
        raise _refused(source, name, "is encrypted")
    if info.compress_type not in METHODS:
        why = f"is compressed with method {info.compress_type}, which is not read"
        raise _refused(source, name, f"{why}; unpack the archive and give the folder")
    if info.file_size > max(RATIO_EXEMPT_BYTES, MAX_RATIO * info.compress_size):
        raise _refused(source, name, f"unpacks to more than {MAX_RATIO} times its size")


def _tar_listing(source: Path) -> _Listing:
    listing, total = _Listing(), 0
    sizes: dict[str, int] = {}
    repeated: set[str] = set()
    for _, info, name in _tar_entries(source):
        if info.isdir():
            listing.folders.add(name)
            continue
        holder = listing.files.get(_normal(info.linkname)) if info.islnk() else name
        if holder is None:
            raise _refused(source, name, "is a link or a special file")
        size = sizes[holder] if info.islnk() else info.size
        total = _check_size(source, name, size, total)
        if name in listing.files:
            repeated.add(name)
        if listing.files.setdefault(name, holder) != holder:
            raise _ambiguous(source, name)
        sizes.setdefault(holder, size)
    if repeated:
        _check_repeated(source, repeated)
    return listing


def _check_repeated(source: Path, repeated: set[str]) -> None:
    """Refuse a tar in which members of the same name differ."""
    digests: dict[str, bytes] = {}
    for archive, info, name in _tar_entries(source):
        if name in repeated and info.isreg():
            digest = hashlib.sha256(_tar_content(source, archive, info)).digest()
            if digests.setdefault(name, digest) != digest:
                raise _ambiguous(source, name)


def _tar_contents(
    source: Path, wanted: Iterable[str], listed: Mapping[str, str]
) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files of a tar with their contents."""
    names_of: dict[str, list[str]] = defaultdict(list)
    for name in wanted:
        names_of[listed[name]].append(name)
    for archive, info, holder in _tar_entries(source):
        if info.isreg() and holder in names_of:
            content = _tar_content(source, archive, info)
            for name in names_of.pop(holder):  # a second member of the same name is not read
                yield name, content


def _tar_content(source: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(info).read(info.size)  # type: ignore[union-attr]
    if len(content) != info.size:
        raise _refused(source, info.name, "is cut off")
    return content


def _tar_entries(source: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
    """Yield the checked files, hard links and folders of a tar, each with its name."""
    with _explained(source), source.open("rb") as raw:
        opener = _opener(raw)
        ceiling = max(MAX_RATIO * source.stat().st_size, 64 * RATIO_EXEMPT_BYTES)
        inner = opener(raw) if opener else raw
        stream = _CappedStream(inner, source, min(ceiling, MAX_TOTAL_BYTES))
        with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
            for count, info in enumerate(archive, start=1):
                _check_count(source, count)
                name = _checked_name(source, info.name)
                if not (info.isreg() or info.isdir() or info.islnk()) or info.issparse():
                    raise _refused(source, name, "is a link or a special file")
                yield archive, info, name
            # `tarfile` takes a damaged header for the end of the archive, which is zeros.
            if stream.last_read.strip(b"\0"):
                raise tarfile.ReadError("damaged header")
            # The checksum of a compressed stream is compared at its end, behind the last member.
            while stream.read(RATIO_EXEMPT_BYTES):
                pass


def _opener(raw: IO[bytes]) -> Callable[[Any], Any] | None:
    """Return what opens a compressed file; None: it is not compressed."""
    head = raw.read(8)
    raw.seek(0)
    return next((opener for start, opener in _OPENERS.items() if head.startswith(start)), None)


@contextmanager
def _explained(source: Path) -> Iterator[None]:
    """Turn errors of reading an archive into a UsageError."""
    try:
        yield
    except (UnicodeDecodeError, NotImplementedError, MemoryError) as error:
        raise UsageError(
            f"{source} cannot be read ({type(error).__name__}: {error}). Unpack it and give the "
            "folder."
        ) from error
    except (*_BROKEN, EOFError, OSError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Path, error: Exception) -> UsageError:
    """Return the error for a file that is no whole archive; one of another kind is named."""
    holds = ""
    with source.open("rb") as raw:
        opener = _opener(raw)
        head = raw.read(HEAD_BYTES)
        raw.seek(0)
        if opener:
            with suppress(Exception):  # a damaged one is recognized as it is
                head, holds = opener(raw).read(HEAD_BYTES), "a compressed file that holds "
    if found := other_kind(head):
        kind, way_out = found
        return UsageError(
            f"{source} is {holds}{kind}. The source must be a folder, a zip or a tar (plain, "
            f"gzip, bzip2 or xz): {way_out}."
        )
    return UsageError(
        f"{source} cannot be read as a whole zip or tar archive ({type(error).__name__}: {error}). "
        "It is damaged or cut off: delete it and fetch it again."
    )


class _CappedStream:
    """A read-only stream that refuses to pass a number of uncompressed bytes.

    `tarfile` alone reads headers of any claimed length into memory.
    """

    def __init__(self, inner: IO[bytes], source: Path, ceiling: int) -> None:
        self._inner, self._source, self._ceiling = inner, source, ceiling
        self.last_read = b""

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_MEMBER_BYTES:
            raise UsageError(
                f"{self._source} was refused: one of its headers claims {size:,} bytes."
            )
        self._check(self._inner.tell() + size)
        self.last_read = self._inner.read(size)
        return self.last_read

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset)
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def _check(self, position: int) -> None:
        if position > self._ceiling + tarfile.RECORDSIZE:
            raise UsageError(
                f"{self._source} was refused: it unpacks to more than {self._ceiling:,} bytes "
                f"(at most {MAX_RATIO} times its own size are accepted)."
            )


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
    if source.stat().st_size <= MAX_MEMBERS * 46:  # bytes of the smallest entry
        return
    with source.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Every entry begins with this signature.
        entries = itertools.islice(re.finditer(b"PK\x01\x02", content), MAX_MEMBERS + 1)
        count = sum(1 for _ in entries)
        del entries  # it keeps the map open
    _check_count(source, count)


def _check_count(source: Path, count: int) -> None:
    if count > MAX_MEMBERS:
        raise UsageError(f"{source} was refused: it has more than {MAX_MEMBERS:,} members.")


def _checked_name(source: Path, name: str) -> str:
    """Return the normal form of a name; refuse those that lead out, on this system or another."""
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name):
        raise _refused(source, name, "is not a relative path with forward slashes")
    if ".." in parts or "\0" in name:
        raise _refused(source, name, "leads out of the archive")
    return _normal(name)


def _normal(name: str) -> str:
    if name.startswith(".") or "/." in name or "//" in name:
        return PurePosixPath(name).as_posix()
    return name.rstrip("/")  # the same in a fraction of the time


def _check_size(source: Path, name: str, size: int, total: int) -> int:
    if size > MAX_MEMBER_BYTES:
        raise _refused(source, name, f"is larger than {MAX_MEMBER_BYTES:,} bytes")
    if total + size > MAX_TOTAL_BYTES:
        raise _refused(source, name, f"brings the total to more than {MAX_TOTAL_BYTES:,} bytes")
    return total + size


def _refused(source: Path, name: str, why: str) -> UsageError:
    return UsageError(f"{source} was refused: its member {name!r} {why}.")


def _ambiguous(source: Path, name: str) -> UsageError:
    return _refused(source, name, "appears twice, so its content is ambiguous")
