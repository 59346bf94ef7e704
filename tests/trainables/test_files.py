"""Files and folders that appear whole or not at all, digests, and locks."""

import hashlib
import os
import threading

import pytest

from trainables import files


def write(new, path, content, **options):
    new.write_bytes(content)
    files.put_in_place(new, path, **options)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path, durable):
    path = tmp_path / "new folder" / "file"
    for content in (b"old", b"new"):
        with files.temporary(path) as new:
            write(new, path, content, durable=durable)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_folder_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path, durable):
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with files.temporary(path) as new:
            (new / "inside").mkdir(parents=True)
            (new / "inside" / name).touch()
            files.put_in_place(new, path, durable=durable)
        assert os.listdir(path / "inside") == [name]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_block_that_fails_leaves_the_old_content(tmp_path):
    def fail():
        with files.temporary(tmp_path / "file") as new:
            new.write_text("half")
            raise OSError("full")

    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="full"):
        fail()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    path, rename = tmp_path / "folder", type(tmp_path).rename
    path.mkdir()
    (path / "old").touch()

    def fail(source, target):
        if source.name.endswith(".tmp"):
            raise OSError("no")
        return rename(source, target)

    monkeypatch.setattr(type(path), "rename", fail)
    with files.temporary(path) as new:
        new.mkdir()
        with pytest.raises(OSError, match="no"):
            files.put_in_place(new, path)
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(path) == ["old"]


@pytest.mark.parametrize(("start", "size"), [(0, None), (5, None), (0, 600_000), (7, 300_000)])
def test_a_digest_is_that_of_the_chosen_bytes(tmp_path, start, size):
    content = os.urandom(700_000)
    (tmp_path / "file").write_bytes(content)
    end = None if size is None else start + size
    expected = hashlib.sha256(content[start:end]).hexdigest()
    assert files.sha256(tmp_path / "file", start, size) == expected


def test_a_lock_is_waited_for_until_the_callback_gives_up(tmp_path):
    path, waits = tmp_path / "folder" / "lock", []
    released = threading.Event()

    def hold():
        with files.exclusive_lock(path, waits.append) as file:
            file.write("holder")
            file.flush()
            held.set()
            released.wait(20)

    def give_up(file):
        file.seek(0)
        raise TimeoutError(file.read())

    held = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    with pytest.raises(TimeoutError, match="holder"), files.exclusive_lock(path, give_up):
        pass
    with files.exclusive_lock(path, lambda file: released.set()):
        assert released.is_set()
    thread.join()
    assert waits == []
