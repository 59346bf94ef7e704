"""Downloads from a server on this machine that misbehaves in the known ways."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.data import __main__ as data
from orchestrator.data import download, prepare, progress
from orchestrator.data.known_datasets import KNOWN
from orchestrator.errors import UsageError
from tests.orchestrator.data import archive_files as sources

CONTENT = np.random.default_rng(0).bytes(1_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server holds, how it behaves, and what it was asked for."""

    address: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # bytes sent, per answer; then whole
    status: int = 200
    asked: list[str | None] = field(default_factory=list)  # the Range header of every request
    authorization: str | None = None  # of the last request


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            state.authorization = self.headers.get("Authorization")
            if state.status != 200:
                self.send_error(state.status)
                return
            fresh = self.headers.get("If-Range") in (None, state.etag)
            start = int(asked[6:-1]) if asked and state.ranges and fresh else 0
            if start and start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.end_headers()
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                total = len(state.content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(len(body)))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.end_headers()
            self.wfile.write(body[: state.break_after.pop(0)] if state.break_after else body)

        def log_message(self, *_: object) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "RETRY_PAUSE_S", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        state.address = f"http://127.0.0.1:{listening.server_port}/file.bin"
        yield state
        listening.shutdown()
        thread.join()


def _fetch(server: Server, folder: Path, md5: str | None = MD5) -> Path:
    file = folder / "file.bin"
    download.download(server.address, file, md5=md5, shown=False)
    return file


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_whole_file_arrives_under_its_name_only(server: Server, tmp_path: Path) -> None:
    assert _fetch(server, tmp_path).read_bytes() == CONTENT
    assert _names(tmp_path) == ["file.bin"]
    assert server.asked == [None]


def test_existing_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"mine")
    assert _fetch(server, tmp_path).read_bytes() == b"mine"
    assert server.asked == []


def test_a_broken_download_is_resumed(server: Server, tmp_path: Path) -> None:
    server.break_after = [300_000, 400_000]
    assert _fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=700000-"]
    assert _names(tmp_path) == ["file.bin"]


def test_an_interrupted_download_is_resumed_by_the_next_command(
    server: Server, tmp_path: Path
) -> None:
    server.break_after = [300_000, 0, 0, 0]
    with pytest.raises(UsageError, match="The 300,000 bytes that arrived are kept"):
        _fetch(server, tmp_path)
    assert _names(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    server.asked.clear()
    assert _fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=300000-"]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.break_after = [300_000]
    assert _fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_two_versions_are_never_joined(server: Server, tmp_path: Path) -> None:
    """No checksum would tell: the file changed on the server between two tries."""
    server.break_after = [300_000, 0, 0, 0]
    with pytest.raises(UsageError):
        _fetch(server, tmp_path, md5=None)
    server.content, server.etag = b"new" * 200_000, '"two"'
    assert _fetch(server, tmp_path, md5=None).read_bytes() == b"new" * 200_000


def test_the_part_of_another_address_is_not_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 500)
    about = {"address": "http://elsewhere/file.bin", "version": '"one"'}
    (tmp_path / "file.bin.part.json").write_text(json.dumps(about))
    assert _fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_part_that_is_already_whole_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    about = {"address": server.address, "version": '"one"'}
    (tmp_path / "file.bin.part.json").write_text(json.dumps(about))
    assert _fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000000-"]


def test_a_part_that_is_too_long_is_discarded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    about = {"address": server.address, "version": '"one"'}
    (tmp_path / "file.bin.part.json").write_text(json.dumps(about))
    assert _fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000004-", None]


