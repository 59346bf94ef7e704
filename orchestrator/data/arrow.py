"""The prepared format: one uncompressed Arrow IPC file per split, its statistics and fingerprint.

A split is one record batch with the columns `image` (fixed-shape uint8 tensor, height x width x
channel), `label` and optionally `coarse_label` (int64). Every buffer starts at a multiple of 64
bytes of the file, so that a memory map of it is one contiguous, aligned array.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from orchestrator.errors import OrchestratorError
from trainables import files
from trainables.data.dataset import map_batch

ALIGNMENT_BYTES = 64

Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Histogram = npt.NDArray[np.int64]  # (channels, 256): how often each value occurs


@dataclass(frozen=True, slots=True)
class SplitFile:
    """The place of a split's pixels in its file, and its labels."""

    path: Path
    shape: tuple[int, int, int]  # height, width, channels
    pixels_at: int  # bytes from the start of the file
    labels: Labels  # (n,)
    coarse_labels: Labels | None = None  # (n,)

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return math.prod(self.shape)


def create_split(
    path: Path, shape: tuple[int, int, int], labels: Labels, coarse_labels: Labels | None = None
) -> SplitFile:
    """Write an Arrow file whose pixels are zero, and return where to fill them in.

    The pixels are a hole in the file and never exist in memory, so that a split of any size needs
    no memory. Row `n` starts at `pixels_at + n * image_bytes`.
    """
    pixel_bytes = math.prod(shape) * len(labels)
    hole = pa.py_buffer(np.zeros(_padded(pixel_bytes), np.uint8))  # untouched pages take no memory
    tensor = pa.fixed_shape_tensor(pa.uint8(), shape)
    values = pa.Array.from_buffers(pa.uint8(), pixel_bytes, [None, hole])
    storage = pa.FixedSizeListArray.from_arrays(values, math.prod(shape))
    columns = {"image": pa.ExtensionArray.from_storage(tensor, storage), "label": _column(labels)}
    if coarse_labels is not None:
        columns["coarse_label"] = _column(coarse_labels)
    # Arrow aligns to 8 bytes only. Padded as above, its buffers follow each other in steps of 64;
    # padding the schema moves the first one to a multiple of 64.
    for padding_bytes in range(0, ALIGNMENT_BYTES, 8):
        fields = [pa.field(name, column.type) for name, column in columns.items()]
        schema = pa.schema(fields, metadata={"padding": " " * padding_bytes})
        batch = pa.record_batch(list(columns.values()), schema=schema)
        sink = _HoleSink(path, hole)
        with pa.PythonFile(sink, mode="w") as out, pa.ipc.new_file(out, schema) as writer:
            writer.write_batch(batch)
        if sink.hole_at % ALIGNMENT_BYTES == 0:
            at = sink.hole_at
            return SplitFile(path, shape, pixels_at=at, labels=labels, coarse_labels=coarse_labels)
    raise AssertionError("No padding of the schema aligns the pixels; has Arrow's layout changed?")


class _HoleSink(io.BufferedWriter):
    """A file for Arrow that skips one buffer instead of writing it."""

    hole_at = -1  # until the buffer is met

    def __init__(self, path: Path, hole: Any) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._hole = hole

    def write(self, data: Any) -> int:
        if not isinstance(data, pa.Buffer) or data.address != self._hole.address:
            return super().write(data)
        self.hole_at = self.tell()
        self.seek(data.size, os.SEEK_CUR)
        return int(data.size)


