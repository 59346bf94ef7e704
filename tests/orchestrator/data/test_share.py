"""A dataset at an address is fetched once, checked, and never taken for another one."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.data import share
from orchestrator.data.prepared import prepared_at
from trainables.data.dataset import DatasetError, load_manifest


@pytest.fixture
def address(tmp_path: Path, digits_dir: Path) -> str:
    address = (tmp_path / "shared").as_uri()
    share.publish(digits_dir, address)
    return address


def test_a_fetched_dataset_equals_the_published_one(
    tmp_path: Path, address: str, digits_dir: Path
) -> None:
    folder = tmp_path / "host" / "digits"
    manifest = share.fetch(address, folder)
    assert manifest == load_manifest(digits_dir)
    for file in ("train.arrow", "test.arrow", "manifest.json"):
        assert (folder / file).read_bytes() == (digits_dir / file).read_bytes()
    (listed,) = prepared_at(address)
    assert listed.folder.name == "digits"
    assert listed.disk_bytes == sum(file.stat().st_size for file in digits_dir.glob("*.arrow"))


def test_many_trials_of_a_host_fetch_once(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "host" / "digits"
    fetched = []
    original = share._check
    monkeypatch.setattr(share, "_check", lambda *a: (fetched.append(a), original(*a))[1])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: share.fetch(address, folder), range(8)))
    assert len(fetched) == 1
    assert [path.name for path in folder.parent.iterdir() if path.name != ".digits.fetch"] == [
        "digits"
    ]


def test_a_copy_with_the_right_fingerprint_needs_no_address(
    tmp_path: Path, address: str, digits_dir: Path
) -> None:
    folder = tmp_path / "host" / "digits"
    fingerprint = load_manifest(digits_dir).fingerprint
    share.ensure(address, folder, fingerprint)
    shutil.rmtree(tmp_path / "shared")
    share.ensure(address, folder, fingerprint)
    assert load_manifest(folder) == load_manifest(digits_dir)


def test_a_process_that_waits_for_another_one_gives_signs_of_life(
    tmp_path: Path, address: str
) -> None:
    folder = tmp_path / "host" / "digits"
    folder.parent.mkdir()
    signs = threading.Event()
    with (folder.parent / ".digits.fetch").open("a") as held, ThreadPoolExecutor(1) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = pool.submit(share.fetch, address, folder, signs.set)
        assert signs.wait(10)
        assert not folder.exists()
        fcntl.flock(held, fcntl.LOCK_UN)
        assert waiting.result(20) is not None


def test_a_copy_of_another_dataset_is_replaced(tmp_path: Path, address: str) -> None:
    folder = tmp_path / "host" / "digits"
    share.fetch(address, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "old"}))
    found = share.fetch(address, folder)
    assert found is not None
    assert found.fingerprint == manifest["fingerprint"]


def test_damaged_files_are_refused_and_leave_nothing(tmp_path: Path, address: str) -> None:
    file = tmp_path / "shared" / "digits" / "train.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"train\.arrow of the dataset at .* does not match its"):
        share.fetch(address, tmp_path / "host" / "digits")
    assert [path.name for path in (tmp_path / "host").iterdir()] == [".digits.fetch"]


def test_an_incomplete_dataset_at_the_address_is_not_fetched(tmp_path: Path, address: str) -> None:
    (tmp_path / "shared" / "digits" / "manifest.json").unlink()
    folder = tmp_path / "host" / "digits"
    assert share.fetch(address, folder) is None
    with pytest.raises(DatasetError, match="holds no prepared dataset 'digits'"):
        share.ensure(address, folder, "any")


def test_another_dataset_of_that_name_is_not_overwritten(
    tmp_path: Path, address: str, digits_dir: Path
) -> None:
    other = tmp_path / "digits"
    shutil.copytree(digits_dir, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "another"}))
    with pytest.raises(DatasetError, match="holds another dataset 'digits' already"):
        share.publish(other, address)
    share.publish(digits_dir, address)  # the same one again is no conflict
