"""Checkpoints, written completely or not at all and loaded without pickle.

A checkpoint is a folder: safetensors for weights, `optimizer.pt` (read with `weights_only`), JSON
for the rest, and `manifest.json` with the SHA-256 of every file. It is written under a temporary
name, flushed to the disk, then renamed; loading verifies every byte.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from trainables import files

MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, incomplete or of another trial."""


def save(
    folder: Path,
    *,
    weights: Mapping[str, Mapping[str, Tensor]],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint durably; at any time `load` finds the whole of it or the previous one.

    `weights` are state dicts by name, each written as `<name>.safetensors`; `optimizer` is a state
    dict of tensors, numbers, lists and dicts only; `state` is JSON-ready: epoch, metrics,
    configuration. An existing folder is replaced.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    with files.temporary(folder) as temporary:
        temporary.mkdir()
        # Through memory, because the libraries' own writers raise no OSError on a full disk.
        for name, tensors in weights.items():
            (temporary / f"{name}.safetensors").write_bytes(to_bytes(_owned(tensors)))
        packed = io.BytesIO()
        torch.save(dict(optimizer), packed)
        (temporary / "optimizer.pt").write_bytes(packed.getbuffer())
        (temporary / "state.json").write_text(json.dumps(state, sort_keys=True))
        digests = {path.name: files.sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"sha256": digests}, sort_keys=True))
        files.put_in_place(temporary, folder)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """Return a checkpoint's weights by name, the optimizer's state dict and the state, on the CPU.

    Raises:
        CheckpointError: a file is missing, damaged, or not of the form that `save` writes.
        MemoryError: there is too little memory for it.
    """
    place, names = verify(folder)
    try:
        weights = {
            name.removesuffix(".safetensors"): load_file(place / name)
            for name in names
            if name.endswith(".safetensors")
        }
        state = _state(place)
    except MemoryError:
        raise
    except Exception as error:  # a foreign file can have the right digest
        if "allocate memory" in str(error):  # torch's RuntimeError when it maps the file
            raise MemoryError(f"{place} could not be read: {error}.") from error
        raise CheckpointError(f"{place} is not a checkpoint of ours: {error}.") from error
    try:
        optimizer = torch.load(place / "optimizer.pt", weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # a foreign file can raise nearly anything
        raise CheckpointError(
            f"{place / 'optimizer.pt'} holds more than tensors and is not read: {error}."
        ) from error
    return weights, optimizer, state


def read_state(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder with a checkpoint's files and its state, after verifying every file.

    Raises:
        CheckpointError: a file is missing, not what the manifest says, or not what `save` writes.
    """
    place, _ = verify(folder)
    try:
        return place, _state(place)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{place} is not a checkpoint of ours: {error}.") from error


def _state(place: Path) -> dict[str, Any]:
    state = json.loads((place / "state.json").read_text())
    if not isinstance(state, dict):
        raise TypeError(f"state.json holds a {type(state).__name__}, not a dictionary")
    return state


def verify(folder: Path) -> tuple[Path, list[str]]:
    """Compare every file with the manifest; return the checkpoint's place and its files' names.

    Raises:
        CheckpointError: a file is missing or damaged; the text names it.
    """
    replaced = files.replaced(folder)
    # Left by a process that died while it replaced a checkpoint.
    place = replaced if replaced.exists() and not folder.exists() else folder
    try:
        digests: dict[str, str] = json.loads((place / MANIFEST).read_text())["sha256"]
        if any(Path(name).name != name for name in digests):
            raise ValueError("its manifest names files of other folders")
        for name in sorted({"optimizer.pt", "state.json", *digests}):
            if files.sha256(place / name) != digests.get(name):
                raise CheckpointError(
                    f"{place / name} is damaged: its SHA-256 is not {digests.get(name)}."
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{place} is not a whole checkpoint: {error}.") from error
    return place, sorted(digests)


def newest_valid(folders: Iterable[Path]) -> Path | None:
    """Return the first of the folders, newest first, that can be loaded; None if none can."""
    for folder in folders:
        try:
            load(folder)  # not only `verify`: an intact file can still be of another form
            return folder
        except CheckpointError as error:
            log.warning("A checkpoint is passed over: %s", error)
    return None


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses views, shared memory and non-contiguous (channels-last) tensors.
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
