"""A sweep's durable storage: a folder in an S3-compatible store, or on a shared file system.

The only door to pyarrow's file systems. Every call is tried again when it fails, for a bounded
time, and ends in a `StorageError` whose text a user can act on. What is put in place is whole: an
object store shows an object when all of it has arrived, a file is written under a temporary name
and renamed. It holds no state but the connection.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import shutil
import threading
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.redaction import redacted
from trainables import files

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CONNECT_S = 5.0  # seconds until a connection that is not answered counts as failed
SILENCE_S = 10.0  # seconds without a byte after which a request counts as failed
TRY_S = 60.0  # seconds one try may take, besides the time its bytes need
SLOWEST_BYTES_PER_S = 8_000  # what is slower counts as failed
KEEP_TRYING_S = 60.0  # seconds after the first try until no further one is begun
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # seconds between tries; doubles, with a random part
ALIVE_EVERY_S = 5.0  # seconds between signs of life while files are on their way
AT_ONCE = 4  # files of a folder on their way at the same time

_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
# Trying again does not help against these.
_FINAL_WORDS = (
    *("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"),
    *("INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT", "EXPIRED_TOKEN", "PERMANENT_REDIRECT"),
)
_FINAL_ERRNOS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
)

Result = TypeVar("Result")


class StorageError(OSError):
    """The storage cannot be reached or does not do what it must; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder in a store. Names are relative to it, with "/" between their parts."""

    uri: str  # as it was resolved; may hold a password, so use `shown` in texts
    prefix: str
    filesystem: FileSystem

    @property
    def shown(self) -> str:
        """The address without secrets."""
        return redacted(self.uri)

    def child(self, name: str) -> Storage:
        """Return the storage of a folder in this one."""
        head, mark, query = self.uri.partition("?")
        uri = f"{head.rstrip('/')}/{urllib.parse.quote(name)}{mark}{query}"
        return Storage(uri, f"{self.prefix}/{name}", self.filesystem)

    def put(self, name: str, source: Path | bytes, *, keep_trying_s: float | None = None) -> None:
        """Put a file or bytes in place, replacing what was there; nobody ever sees a part of it.

        Raises:
            StorageError: it could not be written in time. What was there before is unharmed.
            OSError: the local file cannot be read.
        """
        size = len(source) if isinstance(source, bytes) else source.stat().st_size

        def write() -> None:
            if self._is_object_store:
                self._write(f"{self.prefix}/{name}", source)
                return
            place = Path(self.prefix, name)
            with files.temporary(place) as new:
                self._write(str(new), source)
                files.put_in_place(new, place)

        self._try(f"write {name}", write, size, keep_trying_s)

    def get(self, name: str, *, keep_trying_s: float | None = None) -> bytes | None:
        """Return a small file's bytes; None where there is none.

        Raises:
            StorageError: it could not be read in time.
        """

        def read() -> bytes | None:
            try:
                with self.filesystem.open_input_stream(f"{self.prefix}/{name}") as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

        return self._try(f"read {name}", read, 0, keep_trying_s)

    def get_file(self, name: str, target: Path) -> bool:
        """Write a file to the local disk, under a temporary name first; False if there is none.

        Raises:
            StorageError: it could not be read in time.
            OSError: the local disk cannot be written.
        """
        size = self.size(name)
        if size is None:
            return False

        def read(new: Path) -> None:
            with (
                self.filesystem.open_input_stream(f"{self.prefix}/{name}") as file,
                new.open("wb") as local,
            ):
                shutil.copyfileobj(file, local, 2**20)

        with files.temporary(target) as new:
            self._try(f"read {name}", lambda: read(new), size, None)
            files.put_in_place(new, target, durable=False)
        return True

    def put_folder(
        self,
        folder: Path,
        name: str,
        *,
        last: str,
        alive: Callable[[], None] | None = None,
    ) -> None:
        """Put the files of a folder in place; the named one comes last and says that it is whole.

        Args:
            folder: on the local disk.
            name: where to put it, below the storage's root.
            last: name of the last file.
            alive: called every few seconds while files are on their way.

        Raises:
            StorageError: they could not be written in time.
        """
        first = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != last]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            _all({pool.submit(self.put, f"{name}/{path.name}", path) for path in first}, alive)
        self.put(f"{name}/{last}", folder / last)

    def get_folder(
        self, name: str, folder: Path, *, mark: str, alive: Callable[[], None] | None = None
    ) -> bool:
        """Write a folder's files to the local disk, then rename it there, replacing what was.

        Args:
            name: below the storage's root.
            folder: on the local disk.
            mark: name of the file that says that it is whole.
            alive: called every few seconds while files are on their way.

        Returns:
            whether there is such a folder with the named file in it, which says that it is whole.

        Raises:
            StorageError: they could not be read in time.
            OSError: the local disk cannot be written.
        """
        names = self.files(name)
        if mark not in names:
            return False
        with files.temporary(folder) as new:
            new.mkdir()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                found = {pool.submit(self.get_file, f"{name}/{one}", new / one) for one in names}
                arrived = _all(found, alive)
            if not all(arrived):  # one was deleted meanwhile
                return False
            try:
                files.put_in_place(new, folder, durable=False)
            except OSError:
                if not (folder / mark).is_file():  # else another worker was faster
                    raise
        return True

    def exists(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        return self.size(name) is not None

    def files(self, name: str = "", *, recursive: bool = False) -> list[str]:
        """Return the names of the files in a folder, relative to it, sorted; none if none is."""
        return self._list(name, "File", recursive)

    def folders(self, name: str = "") -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        return self._list(name, "Directory", False)

    def delete_folder(self, name: str) -> None:
        """Delete a folder and all that is in it, if it is there."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_dir(f"{self.prefix}/{name}")

        self._try(f"delete {name}", delete, 0, None)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(f"{self.prefix}/{name}")

        self._try(f"delete {name}", delete, 0, None)

    def age_s(self, name: str, probe: str) -> float | None:
        """Return a file's age in seconds by the store's own clock; None if there is no such file.

        Args:
            name: the file.
            probe: a name that nobody else uses; written to learn what time it is there.
        """
        self.put(probe, b"")
        try:
            old, now = (self._info(each) for each in (name, probe))
        finally:
            self.delete(probe)
        if old is None or now is None:
            return None
        return float(now.mtime_ns - old.mtime_ns) / 1e9

    @property
    def _is_object_store(self) -> bool:
        return self.uri.startswith("s3://")

    def _write(self, path: str, source: Path | bytes) -> None:
        # Small sources are read before the store hears of them: closing the stream, which an
        # error does too, is what puts an object in place.
        if isinstance(source, bytes) or source.stat().st_size <= 2**26:
            content = source if isinstance(source, bytes) else source.read_bytes()
            with self.filesystem.open_output_stream(path) as file:
                file.write(content)
            return
        with source.open("rb") as local, self.filesystem.open_output_stream(path) as file:
            shutil.copyfileobj(local, file, 2**23)

    def _info(self, name: str) -> Any:
        from pyarrow.fs import FileType

        info = self._try(
            f"look for {name}",
            lambda: self.filesystem.get_file_info(f"{self.prefix}/{name}"),
            0,
            None,
        )
        return info if info.type == FileType.File else None

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        info = self._info(name)
        return None if info is None else int(info.size)

    def _list(self, name: str, kind: str, recursive: bool) -> list[str]:
        from pyarrow.fs import FileSelector

        folder = f"{self.prefix}/{name}".rstrip("/")
        found = self._try(
            f"list {name or 'what is there'}",
            lambda: self.filesystem.get_file_info(
                FileSelector(folder, allow_not_found=True, recursive=recursive)
            ),
            0,
            None,
        )
        return sorted(each.path[len(folder) + 1 :] for each in found if each.type.name == kind)

    def _try(
        self, what: str, call: Callable[[], Result], size: int, keep_trying_s: float | None
    ) -> Result:
        """Call until it succeeds, fails for good, or has failed for too long."""
        began_s, pause_s, tries = time.monotonic(), FIRST_PAUSE_S, 0
        until_s = began_s + (KEEP_TRYING_S if keep_trying_s is None else keep_trying_s)
        while True:
            tries += 1
            try:
                return _within(TRY_S + size / SLOWEST_BYTES_PER_S, call)
            except OSError as error:
                over = time.monotonic() + pause_s > until_s
                if over or _is_final(error):
                    raise self._error(what, error, tries, time.monotonic() - began_s) from error
            time.sleep(pause_s * random.uniform(0.7, 1.3))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _error(self, what: str, error: OSError, tries: int, passed_s: float) -> StorageError:
        told = redacted(str(error))
        new = StorageError(
            f"The storage at {self.shown} must be reachable and writable, but could not {what}: "
            f"{told} ({tries} {'try' if tries == 1 else 'tries'} in {passed_s:.0f} s). Check the "
            "address, the credentials and the network, or the space that is left there; then give "
            "the same command with --resume."
        )
        new.errno = error.errno
        return new


