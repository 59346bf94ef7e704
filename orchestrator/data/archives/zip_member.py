"""A file in a zip, which any process can read by itself."""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zipfile
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# A zip's local header: signature, 22 bytes that the directory repeats, lengths of name and extra.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DEFLATE_WINDOW = -15  # raw, without zlib's own header
_LZMA_MEMORY_BYTES = 512 * 2**20
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@dataclass(frozen=True, kw_only=True, slots=True)
class ZipMember:
    """The place of a checked member in a zip, which any process can read.

    `zipfile` would read the whole directory first, which takes each worker as long as thousands of
    images.
    """

    archive: Path
    name: str
    raw_name: bytes  # which its local header repeats
    at: int  # offset of its local header in bytes
    packed_bytes: int
    size_bytes: int
    crc: int
    method: int  # of compression, one of `METHODS`

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
        if signature != b"PK\x03\x04" or name != self.raw_name:
            raise ValueError("is damaged (the directory and the member differ)")
        try:
            unpacked = _unpacked(raw, self.method, self.size_bytes)
        except (zlib.error, lzma.LZMAError, OSError) as error:
            raise ValueError(f"is damaged ({error})") from error
        if len(unpacked) != self.size_bytes:
            raise ValueError("is cut off")
        if zlib.crc32(unpacked) != self.crc:
            raise ValueError("is damaged (bad CRC-32)")
        return unpacked


def _unpacked(raw: bytes, method: int, size_bytes: int) -> bytes:
    """Return a zip member's content, at most its stated size: a larger stream is not unpacked."""
    limit = size_bytes or 1
    if method == zipfile.ZIP_DEFLATED:
        return zlib.decompressobj(_DEFLATE_WINDOW).decompress(raw, limit)
    if method == zipfile.ZIP_BZIP2:
        return bz2.BZ2Decompressor().decompress(raw, limit)
    if method == zipfile.ZIP_LZMA:
        # A version and the number 5, 5 bytes of properties, the stream. A .lzma file has the
        # content's size behind the properties; all bits set: unknown.
        stream = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY_BYTES)
        return stream.decompress(raw[4:9] + b"\xff" * 8 + raw[9:], limit)
    return raw