def test_a_download_that_is_always_cut_off_fails(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.break_after = [999_999] * 10
    with pytest.raises(UsageError, match=r"broke off \(999,999 of 1,000,000 bytes arrived\)"):
        _fetch(server, tmp_path, md5=None)
    assert not (tmp_path / "file.bin").exists()


def test_a_file_with_a_wrong_checksum_is_deleted(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(UsageError, match=f"must have the published MD5 checksum {MD5}"):
        _fetch(server, tmp_path)
    assert _names(tmp_path) == []


def test_a_missing_file_fails_at_once(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UsageError, match=r"answers with status 404 .* put it at .*file\.bin"):
        _fetch(server, tmp_path)
    assert len(server.asked) == 1
    assert _names(tmp_path) == []


def test_server_error_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(UsageError, match=r"broke off \(status 503"):
        _fetch(server, tmp_path)
    assert len(server.asked) == download.FRUITLESS_TRIES


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host/x", "http:///x"])
def test_other_kinds_of_address_are_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="must start with http:// or https://"):
        download.download(address, tmp_path / "x", shown=True)


def test_progress_is_printed_as_lines(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download.download(server.address, tmp_path / "file.bin", shown=True)
    err = capsys.readouterr().err
    assert err.startswith("Downloading file.bin: 1.0 MiB of 1.0 MiB, ")
    assert err.count("\n") == 1


def test_the_rate_of_a_resumed_download_leaves_out_earlier_bytes(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.break_after = [600_000, 0, 0, 0]
    with pytest.raises(UsageError):
        _fetch(server, tmp_path)
    capsys.readouterr()
    clock = chain([0.0], repeat(2.0))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    download.download(server.address, tmp_path / "file.bin", shown=True)
    # 400,000 bytes in 2 s.
    assert capsys.readouterr().err == "Downloading file.bin: 1.0 MiB of 1.0 MiB, 0.2 MiB/s\n"


def test_dataset_is_prepared_from_an_address(server: Server, tmp_path: Path) -> None:
    server.content = sources.write_tar(tmp_path / "c.tar.gz", sources.cifar10()).read_bytes()
    bare = server.address.replace("file.bin", "c10.tgz")
    address = bare.replace("//", "//user:passw0rd@") + "?token=t0ken"
    where = tmp_path / "data"
    folder = prepare.prepare("cifar10", data_dir=where, source=address, progress=False)
    assert server.authorization == "Basic dXNlcjpwYXNzdzByZA=="
    text = (folder / "manifest.json").read_text()
    assert json.loads(text)["source"]["address"] == bare
    assert "passw0rd" not in text
    assert "t0ken" not in text
    # Neither the prepared folder nor the archive is fetched a second time.
    prepare.prepare("cifar10", data_dir=where, source=address, progress=False)
    prepare.prepare("cifar10", data_dir=where, source=address, name="again", progress=False)
    assert len(server.asked) == 1


def test_secrets_of_an_address_are_in_no_error(server: Server, tmp_path: Path) -> None:
    server.status = 404
    address = server.address.replace("//", "//user:passw0rd@") + "?token=t0ken"
    with pytest.raises(UsageError) as caught:
        download.download(address, tmp_path / "x", shown=False)
    assert str(caught.value).startswith(f"{server.address} answers with status 404")
    assert "passw0rd" not in str(caught.value)
    assert "t0ken" not in str(caught.value)


def test_the_error_without_a_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as listening:
        port = listening.server_port  # closed a moment later: nobody listens there
    address = f"http://127.0.0.1:{port}/tiny-imagenet-200.zip"
    known = replace(KNOWN["tinyimagenet"], address=address)
    monkeypatch.setitem(KNOWN, "tinyimagenet", known)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert data.main(["prepare", "tinyimagenet", "--data-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{address} cannot be reached from here (")
    assert f"put the file at {tmp_path / 'tiny-imagenet-200.zip'} and run the same command" in err
    assert err.count("\n") == 1


def test_known_addresses_and_checksums_are_the_published_ones() -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    assert KNOWN["cifar10"].address == CIFAR10.url
    assert KNOWN["cifar10"].md5 == CIFAR10.tgz_md5
    assert KNOWN["cifar100"].address == CIFAR100.url
    assert KNOWN["cifar100"].md5 == CIFAR100.tgz_md5
    tiny = KNOWN["tinyimagenet"]
    assert tiny.address == "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
