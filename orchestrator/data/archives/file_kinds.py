"""Recognizes compressed files and those that are no archive, and explains what to do with them."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from orchestrator.errors import UsageError

HEAD_BYTES = 2048  # enough to recognize a file
JOIN_SPLIT_ZIP = "join its parts (`zip -s 0 PARTS.zip --out WHOLE.zip`) and give the whole"

_UNPACK = "unpack it and give the folder"
_CONVERT = "write its images to one folder per class and prepare that folder as `imagefolder`"
_FETCH = "look at it in an editor, then delete it and download the archive itself"
_WHOLE = "give the folder or archive that holds it"

# How a file begins, its kind and the way out. The first that fits counts.
_KINDS = (
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (rb"\x04\x22\x4d\x18|LZIP|\x1f\x9d|\x5d\0\0", "an LZ4, lzip, LZMA or .Z archive", _UNPACK),
    (rb"MSCF|xar!|!<arch>", "a cabinet, xar or ar archive", _UNPACK),
    (rb"PK\x07\x08", "the first part of a split zip", JOIN_SPLIT_ZIP),
    (rb"PAR1", "a Parquet file", _CONVERT),
    (rb"ARROW1|\xff\xff\xff\xff", "an Arrow file", _CONVERT),
    (rb"\x89HDF", "an HDF5 file", _CONVERT),
    (rb"\x93NUMPY", "a numpy array", _CONVERT),
    (rb"MATLAB ", "a MATLAB file", _CONVERT),
    (rb"SQLite format 3", "an SQLite database", _CONVERT),
    (rb"\0\0[\x08-\x0e][\x01-\x04]", "an IDX file like those of MNIST", _CONVERT),
    (rb"%PDF", "a PDF document", _CONVERT),
    (rb"\x80[\x02-\x05]", "a Python pickle", _WHOLE),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*", "an image", _WHOLE),
    (rb"version https://git-lfs", "a pointer of Git LFS", "run `git lfs pull` in its repository"),
    (rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype html|html|head|body|script|!--)", "an HTML page", _FETCH),
    (rb"(?:\xef\xbb\xbf)?\s*<\?xml", "an XML document", _FETCH),
)
# Zip, gzip, bzip2, xz and tar.
_ARCHIVES = re.compile(rb"PK(?!\x07\x08)|\x1f\x8b|BZh[1-9]|\xfd7zXZ\0|.{257}ustar", re.DOTALL)

# How compressed tars begin, and what opens them.
_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)


def opener_of(raw: IO[bytes]) -> Callable[[Any], Any] | None:
    """Return what opens a compressed file; None: it is not compressed."""
    head = raw.read(8)
    raw.seek(0)
    return next((opener for start, opener in _OPENERS.items() if head.startswith(start)), None)


@contextmanager
def explained(source: Path) -> Iterator[None]:
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
        opener = opener_of(raw)
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


def other_kind(head: bytes) -> tuple[str, str] | None:
    """Return the kind of a file from its first `HEAD_BYTES`, and what its owner can do with it.

    None: it is empty or begins like an archive that can be read.
    """
    if not head or _ARCHIVES.match(head):
        return None
    for pattern, kind, way_out in _KINDS:
        if re.match(pattern, head, re.DOTALL):
            return kind, way_out
    if _is_text(head):
        return "a text file", _FETCH
    return "a file of an unknown kind", f"{_UNPACK}, or fetch it again if it is damaged"


def _is_text(head: bytes) -> bool:
    if re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut off
    except UnicodeDecodeError:
        return False
    return True