def _all(under_way: set[Future[Result]], alive: Callable[[], None] | None) -> list[Result]:
    """Wait for files that are on their way, with signs of life; raises what one of them raised."""
    results: list[Result] = []
    while under_way:
        done, under_way = wait(under_way, timeout=ALIVE_EVERY_S)
        results += [one.result() for one in done]
        if alive:
            alive()
    return results


@functools.lru_cache(maxsize=32)
def open_storage(uri: str) -> Storage:
    """Return the storage at an address; nothing is asked of it yet.

    Args:
        uri: `s3://bucket/prefix` or `file:///folder`. After a "?" stand pyarrow's options
            `endpoint_override`, `scheme`, `region` and `tls_ca_file_path`. Without an endpoint
            `AWS_ENDPOINT_URL_S3` and `AWS_ENDPOINT_URL` say where it is. Credentials are AWS's
            usual ones: environment variables, files, the machine's role.

    Raises:
        StorageError: the address is not one of these.
    """
    parts = urllib.parse.urlsplit(uri)
    path = urllib.parse.unquote(parts.path)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not path.strip("/"):
            raise StorageError(
                f"A storage on a file system is file:///folder with three slashes; got {uri!r}."
            )
        from pyarrow.fs import LocalFileSystem

        folder = "/" + path.strip("/")
        return Storage(f"file://{urllib.parse.quote(folder)}", folder, LocalFileSystem())
    if parts.scheme != "s3":
        raise StorageError(
            f"A storage is a path, s3://bucket/prefix or file:///folder; got {redacted(uri)!r}."
        )
    options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_OPTIONS))
    if not parts.hostname or unknown:
        raise StorageError(
            "A storage in an object store is s3://bucket/prefix, with the options "
            f"{', '.join(_OPTIONS)} after a '?'; got {redacted(uri)!r}."
        )
    _add_endpoint(options)
    user, at, bucket = parts.netloc.rpartition("@")
    query = urllib.parse.urlencode(sorted(options.items()))
    place = f"{bucket}/{path.strip('/')}".rstrip("/")
    resolved = f"s3://{user}{at}{urllib.parse.quote(place)}" + (f"?{query}" if query else "")
    return Storage(resolved, place, _s3(parts, options))