def _column(labels: Labels) -> Any:
    """Return an Arrow array whose buffer is padded to the alignment."""
    padded = np.zeros(_padded(labels.nbytes) // 8, np.int64)
    padded[: len(labels)] = labels
    return pa.Array.from_buffers(pa.int64(), len(labels), [None, pa.py_buffer(padded)])


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def checked_split(path: Path, shape: tuple[int, int, int]) -> tuple[SplitFile, Pixels]:
    """Return a split and its pixels, (n, height, width, channels), after checking its format.

    The pixels are read-only and mapped into memory. Training opens a split with
    `trainables.data.dataset.open_split`, which checks less.

    Raises:
        OrchestratorError: the file is not what `create_split` writes for this shape.
    """
    try:
        batch, start = map_batch(path)
    except (OSError, ValueError) as error:  # Arrow's are among them
        raise OrchestratorError(
            f"{path.name} is not an Arrow IPC file of one record batch ({error})."
        ) from error
    expected = [("image", pa.fixed_shape_tensor(pa.uint8(), shape)), ("label", pa.int64())]
    expected += [("coarse_label", pa.int64())] if batch.num_columns == 3 else []
    found = [(field.name, field.type) for field in batch.schema]
    if found != expected:
        raise OrchestratorError(f"{path.name} must have the columns {expected}; it has {found}.")
    pixels: Pixels = batch.column(0).to_numpy_ndarray()
    columns: list[Labels] = [column.to_numpy() for column in batch.columns[1:]]
    offsets = [pixels.ctypes.data - start, *(column.ctypes.data - start for column in columns)]
    if any(offset % ALIGNMENT_BYTES for offset in offsets):
        raise OrchestratorError(f"{path.name} has buffers that are not 64-byte aligned: {offsets}.")
    labels, coarse_labels = columns if len(columns) == 2 else (columns[0], None)
    at = offsets[0]
    split = SplitFile(path, shape, pixels_at=at, labels=labels, coarse_labels=coarse_labels)
    return split, pixels


def histogram(values: Pixels, channels: int) -> Histogram:
    """Return how often each value of (..., width, 1 or 3 channels) occurs, (channels, 256)."""
    rows = values.reshape(-1, values.shape[-2], channels)
    image = Image.fromarray(rows if channels == 3 else rows[:, :, 0])  # three times NumPy's speed
    return np.array(image.histogram(), np.int64).reshape(channels, 256)


def mean_and_std(counts: Histogram) -> tuple[list[float], list[float]]:
    """Return per-channel mean and (population) standard deviation in 0 to 1, from a histogram.

    Sums are exact integers, so the result depends on neither the order nor the number of workers.
    """
    levels = np.arange(256, dtype=np.int64)
    means, deviations = [], []
    for channel in counts:
        number, total, squares = (int((channel * levels**power).sum()) for power in range(3))
        means.append(total / number / 255)
        deviations.append(math.sqrt(number * squares - total**2) / number / 255)
    return means, deviations


def digests(
    splits: Mapping[str, SplitFile], class_names: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """Return the dataset's fingerprint and the SHA-256 of every split's file.

    The fingerprint is 16 hex digits over shape, class names, labels and pixels only. It does not
    depend on the place, time, user or Arrow version of the files.
    """
    with ThreadPoolExecutor(2) as pool:  # hashing releases the interpreter lock
        whole = pool.map(files.sha256, [split.path for split in splits.values()])
        pixels = pool.map(_pixel_digest, splits.values())
    content = {
        "class_names": list(class_names),
        "splits": {
            name: {
                "shape": [len(split.labels), *split.shape],
                "pixels": digest,
                "labels": _label_digest(split.labels),
                "coarse_labels": _label_digest(split.coarse_labels),
            }
            for (name, split), digest in zip(splits.items(), pixels, strict=True)
        },
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(canonical).hexdigest()[:16], dict(zip(splits, whole, strict=True))


def image_digests(split: SplitFile) -> Iterator[bytes]:
    """Yield a digest of the pixels of each image."""
    shape = (len(split.labels), split.image_bytes)
    pixels = np.memmap(split.path, np.uint8, "r", offset=split.pixels_at, shape=shape)
    for image in pixels:
        yield hashlib.blake2b(image, digest_size=16).digest()


def _pixel_digest(split: SplitFile) -> str:
    return files.sha256(split.path, split.pixels_at, split.image_bytes * len(split.labels))


def _label_digest(labels: Labels | None) -> str:
    return "" if labels is None else hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
