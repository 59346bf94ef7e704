"""Checkpoints that are whole or absent, and never unpickled.

A checkpoint is a folder: safetensors for weights, `optimizer.pt` (read with `weights_only`), JSON
for the rest, and last of all `manifest.json` with the SHA-256 of every file. It is written under a
temporary name, flushed to the disk, then renamed; loading verifies every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, incomplete or of another trial."""


def save(
    folder: Path,
    *,
    weights: Mapping[str, Mapping[str, Tensor]],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint durably; afterwards `folder` holds all of it or does not exist.

    Args:
        folder: where it goes; one that is there already is replaced.
        weights: state dicts by name, each written as `<name>.safetensors`.
        optimizer: the optimizer's state dict (tensors, numbers, lists and dicts only).
        state: JSON-ready values: epoch, metrics, configuration.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, tensors in weights.items():
            save_file(_owned(tensors), temporary / f"{name}.safetensors")
        torch.save(dict(optimizer), temporary / "optimizer.pt")
        (temporary / "state.json").write_text(json.dumps(state, sort_keys=True))
        digests = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps({"sha256": digests}, sort_keys=True))
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """Read a checkpoint back, onto the CPU.

    Returns:
        weights by name, the optimizer's state dict, and the state.

    Raises:
        CheckpointError: a file is missing or not what the manifest says.
    """
    verify(folder)
    weights = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    state = json.loads((folder / "state.json").read_text())
    return weights, optimizer, state


def verify(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: naming the file that is missing or damaged.
    """
    try:
        digests = json.loads((folder / MANIFEST).read_text())["sha256"]
        for name, digest in digests.items():
            if _sha256(folder / name) != digest:
                raise CheckpointError(f"{folder / name} is damaged: its SHA-256 is not {digest}.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {error}.") from error


def newest_valid(folders: Iterable[Path]) -> Path | None:
    """Return the first folder that verifies; give them newest first. None when none does."""
    for folder in folders:
        try:
            verify(folder)
        except CheckpointError:
            continue
        return folder
    return None


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses views and non-contiguous (channels-last) tensors.
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
