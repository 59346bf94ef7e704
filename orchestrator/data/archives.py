"""Safe reading of archives and folders, member by member.

Nothing is extracted to disk. A member is read into memory by name, after the name, kind and size of
every member have been checked.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import mmap
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, cast

from orchestrator.errors import UsageError
from trainables import files

# Limits of an archive. The largest official one has 120,609 members of 237 MiB in total; the
# largest official member, CIFAR-100's training batch, has 148 MiB.
MAX_MEMBERS = 2_000_000
MAX_TOTAL_BYTES = 64 * 2**30
MAX_MEMBER_BYTES = 256 * 2**20
MAX_RATIO = 200  # uncompressed over compressed; real images are near 1, deflate's limit is 1032
RATIO_EXEMPT_BYTES = 2**20  # up to this size a high ratio is harmless, and usual for small text

# A zip's local header: signature, 22 bytes that the directory repeats, lengths of name and extra.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DEFLATE_WINDOW = -15  # raw, without zlib's own header


@dataclass(frozen=True, kw_only=True, slots=True)
class ZipMember:
    """The place of a checked member in a zip, which any process can read.

    `zipfile` would read the whole directory first, which takes each worker as long as thousands of
    images.
    """

    archive: Path
    name: str
    at: int  # offset of its local header in bytes
    packed_bytes: int
    size_bytes: int
    crc: int
    deflated: bool

    def read(self, archive: IO[bytes] | None = None) -> bytes:
        """Return its content, from the open archive if there is one.

        Raises:
            ValueError: it differs from the archive's directory; the message begins with a verb.
        """
        with nullcontext(archive) if archive else self.archive.open("rb") as file:
            file.seek(self.at)
            header = file.read(_LOCAL_HEADER.size).ljust(_LOCAL_HEADER.size)
            signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
            name = file.read(name_bytes)
            file.seek(extra_bytes, io.SEEK_CUR)
            raw = file.read(self.packed_bytes)
        names = (self.name.encode(), self.name.encode("cp437", "replace"))
        if signature != b"PK\x03\x04" or name not in names:
            raise ValueError("is damaged (the directory and the member differ)")
        unpacked = raw
        if self.deflated:
            try:
                # At most the stated size: an unbounded read would unpack a larger stream.
                unpacked = zlib.decompressobj(_DEFLATE_WINDOW).decompress(raw, self.size_bytes or 1)
            except zlib.error as error:
                raise ValueError(f"is damaged ({error})") from error
        if len(unpacked) != self.size_bytes:
            raise ValueError("is cut off")
        if zlib.crc32(unpacked) != self.crc:
            raise ValueError("is damaged (bad CRC-32)")
        return unpacked


# The content of a member: bytes, or where they can be read.
Content = bytes | Path | ZipMember


def member_names(source: Path) -> list[str]:
    """Return the sorted names of all regular files in a zip, a tar, a tar.gz or a folder.

    Links in a folder are followed, because it is the user's own; in an archive they are refused.

    Raises:
        UsageError: the source is missing or unreadable, or a member is refused; it is named.
    """
    if source.is_dir():
        return sorted(_walk(source))
    if (zipped := _zip_members(source)) is not None:
        names = [member.name for member in zipped]
    else:
        names = [name for name, _ in _tar_contents(source, ())]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _refused(source, name, "appears twice, so its content is ambiguous")
        seen.add(name)
    return sorted(names)


def read_members(source: Path, wanted: Iterable[str]) -> Iterator[tuple[str, Content]]:
    """Yield each wanted member's name with its content.

    The order is that of the archive: a tar is read once from front to back.

    Raises:
        UsageError: a wanted member is missing, damaged or over a limit; it is named.
    """
    missing = dict.fromkeys(wanted)
    if source.is_dir():
        found = _folder_contents(source, list(missing))
    elif (zipped := _zip_members(source)) is not None:
        found = ((member.name, member) for member in zipped if member.name in missing)
    else:
        contents = _tar_contents(source, missing)
        found = ((name, content) for name, content in contents if content is not None)
    for name, content in found:
        del missing[name]  # a second member of the same name is not read
        yield name, content
    if missing:
        raise _refused(source, next(iter(missing)), "is missing")


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


def _walk(folder: Path) -> Iterator[str]:
    """Yield the relative names of the files in a folder, following links but no loops."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, found in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        relative = Path(parent).relative_to(folder)
        for file in found:
            name = (relative / file).as_posix()
            if not (folder / name).is_file():
                raise _refused(folder, name, "is a broken link or a special file")
            yield name


