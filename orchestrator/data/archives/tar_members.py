"""The members of a tar, plain or compressed, read once from front to back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from orchestrator.data.archives import checks
from orchestrator.data.archives.checks import UNPACK, check_count, checked_name, refused
from orchestrator.data.archives.file_kinds import explained, opener_of
from orchestrator.errors import UsageError


def tar_entries(source: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
    """Yield the checked files, hard links and folders of a tar, each with its name."""
    with explained(source), source.open("rb") as raw:
        opener = opener_of(raw)
        ceiling = max(checks.MAX_RATIO * source.stat().st_size, 64 * checks.RATIO_EXEMPT_BYTES)
        inner = opener(raw) if opener else raw
        stream = _CappedStream(inner, source, min(ceiling, checks.MAX_TOTAL_BYTES))
        with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
            for count, info in enumerate(archive, start=1):
                check_count(source, count)
                name = checked_name(source, info.name)
                if not (info.isreg() or info.isdir() or info.islnk()) or info.issparse():
                    raise refused(source, name, f"is a link or a special file; {UNPACK}")
                yield archive, info, name
            # `tarfile` takes a damaged header for the end of the archive, which is zeros.
            if stream.last_read.strip(b"\0"):
                raise tarfile.ReadError("damaged header")
            # The checksum of a compressed stream is compared at its end, behind the last member.
            while stream.read(checks.RATIO_EXEMPT_BYTES):
                pass


def tar_content(source: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """Return the content of a regular file of an open tar."""
    content = archive.extractfile(info).read(info.size)  # type: ignore[union-attr]
    if len(content) != info.size:
        raise refused(source, info.name, "is cut off")
    return content


class _CappedStream:
    """A read-only stream that refuses to pass a number of uncompressed bytes.

    `tarfile` alone reads headers of any claimed length into memory.
    """

    def __init__(self, inner: IO[bytes], source: Path, ceiling: int) -> None:
        self._inner, self._source, self._ceiling = inner, source, ceiling
        self.last_read = b""

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > checks.MAX_MEMBER_BYTES:
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
                f"(at most {checks.MAX_RATIO} times its own size are accepted)."
            )
