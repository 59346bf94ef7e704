"""The names of a zip's entries, whose encoding few programs state."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress

_UTF8_FLAG = 0x800
_UNICODE_PATH = 0x7075  # the extra field in which WinRAR and 7-Zip put a name in UTF-8
# Of systems whose zip programs mark only those names as UTF-8 that their code page lacks.
_CODE_PAGES = ("cp437", "cp932", "gbk", "cp949", "big5", "cp850", "cp866", "cp1252", "cp1251")


def zip_names(entries: Sequence[zipfile.ZipInfo]) -> tuple[list[tuple[bytes, str]], str]:
    """Return the bytes of each name with the name, and the encoding of names that state none.

    All of these are read in one encoding, so that equal bytes are equal names and different bytes
    are different ones: as UTF-8 if all are (macOS), else in the code page that gives a folder of
    the names that state theirs, else in that of MS-DOS, which is the standard's.

    `zipfile` would read the extra field from Python 3.12 on only.
    """
    stated = [_stated_name(info) for info in entries]
    unstated = [raw for raw, name in stated if name is None]
    encoding = "utf-8" if all(_decoded(raw, "utf-8") is not None for raw in unstated) else "cp437"
    if encoding != "utf-8":
        known = _folders(name for _, name in stated if name)
        pages = (
            page
            for page in _CODE_PAGES
            if known & _folders(_decoded(raw, page) for raw in unstated)
        )
        encoding = next(pages, encoding)
    names = (_decoded(raw, encoding) if name is None else name for raw, name in stated)
    return [(raw, name or "") for (raw, _), name in zip(stated, names, strict=True)], encoding


def _stated_name(info: zipfile.ZipInfo) -> tuple[bytes, str | None]:
    """Return the bytes of a name, and the name if the entry states its encoding or it is ASCII."""
    if info.flag_bits & _UTF8_FLAG or (info.orig_filename.isascii() and not info.extra):
        return info.orig_filename.encode(), info.orig_filename
    raw, extra = info.orig_filename.encode("cp437"), info.extra
    with suppress(UnicodeDecodeError, struct.error):
        while extra:
            kind, size = struct.unpack_from("<HH", extra)
            # A version, the CRC-32 of the name that it belongs to, and the name in UTF-8.
            if kind == _UNICODE_PATH and extra[4:9] == struct.pack("<BI", 1, zlib.crc32(raw)):
                return raw, extra[9 : 4 + size].decode()
            extra = extra[4 + size :]
    return raw, info.orig_filename if raw.isascii() else None


def _decoded(raw: bytes, encoding: str) -> str | None:
    try:
        name = raw.decode(encoding)
    except UnicodeDecodeError:
        return None
    # In Asian encodings a backslash can be the second byte of a character, which is no separator.
    slash = "\N{FULLWIDTH REVERSE SOLIDUS}"
    return re.sub(r"(?<=[^\0-\x7f])\\", slash, name) if encoding == "cp437" else name


def _folders(names: Iterable[str | None]) -> set[str]:
    """Return the non-ASCII parts of paths in front of the last slash; none if a name is missing."""
    paths = list(names)
    parts = {part for path in paths for part in (path or "").split("/")[:-1]}
    return set() if None in paths else {part for part in parts if not part.isascii()}