def _zip_members(source: Path) -> tuple[ZipMember, ...] | None:
    """Return the regular files of a zip whose entries all pass the checks; None: it is no zip."""
    with _explained(source):
        if not zipfile.is_zipfile(source):
            return None
        status = source.stat()
        return _listed(source, (status.st_ino, status.st_size, status.st_mtime_ns))


# Several readers list the same archive in turn, and listing can be half of all the work.
@lru_cache(maxsize=1)
def _listed(source: Path, state: tuple[int, int, int]) -> tuple[ZipMember, ...]:
    """Return the files of a zip; `state` makes a changed archive another cache entry."""
    _check_entries(source)
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
    _check_count(source, len(entries))
    # Entries that share bytes could each keep the ratio and still unpack to petabytes.
    if sum(info.compress_size for info in entries) > source.stat().st_size:
        raise UsageError(f"{source} was refused: its members overlap.")
    total = 0
    for info in entries:
        name = info.filename
        _check_name(source, name)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(source, name, "is a link or a special file")
        if info.flag_bits & 0x1:
            raise _refused(source, name, "is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(source, name, "is neither stored nor deflated")
        if info.file_size > max(RATIO_EXEMPT_BYTES, MAX_RATIO * info.compress_size):
            raise _refused(source, name, f"unpacks to more than {MAX_RATIO} times its size")
        total = _check_size(source, name, info.file_size, total)
    return tuple(
        ZipMember(
            archive=source,
            name=info.filename,
            at=info.header_offset,
            packed_bytes=info.compress_size,
            size_bytes=info.file_size,
            crc=info.CRC,
            deflated=info.compress_type == zipfile.ZIP_DEFLATED,
        )
        for info in entries
        if not info.is_dir()
    )


def _tar_contents(source: Path, wanted: Container[str]) -> Iterator[tuple[str, bytes | None]]:
    """Yield the checked regular files of a tar or tar.gz: each name, and its bytes if wanted."""
    total = 0
    with _explained(source), source.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        inner = cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb") if packed else raw)
        ceiling = max(MAX_RATIO * source.stat().st_size, 64 * RATIO_EXEMPT_BYTES)
        stream = _CappedStream(inner, source, min(ceiling, MAX_TOTAL_BYTES))
        with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
            for count, info in enumerate(archive, start=1):
                _check_count(source, count)
                _check_name(source, info.name)
                if not (info.isfile() or info.isdir()) or info.issparse():
                    raise _refused(source, info.name, "is a link or a special file")
                total = _check_size(source, info.name, info.size, total)
                if info.isfile():
                    name, content = info.name.removeprefix("./"), None
                    if name in wanted:
                        content = archive.extractfile(info).read(info.size)
                        if len(content) != info.size:
                            raise _refused(source, info.name, "is cut off")
                    yield name, content
            # The checksum of a gzip stream is compared at its end, behind the last member.
            while stream.read(RATIO_EXEMPT_BYTES):
                pass


@contextmanager
def _explained(source: Path) -> Iterator[None]:
    """Turn errors of reading an archive into a UsageError."""
    if not source.is_file():
        raise UsageError(f"The source must be a file or a folder that exists; got {source}.")
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UsageError(
            f"{source} cannot be read as a whole zip, tar or tar.gz archive "
            f"({type(error).__name__}: {error}). It is damaged or cut off: delete it and fetch it "
            "again."
        ) from error


class _CappedStream:
    """A read-only stream that refuses to pass a number of uncompressed bytes.

    `tarfile` alone reads headers of any claimed length into memory.
    """

    def __init__(self, inner: IO[bytes], source: Path, ceiling: int) -> None:
        self._inner, self._source, self._ceiling = inner, source, ceiling

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_MEMBER_BYTES:
            raise UsageError(
                f"{self._source} was refused: one of its headers claims {size:,} bytes."
            )
        self._check(self._inner.tell() + size)
        return self._inner.read(size)

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


def _check_name(source: Path, name: str) -> None:
    """Refuse names that lead out of a folder, on this system or another."""
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name):
        raise _refused(source, name, "is not a relative path with forward slashes")
    if ".." in parts or "\0" in name:
        raise _refused(source, name, "leads out of the archive")


def _check_size(source: Path, name: str, size: int, total: int) -> int:
    if size > MAX_MEMBER_BYTES:
        raise _refused(source, name, f"is larger than {MAX_MEMBER_BYTES:,} bytes")
    if total + size > MAX_TOTAL_BYTES:
        raise _refused(source, name, f"brings the total to more than {MAX_TOTAL_BYTES:,} bytes")
    return total + size


def _refused(source: Path, name: str, why: str) -> UsageError:
    return UsageError(f"{source} was refused: its member {name!r} {why}.")