def is_uri(text: str) -> bool:
    """Return whether a text is an address rather than a path."""
    return "://" in text


def _s3(parts: urllib.parse.SplitResult, options: dict[str, str]) -> FileSystem:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    given: dict[str, Any] = dict(options)
    if parts.username and parts.password:
        given["access_key"] = urllib.parse.unquote(parts.username)
        given["secret_key"] = urllib.parse.unquote(parts.password)
    if "region" not in given and "endpoint_override" in given:
        given["region"] = os.environ.get("AWS_REGION") or os.environ.get(
            "AWS_DEFAULT_REGION", "us-east-1"
        )
    return S3FileSystem(
        **given,
        connect_timeout=CONNECT_S,
        request_timeout=SILENCE_S,  # on Linux too, whatever pyarrow's documentation says
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),  # ours are the only ones
        allow_delayed_open=True,  # one request for a small file instead of three
    )


def _add_endpoint(options: dict[str, str]) -> None:
    """Take the endpoint from the environment, where the address has none."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url and "endpoint_override" not in options:
        parts = urllib.parse.urlsplit(url if "://" in url else f"https://{url}")
        options["endpoint_override"] = parts.netloc.rpartition("@")[2]
        options.setdefault("scheme", parts.scheme)


def _within(limit_s: float, call: Callable[[], Result]) -> Result:
    """Return what a call returns, for which one waits so long at most.

    A call of pyarrow's cannot be cancelled. One that takes too long is left to itself; it ends by
    the timeouts of its connection.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="storage", daemon=True)
    thread.start()
    thread.join(limit_s)
    if results:
        return results[0]
    if errors:
        raise errors[0]
    raise TimeoutError(f"no end after {limit_s:.0f} s")


def _is_final(error: OSError) -> bool:
    if isinstance(error, TimeoutError | ConnectionError):
        return False
    text = str(error).upper()
    return error.errno in _FINAL_ERRNOS or any(word in text for word in _FINAL_WORDS)
