"""Checkpoints are whole or absent whatever happens, damage is found, and no pickle is run."""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainables import files
from trainables.training import checkpoint
from trainables.training.checkpoint import CheckpointError

FILES = ["average.safetensors", "manifest.json", "model.safetensors", "optimizer.pt", "state.json"]


def save(folder: Path, number: float, **replaced: Any) -> None:
    """Write a checkpoint that holds `number` in each of its files."""
    values = {
        "weights": {
            "model": {"w": torch.full((2, 3), number)},
            "average": {"w": torch.full((2, 3), number / 2)},
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.full((3,), number)}}, "lr": number},
        "state": {"epoch": 3, "number": number},
        **replaced,
    }
    checkpoint.save(folder, **values)


def number_in(folder: Path) -> float:
    """Load a checkpoint of `save` and return its number, which all files must agree on."""
    weights, optimizer, state = checkpoint.load(folder)
    number = state["number"]
    assert torch.equal(weights["model"]["w"], torch.full((2, 3), number))
    assert torch.equal(weights["average"]["w"], torch.full((2, 3), number / 2))
    assert torch.equal(optimizer["state"][0]["momentum_buffer"], torch.full((3,), number))
    assert optimizer["lr"] == number
    return number


def test_what_was_saved_is_loaded(tmp_path):
    save(tmp_path / "epoch_0000", 1.5)
    assert number_in(tmp_path / "epoch_0000") == 1.5
    assert sorted(path.name for path in (tmp_path / "epoch_0000").iterdir()) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_0000"]


def test_a_checkpoint_replaces_the_one_before(tmp_path):
    save(tmp_path / "epoch_0000", 1.0)
    save(tmp_path / "epoch_0000", 2.0)
    assert number_in(tmp_path / "epoch_0000") == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_0000"]


def test_too_little_memory_to_load_is_not_reported_as_damage(tmp_path, monkeypatch):
    save(tmp_path / "a", 1.0)

    def too_little(path):
        raise RuntimeError(
            f"unable to mmap 9 bytes from file <{path}>: Cannot allocate memory (12)"
        )

    monkeypatch.setattr(checkpoint, "load_file", too_little)
    with pytest.raises(MemoryError, match="could not be read: unable to mmap"):
        checkpoint.load(tmp_path / "a")


def test_weights_in_any_memory_format_survive(tmp_path):
    model = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    whole = torch.arange(12.0).view(3, 4)
    shared = torch.arange(3.0)
    weights = {
        **model.state_dict(),
        "transposed": whole.T,
        "row": whole[1],
        "column": whole[:, 1],
        "one": shared,
        "same": shared,
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 2),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }
    assert not weights["weight"].is_contiguous()
    moments = {"state": {0: {"exp_avg": torch.zeros_like(model.weight).normal_()}}}
    save(tmp_path / "c", 1.0, weights={"model": weights}, optimizer=moments)
    loaded, optimizer, _ = checkpoint.load(tmp_path / "c")
    assert loaded["model"].keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(loaded["model"][name], tensor), name
        assert loaded["model"][name].dtype == tensor.dtype
    assert torch.equal(optimizer["state"][0]["exp_avg"], moments["state"][0]["exp_avg"])


# --- interruptions -------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


