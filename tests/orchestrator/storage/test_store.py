"""The durable storage: whole or absent, tried again for a bounded time, and errors that help."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.failure_class import classify
from orchestrator.storage import retry
from orchestrator.storage import store as storage_store
from orchestrator.storage.store import Storage, StorageError, open_storage
from tests.faults.proxy import proxied
from tests.faults.stores import CREDENTIALS, new_bucket, s3_server


@pytest.fixture(params=["file", "s3"], scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A storage of each kind."""
    if request.param == "file":
        folder = tmp_path_factory.mktemp("a storage's folder")
        yield open_storage(folder.as_uri())
        return
    with pytest.MonkeyPatch.context() as patch, s3_server() as address:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield new_bucket(*address).storage()


@pytest.fixture
def place(store: Storage, request: pytest.FixtureRequest) -> Storage:
    return store.child(f"of {request.node.name}".replace("[", "-").replace("]", ""))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries that are over soon."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retry, "KEEP_TRYING_S", 0.2)


def test_bytes_and_files_come_back_as_they_were(place: Storage, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(range(256)) * 100)
    place.put("small", b"one")
    place.put("small", b"two")
    place.put("in/a/folder/big", tmp_path / "big")
    assert place.get("small") == b"two"
    assert place.get("none") is None
    assert place.get_file("in/a/folder/big", tmp_path / "new" / "back")
    assert (tmp_path / "new" / "back").read_bytes() == bytes(range(256)) * 100
    assert not place.get_file("none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_files_are_listed_until_they_are_deleted(place: Storage) -> None:
    assert place.files() == []
    assert place.folders() == []
    for name in ("a", "b/c", "b/d/e"):
        place.put(name, b"x")
    assert place.files() == ["a"]
    assert place.files(recursive=True) == ["a", "b/c", "b/d/e"]
    assert place.folders() == ["b"]
    assert place.exists("b/c")
    assert not place.exists("b")
    place.delete("a")
    place.delete("a")
    place.delete_folder("b/d")
    place.delete_folder("b/d")
    assert place.files(recursive=True) == ["b/c"]


def test_a_folder_without_its_last_file_is_not_whole(place: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("a", "b", "manifest.json"):
        (folder / name).write_text(name)
    place.put_folder(folder, "x", last="manifest.json")
    assert place.files("x") == ["a", "b", "manifest.json"]
    back = tmp_path / "back"
    back.mkdir()
    (back / "old").touch()
    assert place.get_folder("x", back, mark="manifest.json")
    assert sorted(path.name for path in back.iterdir()) == ["a", "b", "manifest.json"]
    place.delete("x/manifest.json")
    assert not place.get_folder("x", tmp_path / "none", mark="manifest.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "checkpoint"]


def test_a_slow_upload_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("a", "manifest.json"):
        (folder / name).write_text(name)
    place = open_storage((tmp_path / "storage").as_uri())
    put = place.put

    def slowly(name: str, *arguments: object) -> None:
        time.sleep(0.5)
        put(name, *arguments)

    monkeypatch.setattr(storage_store, "ALIVE_EVERY_S", 0.1)
    monkeypatch.setattr(type(place), "put", lambda self, *arguments: slowly(*arguments))
    signs: list[float] = []
    place.put_folder(
        folder, "x", last="manifest.json", alive=lambda: signs.append(time.monotonic())
    )
    assert len(signs) >= 4
    assert place.files("x") == ["a", "manifest.json"]


def test_the_last_file_of_a_folder_is_not_written_when_another_fails(
    hasty: None, tmp_path: Path
) -> None:
    folder, target = tmp_path / "checkpoint", tmp_path / "storage"
    folder.mkdir()
    for name in ("a", "manifest.json"):
        (folder / name).write_text(name)
    (target / "x" / "a").mkdir(parents=True)  # in the way
    (target / "x" / "a" / "file").touch()
    with pytest.raises(StorageError):
        open_storage(target.as_uri()).put_folder(folder, "x", last="manifest.json")
    assert not (target / "x" / "manifest.json").exists()


def test_the_age_of_a_file_is_measured_by_the_stores_clock(place: Storage) -> None:
    assert place.age_s("lease") is None
    place.put("lease", b"x")
    time.sleep(1.2)  # S3 counts whole seconds
    age_s = place.age_s("lease")
    assert age_s is not None
    assert 0.9 <= age_s <= 3
    assert place.files() == ["lease"]


def test_failed_calls_are_repeated_for_a_bounded_time(
    hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fail_twice(self: Storage, path: str, source: bytes) -> None:
        tries.append(path)
        if len(tries) < 3:
            raise OSError("AWS Error SLOW_DOWN")
        Path(path).write_bytes(source)

    monkeypatch.setattr(Storage, "_write", fail_twice)
    place = open_storage(tmp_path.as_uri())
    place.put("a", b"x")
    assert (len(tries), place.get("a")) == (3, b"x")

    def fail(self: Storage, path: str, source: bytes) -> None:
        raise OSError("AWS Error SLOW_DOWN of s3://me:secret-word@host/x")

    monkeypatch.setattr(Storage, "_write", fail)
    began_s = time.monotonic()
    with pytest.raises(StorageError) as caught:
        place.put("b", b"x")
    assert time.monotonic() - began_s < 2
    assert "must be reachable and writable, but could not write b" in str(caught.value)
    assert "tries in" in str(caught.value)
    assert "secret-word" not in str(caught.value)
    assert classify(caught.value) == "disk"
    assert not list(tmp_path.glob(".*"))


def test_a_call_that_does_not_return_fails(
    hasty: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(retry, "TRY_S", 0.1)
    monkeypatch.setattr(Storage, "_write", lambda *_: released.wait(20))
    began_s = time.monotonic()
    with pytest.raises(StorageError, match="no end after 0 s"):
        open_storage(tmp_path.as_uri()).put("a", b"x")
    assert time.monotonic() - began_s < 2
    released.set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_read_only_storage_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(self: Storage, path: str, source: bytes) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(Storage, "_write", fail)
    with pytest.raises(StorageError, match="1 try in 0 s") as caught:
        open_storage(tmp_path.as_uri()).put("a", b"x")
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("ftp://host/x", "s3://bucket/prefix"),
        ("s3:///x", "s3://bucket/prefix"),
        ("s3://bucket/x?colour=red", "endpoint_override"),
        ("file://host/x", "three slashes"),
        ("file:///", "three slashes"),
    ],
)
def test_the_error_for_a_wrong_address_shows_the_right_form(uri: str, told: str) -> None:
    with pytest.raises(StorageError, match=told):
        open_storage(uri)


def test_secrets_of_an_address_are_not_shown() -> None:
    place = open_storage("s3://user:pass-word@bucket/x?endpoint_override=127.0.0.1:1&scheme=http")
    assert "pass-word" in place.uri  # a worker needs it
    assert "pass-word" not in place.shown
    assert place.child("name").prefix == "bucket/x/name"
    with pytest.raises(StorageError) as caught:
        open_storage("s3://user:pass-word@bucket/x?wrong=1")
    assert "pass-word" not in str(caught.value)


def test_the_endpoint_comes_from_the_environment_and_travels_in_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage_store.open_storage.cache_clear()
    place = open_storage("s3://bucket/from-the-environment")
    assert place.uri.endswith("?endpoint_override=127.0.0.1%3A9&scheme=http")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert open_storage(place.uri).uri == place.uri


def test_uploads_over_a_slow_or_broken_connection_are_whole_or_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Case 51: 10 kB/s, and connections that end in the middle of an upload."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_server() as address, proxied(*address) as proxy:
        bucket = new_bucket(*address)
        place = open_storage(bucket.uri(proxy.port))
        content = bytes(range(250)) * 120  # 30 kB
        place.put("a", b"before")
        proxy.mode = "slow"
        began_s = time.monotonic()
        place.put("a", content)
        assert time.monotonic() - began_s > 2
        assert bucket.storage().get("a") == content
        proxy.mode = "cut"
        with pytest.raises(StorageError):
            place.put("a", content[::-1], keep_trying_s=2)
        assert bucket.storage().get("a") == content
        threading.Timer(1.0, lambda: setattr(proxy, "mode", "pass")).start()
        place.put("a", content[::-1])
        assert bucket.storage().get("a") == content[::-1]
