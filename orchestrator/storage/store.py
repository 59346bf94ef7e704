"""A sweep's durable storage: a folder in an S3-compatible store, or on a shared file system.

The only module that uses pyarrow's file systems. A failed call is repeated for a bounded time and
ends in a `StorageError` whose text a user can act on. Every file is whole: an object store shows an
object once all of it has arrived, and a file is written under a temporary name and renamed.
"""

from __future__ import annotations

import functools
import io
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.redaction import redacted
from orchestrator.storage.retry import GaveUpError, Result, retried
from trainables import files

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CONNECT_S = 5.0  # seconds until an unanswered connection counts as failed
SILENCE_S = 10.0  # seconds without a byte after which a request counts as failed
ALIVE_EVERY_S = 5.0  # seconds between signs of life while files are transferred
AT_ONCE = 4  # files of a folder that are transferred at the same time

_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")


class StorageError(OrchestratorError, OSError):
    """The storage cannot be reached, read or written; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder in a store. Names are relative to it, with "/" between their parts."""

    uri: str  # resolved; may hold a password, so texts use `shown`
    prefix: str
    filesystem: FileSystem
    clock: Clock = field(default_factory=Clock, compare=False)  # for pauses between tries

    @property
    def shown(self) -> str:
        """The address without secrets."""
        return redacted(self.uri)

    def child(self, name: str) -> Storage:
        """Return the storage of a folder in this one."""
        head, mark, query = self.uri.partition("?")
        uri = f"{head.rstrip('/')}/{urllib.parse.quote(name)}{mark}{query}"
        return replace(self, uri=uri, prefix=f"{self.prefix}/{name}")

    def put(self, name: str, source: Path | bytes, *, keep_trying_s: float | None = None) -> None:
        """Write a file, replacing an old one; no reader ever finds a part of it.

        Raises:
            StorageError: it could not be written in time. An old file is unharmed.
            OSError: the local file cannot be read.
        """
        size = len(source) if isinstance(source, bytes) else source.stat().st_size

        def write() -> None:
            if self.uri.startswith("s3://"):  # an object is whole or absent
                self._write(f"{self.prefix}/{name}", source)
                return
            place = Path(self.prefix, name)
            with files.temporary(place) as new:
                self._write(str(new), source)
                files.put_in_place(new, place)

        self._try(f"write {name}", write, size, keep_trying_s)

    def get(self, name: str, *, keep_trying_s: float | None = None) -> bytes | None:
        """Return a small file's content; None if there is no such file.

        Raises:
            StorageError: it could not be read in time.
        """
        path = f"{self.prefix}/{name}"

        def read() -> bytes | None:
            with suppress(FileNotFoundError), self.filesystem.open_input_stream(path) as file:
                return bytes(file.read())
            return None

        return self._try(f"read {name}", read, keep_trying_s=keep_trying_s)

    def get_file(self, name: str, target: Path) -> bool:
        """Copy a file to the local disk, whole; return False if there is none.

        Raises:
            StorageError: it could not be read in time.
            OSError: the local disk cannot be written.
        """
        path, size = f"{self.prefix}/{name}", self.size(name)
        if size is None:
            return False
        with files.temporary(target) as new:

            def read() -> None:
                with self.filesystem.open_input_stream(path) as file, new.open("wb") as local:
                    shutil.copyfileobj(file, local, 2**20)

            self._try(f"read {name}", read, size)
            files.put_in_place(new, target, durable=False)
        return True

    def put_folder(
        self, folder: Path, name: str, *, last: str, alive: Callable[[], None] | None = None
    ) -> None:
        """Copy the files of a local folder to the storage; the `last` one marks it as whole.

        `alive` is called every few seconds while files are transferred.

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
        """Replace a local folder by the storage's, if that is whole; return whether it is.

        `mark` is the file that marks a folder as whole; `alive` is called as by `put_folder`.

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
        """Return the sorted names of the files in a folder, relative to it."""
        return self._list(name, "File", recursive)

    def folders(self, name: str = "") -> list[str]:
        """Return the sorted names of the folders in a folder."""
        return self._list(name, "Directory", False)

    def delete_folder(self, name: str) -> None:
        """Delete a folder and its content, if it exists."""
        self._delete(name, self.filesystem.delete_dir)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        self._delete(name, self.filesystem.delete_file)

    def _delete(self, name: str, call: Callable[[str], None]) -> None:
        def delete() -> None:
            with suppress(FileNotFoundError):
                call(f"{self.prefix}/{name}")

        self._try(f"delete {name}", delete)

    def age_s(self, name: str) -> float | None:
        """Return a file's age in seconds by the store's own clock; None if there is no such file.

        A file is written for a moment to read the store's clock.
        """
        probe = f".now-{uuid.uuid4().hex[:8]}"
        self.put(probe, b"")
        try:
            old, now = (self._info(each) for each in (name, probe))
        finally:
            self.delete(probe)
        if old is None or now is None:
            return None
        return float(now.mtime_ns - old.mtime_ns) / 1e9

    def _write(self, path: str, source: Path | bytes) -> None:
        # Small sources are read first: closing the stream creates the object, and an error in
        # between would close it too.
        if isinstance(source, Path) and source.stat().st_size <= 2**26:
            source = source.read_bytes()
        local = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        with local, self.filesystem.open_output_stream(path) as file:
            shutil.copyfileobj(local, file, 2**23)

    def _info(self, name: str) -> Any:
        from pyarrow.fs import FileType

        path = f"{self.prefix}/{name}"
        info = self._try(f"look for {name}", lambda: self.filesystem.get_file_info(path))
        return info if info.type == FileType.File else None

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes; None if there is no such file."""
        info = self._info(name)
        return None if info is None else int(info.size)

    def _list(self, name: str, kind: str, recursive: bool) -> list[str]:
        from pyarrow.fs import FileSelector

        folder = f"{self.prefix}/{name}".rstrip("/")
        selector = FileSelector(folder, allow_not_found=True, recursive=recursive)
        what = f"list {name or 'its content'}"
        found = self._try(what, lambda: self.filesystem.get_file_info(selector))
        return sorted(each.path[len(folder) + 1 :] for each in found if each.type.name == kind)

    def _try(
        self, do: str, call: Callable[[], Result], size: int = 0, keep_trying_s: float | None = None
    ) -> Result:
        """Return the result of a call, repeated for a bounded time; `do` completes the error."""
        try:
            return retried(call, size, keep_trying_s, self.clock)
        except GaveUpError as failure:
            error = StorageError(
                f"The storage at {self.shown} must be reachable and writable, but could not "
                f"{do}: {redacted(str(failure))}. Check the address, the credentials and the "
                "network, or the space that is left there; then run the same command with --resume."
            )
            error.errno = failure.errno
            raise error from failure


def _all(under_way: set[Future[Result]], alive: Callable[[], None] | None) -> list[Result]:
    """Return the results of all transfers, with signs of life; raise the error of a failed one."""
    results: list[Result] = []
    while under_way:
        done, under_way = wait(under_way, timeout=ALIVE_EVERY_S)
        results += [one.result() for one in done]
        if alive:
            alive()
    return results


@functools.lru_cache(maxsize=32)
def open_storage(uri: str) -> Storage:
    """Return the storage at `s3://bucket/prefix` or `file:///folder`, without connecting to it.

    pyarrow's options `endpoint_override`, `scheme`, `region` and `tls_ca_file_path` follow a "?".
    The default endpoint is `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`. Credentials are AWS's usual
    ones: environment variables, files, the machine's role.

    Raises:
        StorageError: the address has another form.
    """
    parts = urllib.parse.urlsplit(uri)
    path = urllib.parse.unquote(parts.path)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not path.strip("/"):
            raise StorageError(
                "A storage on a file system is file:///folder with three slashes; got "
                f"{redacted(uri)!r}."
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

    given, environment = dict(options), os.environ
    if parts.username and parts.password:
        given["access_key"] = urllib.parse.unquote(parts.username)
        given["secret_key"] = urllib.parse.unquote(parts.password)
    if "region" not in given and "endpoint_override" in given:
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
        given["region"] = region or "us-east-1"
    return S3FileSystem(
        **given,
        connect_timeout=CONNECT_S,
        request_timeout=SILENCE_S,  # works on Linux too, against pyarrow's documentation
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),  # `retried` repeats them
        allow_delayed_open=True,  # one request for a small file instead of three
    )


def _add_endpoint(options: dict[str, str]) -> None:
    """Add the endpoint of the environment if the address has none."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url and "endpoint_override" not in options:
        parts = urllib.parse.urlsplit(url if "://" in url else f"https://{url}")
        options["endpoint_override"] = parts.netloc.rpartition("@")[2]
        options.setdefault("scheme", parts.scheme)