class Countdown:
    """Stands before every file operation of a save and ends it at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> None:
        self.kill_at, self.operations = kill_at, 0
        self.error: BaseException = Killed()
        self.is_dead = False
        for owner, name in (
            (Path, "mkdir"),
            (Path, "write_bytes"),
            (Path, "write_text"),
            (Path, "rename"),
            (files, "fsync"),
            (shutil, "rmtree"),
        ):
            monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def guarded(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **options: Any) -> Any:
            if self.is_dead:  # a killed process cleans nothing up
                raise self.error
            if self.operations == self.kill_at:
                # Half of a file may be there, and half of a folder gone.
                if operation.__name__ in ("write_bytes", "write_text"):
                    args[0].touch()
                if operation.__name__ == "rmtree" and (args[0] / "state.json").exists():
                    (args[0] / "state.json").unlink()
                self.is_dead = isinstance(self.error, Killed)
                self.operations += 1
                raise self.error
            self.operations += 1
            return operation(*args, **options)

        stand_in.__name__ = operation.__name__
        return stand_in


def operations_of_a_save(folder: Path, *, replaces: bool) -> int:
    if replaces:
        save(folder, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        countdown = Countdown(patch, None)
        save(folder, 2.0)
    return countdown.operations


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_save_that_ends_anywhere_leaves_nothing_or_all(tmp_path, error):
    operations = operations_of_a_save(tmp_path / "count", replaces=False)
    assert operations >= 13  # 5 files written, 6 flushes, the folder, its rename
    outcomes = []
    for kill_at in range(operations):
        folder = tmp_path / f"new_{kill_at}"
        with pytest.MonkeyPatch.context() as patch:
            Countdown(patch, kill_at).error = error
            with pytest.raises(type(error)):
                save(folder, 2.0)
        whole = checkpoint.newest_valid([folder])
        assert whole == (folder if folder.exists() else None)
        outcomes.append(whole is not None and number_in(folder) == 2.0)
        # The next attempt at it is not in the way of what is left.
        save(folder, 3.0)
        assert number_in(folder) == 3.0
    assert outcomes == sorted(outcomes)  # nothing until the rename, all of it from then on
    assert True in outcomes
    assert False in outcomes


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_replacement_that_ends_anywhere_leaves_the_old_or_the_new(tmp_path, error):
    operations = operations_of_a_save(tmp_path / "count", replaces=True)
    numbers = []
    for kill_at in range(operations):
        folder = tmp_path / f"old_{kill_at}"
        save(folder, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            Countdown(patch, kill_at).error = error
            with pytest.raises(type(error)):
                save(folder, 2.0)
        assert checkpoint.newest_valid([folder]) == folder
        numbers.append(number_in(folder))
        save(folder, 3.0)
        assert number_in(folder) == 3.0
    assert set(numbers) == {1.0, 2.0}
    assert numbers == sorted(numbers)


def test_a_failed_save_leaves_no_files(tmp_path, monkeypatch):
    countdown = Countdown(monkeypatch, 5)
    countdown.error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "c", 1.0)
    assert list(tmp_path.iterdir()) == []


def test_everything_is_flushed_before_it_is_renamed_into_place(tmp_path, monkeypatch):
    seen = []
    flush, rename = files.fsync, Path.rename
    monkeypatch.setattr(files, "fsync", lambda path: (seen.append(path.name), flush(path)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (seen.append("rename"), rename(a, b))[1])
    save(tmp_path / "c", 1.0)
    assert sorted(seen[:5]) == FILES
    assert seen[5].endswith(".tmp")
    assert seen[6:] == ["rename", tmp_path.name]


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_in_every_file(tmp_path, name):
    save(tmp_path / "c", 1.0)
    path = tmp_path / "c" / name
    content = bytearray(path.read_bytes())
    places = {0, len(content) // 3, len(content) // 2, len(content) - 1}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"is damaged|is not a whole checkpoint"):
            checkpoint.verify(tmp_path / "c")
    path.write_bytes(content)
    checkpoint.verify(tmp_path / "c")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_cut_file_is_found(tmp_path, name, keep):
    save(tmp_path / "c", 1.0)
    path = tmp_path / "c" / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(tmp_path, name):
    save(tmp_path / "c", 1.0)
    (tmp_path / "c" / name).unlink()
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        checkpoint.verify(tmp_path / "c")


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"sha256": {}}', '{"sha256": []}'])
def test_a_manifest_without_digests_is_refused(tmp_path, text):
    save(tmp_path / "c", 1.0)
    (tmp_path / "c" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError):
        checkpoint.verify(tmp_path / "c")


def test_a_file_the_manifest_does_not_name_is_not_read(tmp_path):
    save(tmp_path / "c", 1.0)
    (tmp_path / "c" / "more.safetensors").write_bytes(b"no tensors")
    assert set(checkpoint.load(tmp_path / "c")[0]) == {"model", "average"}


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        checkpoint.load(tmp_path / "none")


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    folders = [tmp_path / f"epoch_{epoch:04d}" for epoch in (3, 2, 1, 0)]
    for folder in folders[1:]:
        save(folder, 1.0)
    (folders[1] / "model.safetensors").write_bytes(b"")
    assert checkpoint.newest_valid(folders) == folders[2]
    assert checkpoint.newest_valid(folders[:2]) is None
    assert checkpoint.newest_valid([]) is None


# --- no pickle -----------------------------------------------------------------------------------


class Malice:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


def bare_pickle(what: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(what, protocol=2))


@pytest.mark.parametrize("write", [torch.save, bare_pickle])
def test_a_malicious_optimizer_file_is_refused_and_not_run(tmp_path, write):
    save(tmp_path / "c", 1.0)
    path = tmp_path / "c" / "optimizer.pt"
    write({"state": Malice(tmp_path / "executed")}, path)
    # Whoever can write the file can write its digest too.
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    manifest["sha256"]["optimizer.pt"] = files.sha256(path)
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    checkpoint.verify(tmp_path / "c")
    with pytest.raises(CheckpointError, match="holds more than tensors and is not read"):
        checkpoint.load(tmp_path / "c")
    assert not (tmp_path / "executed").exists()


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(CheckpointError("damaged")))
    assert (type(error), str(error)) == (CheckpointError, "damaged")
