"""Reads prepared datasets without torch: the manifest, the splits, the validation split.

`orchestrator.data` writes the folder: `manifest.json` and one uncompressed Arrow IPC file per
split. Opened splits stay open for the process's life, for its next trials.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trainables import files

if TYPE_CHECKING:
    import pyarrow as pa


class DatasetError(ValueError):
    """A prepared dataset is missing, incomplete or of another format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Description of a prepared dataset. `mean` and `std` are per channel, in 0 to 1.

    `fine_to_coarse` is the superclass of every class, -1 for a class without images; empty if the
    dataset has no superclasses (CIFAR-100 has 20).
    """

    name: str
    fingerprint: str
    class_names: tuple[str, ...]
    height_px: int
    width_px: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: dict[str, int]  # by split
    fine_to_coarse: tuple[int, ...] = ()

    @property
    def image_size_px(self) -> int:
        """The larger of height and width, which are equal in every dataset here."""
        return max(self.height_px, self.width_px)


def load_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a prepared dataset.

    Raises:
        DatasetError: the folder holds no prepared dataset.
    """
    path = folder / "manifest.json"
    try:
        return manifest_from(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise DatasetError(
            f"{folder} holds no prepared dataset: {path.name} is missing. Prepare it with "
            f"`python -m orchestrator.data prepare {folder.name}`."
        ) from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}. Check its owner and mode.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} is not a dataset manifest ({error!r}). Delete {folder} and prepare it again."
        ) from error


def manifest_from(raw: Mapping[str, Any]) -> Manifest:
    """Return the manifest from the content of a `manifest.json`.

    Raises:
        AttributeError, KeyError, TypeError: a value is missing or of a wrong type.
    """
    scalars = ("name", "fingerprint", "height_px", "width_px", "channels")
    return Manifest(
        **{name: raw[name] for name in scalars},
        class_names=tuple(raw["class_names"]),
        mean=tuple(raw["mean"]),
        std=tuple(raw["std"]),
        images={split: entry["images"] for split, entry in raw["splits"].items()},
        fine_to_coarse=tuple(raw.get("fine_to_coarse", ())),
    )


def check_fingerprint(manifest: Manifest, folder: Path, wanted: str) -> None:
    """Check that a folder still holds a trial's dataset; if not, raise a DatasetError."""
    if manifest.fingerprint != wanted:
        raise DatasetError(
            f"{folder} has the fingerprint {manifest.fingerprint!r}, but this trial is of "
            f"{wanted!r}: the dataset was replaced. Start a new sweep on it."
        )


@functools.lru_cache(maxsize=8)
def open_split(folder: Path, split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return a split's images (n, h, w, c) uint8, mapped into memory, and labels (n,) int64.

    Raises:
        DatasetError: the file is missing or not in the form `orchestrator.data` writes.
    """
    path = folder / f"{split}.arrow"
    try:
        batch, _ = map_batch(path)
        pixels = batch.column("image").to_numpy_ndarray()
        if pixels.ndim != 4 or pixels.dtype != np.uint8:
            raise ValueError(f"images of shape {pixels.shape} and type {pixels.dtype}")
        return pixels, batch.column("label").to_numpy().astype(np.int64)
    except (AttributeError, OSError, KeyError, ValueError) as error:  # Arrow's are ValueErrors
        raise DatasetError(
            f"{path} cannot be read as a prepared split ({error}). Run "
            f"`python -m orchestrator.data verify {folder.name}`."
        ) from error


def map_batch(path: Path) -> tuple[pa.RecordBatch, int]:
    """Return the one record batch of an Arrow file, mapped into memory, and the map's address.

    Raises:
        OSError, ValueError: the file is missing or not of this form.
    """
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    address: int = mapped.read_buffer().address
    mapped.seek(0)
    reader = pa.ipc.open_file(mapped)
    if reader.num_record_batches != 1:
        raise ValueError(f"{reader.num_record_batches} record batches instead of one")
    return reader.get_batch(0), address


def split_indices(
    labels: npt.NDArray[np.int64], fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return sorted rows of training and of validation images, stratified by label.

    The only image of a class is a training image. `labels` are (n,) class numbers; `fraction` is
    0 to 0.5, and 0 gives an empty validation split; `seed` is the split's, not the trial's.

    Raises:
        DatasetError: no class has two images, so there is nothing to split.
    """
    everything = np.arange(len(labels))
    if fraction == 0:
        return everything, everything[:0]
    from sklearn.model_selection import train_test_split

    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    (rows,) = np.nonzero(counts[classes] > 1)
    if not len(rows):
        raise DatasetError(
            "A validation split needs a class with two images or more; no class here has. Add "
            "images, or train without one: `validation_fraction=0`."
        )
    size = validation_size(len(rows), int(np.sum(counts > 1)), fraction)
    _, val = train_test_split(rows, test_size=size, random_state=seed, stratify=labels[rows])
    return np.setdiff1d(everything, val), np.sort(val)


def validation_size(images: int, classes: int, fraction: float) -> int:
    """Return the number of validation images of so many training images and classes.

    The stratified part has at least as many images as there are classes; the only image of a class
    does not count, and neither does its class.
    """
    return max(round(fraction * images), classes) if fraction else 0


@functools.lru_cache(maxsize=8)
def training_and_validation_rows(
    folder: Path, fingerprint: str, fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return `split_indices` of a prepared dataset, computed once per machine.

    They are saved beside the dataset if possible: scikit-learn takes every new process a second and
    50 MB. A saved split of another `fingerprint` is not used.

    Raises:
        DatasetError: as `open_split` and `split_indices`.
    """
    from importlib.metadata import version

    labels = open_split(folder, "train")[1]
    if fraction == 0:
        return split_indices(labels, fraction, seed)
    # In a folder of its own: the dataset's files alone are copied from host to host.
    name = f"{fraction}-{seed}-{fingerprint}-sklearn-{version('scikit-learn')}.npy"
    path = folder / "validation" / name
    with contextlib.suppress(Exception):  # missing, or damaged, for which NumPy has many errors
        val = np.load(path, allow_pickle=False)
        is_split = val.dtype == np.int64 and val.ndim == 1 and bool((np.diff(val) > 0).all())
        if is_split and len(val) and val[0] >= 0 and val[-1] < len(labels):
            return np.setdiff1d(np.arange(len(labels)), val), val
    train, val = split_indices(labels, fraction, seed)
    # If the disk is read-only or full, the next process computes it again.
    with contextlib.suppress(OSError), files.temporary(path) as new:
        with new.open("wb") as file:
            np.save(file, val)
        files.put_in_place(new, path, durable=False)
    return train, val
