"""Download of one file: resumed after an interruption, checked, and renamed once it is whole.

An unfinished file is called `<name>.part`. `<name>.part.json` beside it records its version at the
address, so that two versions are never joined. Nothing else is kept.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from orchestrator.data.progress import progress
from orchestrator.errors import UsageError
from orchestrator.storage.locks import announced_lock
from trainables import files

TIMEOUT_S = 30.0  # without a byte
RETRY_PAUSE_S = 2.0
FRUITLESS_TRIES = 3  # tries in a row without a new byte, after which the download fails
BLOCK_BYTES = 2**18


def public_address(address: str) -> str:
    """Return an address without user, password and query, which can hold secrets."""
    scheme, host, path, _, _ = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit((scheme, host.rpartition("@")[2], path, "", ""))


def download(address: str, destination: Path, *, md5: str | None = None, shown: bool) -> None:
    """Download an http or https address to a file; an existing one is left as it is.

    An existing `<destination>.part` is continued. `md5` is the published checksum in hex, if there
    is one. With `shown`, progress is reported on standard error.

    Raises:
        UsageError: the address cannot be reached, answers with an error, breaks off repeatedly,
            or its content does not have the published checksum.
    """
    where = public_address(address)
    if not re.match("https?://[^/]", address):
        raise UsageError(f"A download address must start with http:// or https://; got {where}.")
    busy = f"Another process is downloading {destination.name}; waiting for it."
    with announced_lock(destination.with_name(f".{destination.name}.lock"), busy):
        if destination.exists():
            return
        part = destination.with_name(f"{destination.name}.part")
        _fetch_whole(address, part, destination, shown=shown)
        if md5 is not None:
            with part.open("rb") as handle:
                got = hashlib.file_digest(handle, "md5").hexdigest()
            if got != md5:
                _discard(part)
                raise UsageError(
                    f"{where} must have the published MD5 checksum {md5}; the downloaded file has "
                    f"{got} and was deleted. Try again, or fetch the file in another way and put "
                    f"it at {destination}."
                )
        files.put_in_place(part, destination)
        _about(part).unlink(missing_ok=True)


def _fetch_whole(address: str, part: Path, destination: Path, *, shown: bool) -> None:
    """Try until the part is whole; only tries in a row that bring no new byte are counted."""
    fruitless, size = 0, _size(part)
    while (reason := _try_once(address, part, destination, shown=shown)) is not None:
        before, size = size, _size(part)
        fruitless = 0 if size > before else fruitless + 1
        if fruitless >= FRUITLESS_TRIES:
            raise UsageError(
                f"The download of {public_address(address)} broke off ({reason}). The {size:,} "
                "bytes that arrived are kept, and the same command resumes the download. Or fetch "
                f"the file in another way and put it at {destination}."
            )
        time.sleep(RETRY_PAUSE_S)


def _try_once(address: str, part: Path, destination: Path, *, shown: bool) -> str | None:
    """Fetch the missing bytes once; return None if the part is whole, else why it is not."""
    where = public_address(address)
    try:
        return _fetch_once(address, part, shown=shown)
    except urllib.error.HTTPError as error:
        if error.code < 500:
            raise UsageError(
                f"{where} answers with status {error.code} ({error.reason}). Check the address, "
                f"or fetch the file in another way and put it at {destination}."
            ) from error
        return f"status {error.code} ({error.reason})"
    except urllib.error.URLError as error:
        if _size(part) == 0:
            raise UsageError(
                f"{where} cannot be reached from here ({error.reason}). Fetch it on a machine with "
                f"a network, put the file at {destination} and run the same command again."
            ) from error
        return str(error.reason)
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"


def _fetch_once(address: str, part: Path, *, shown: bool) -> str | None:
    """Request the missing bytes; return None if the part is whole, else why it is not."""
    version, request = _version(part, address), _request(address)
    offset = 0 if version is None else _size(part)  # None: the version of this part is unknown
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if version:
            request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # There is no byte beyond the part: it is whole if the server states the same size.
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{offset}":
            return None
        _discard(part)
        return "the part does not match the file at the address"
    with response:
        return _receive(response, address, part, offset, shown=shown)


def _request(address: str) -> urllib.request.Request:
    """Return the request, with the `user:password@` of the address, which urllib ignores."""
    parts = urllib.parse.urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    bare = urllib.parse.urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    request = urllib.request.Request(bare, headers={"Accept-Encoding": "identity"})
    if at:
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _receive(response: Any, address: str, part: Path, offset: int, *, shown: bool) -> str | None:
    """Append the body to the part, or replace the part if the server sends the whole file."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            _discard(part)
            return "the server sent another range than requested"
    else:
        offset = 0  # no range support, or the file has changed
    length = response.headers.get("Content-Length")
    total = offset + int(length) if length is not None and length.isdigit() else None
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if validator.startswith("W/"):
        validator = ""  # If-Range does not accept weak ones
    _about(part).write_text(json.dumps({"address": public_address(address), "version": validator}))
    done, what = offset, f"Downloading {part.name.removesuffix('.part')}"
    with (
        part.open("ab" if offset else "wb") as handle,
        progress(what, total=total, unit="bytes", start=offset, shown=shown) as update,
    ):
        while block := response.read(BLOCK_BYTES):
            handle.write(block)
            done += len(block)
            update(done)
    # `read` in blocks raises nothing when the connection closes early.
    if total is not None and done != total:
        return f"{done:,} of {total:,} bytes arrived"
    return None


def _about(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _version(part: Path, address: str) -> str | None:
    """Return the part's recorded validator ("" for none), or None if nothing is recorded."""
    try:
        about = json.loads(_about(part).read_text())
        return str(about["version"]) if about["address"] == public_address(address) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _about(part).unlink(missing_ok=True)
