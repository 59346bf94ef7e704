"""The prepared format: one uncompressed Arrow IPC file per split, its statistics and fingerprint.

A split is one record batch with the columns `image` (fixed-shape uint8 tensor, height x width x
channel), `label` and optionally `coarse_label` (int64). Every buffer starts at a multiple of 64
bytes of the file, so that a memory map of it is one contiguous, aligned array.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from orchestrator.errors import OrchestratorError
from trainables import files
from trainables.data.dataset import map_batch

ALIGNMENT_BYTES = 64

Labels = npt.NDArray[np.int64]
Histogram = npt.NDArray[np.int64]  # (channels, 256): how often each value occurs


@dataclass(frozen=True, kw_only=True, slots=True)
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
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def pixel_bytes(self) -> int:
        """Bytes of all images."""
        return self.image_bytes * len(self.labels)


def create_split(
    path: Path, *, shape: tuple[int, int, int], labels: Labels, coarse_labels: Labels | None = None
) -> SplitFile:
    """Write an Arrow file whose pixels are zero, and return where to fill them in.

    The pixels are a hole in the file and never exist in memory, so that a split of any size needs
    no memory. Row `n` starts at `pixels_at + n * image_bytes`.
    """
    pixel_bytes = shape[0] * shape[1] * shape[2] * len(labels)
    hole = pa.py_buffer(np.zeros(_padded(pixel_bytes), np.uint8))  # untouched pages take no memory
    tensor = pa.fixed_shape_tensor(pa.uint8(), shape)
    values = pa.Array.from_buffers(pa.uint8(), pixel_bytes, [None, hole])
    storage = pa.FixedSizeListArray.from_arrays(values, shape[0] * shape[1] * shape[2])
    columns = {"image": pa.ExtensionArray.from_storage(tensor, storage), "label": _column(labels)}
    if coarse_labels is not None:
        columns["coarse_label"] = _column(coarse_labels)
    # Arrow aligns to 8 bytes only. Padded as above, its buffers follow each other in steps of 64;
    # padding the schema moves the first one to a multiple of 64.
    for padding_bytes in range(0, ALIGNMENT_BYTES, 8):
        schema = pa.schema(
            [pa.field(name, column.type) for name, column in columns.items()],
            metadata={"padding": " " * padding_bytes},
        )
        batch = pa.record_batch(list(columns.values()), schema=schema)
        with path.open("wb") as file:
            sink = _HoleSink(file, hole)
            with pa.PythonFile(sink, mode="w") as out, pa.ipc.new_file(out, schema) as writer:
                writer.write_batch(batch)
        if sink.hole_at is not None and sink.hole_at % ALIGNMENT_BYTES == 0:
            return SplitFile(
                path=path,
                shape=shape,
                pixels_at=sink.hole_at,
                labels=labels,
                coarse_labels=coarse_labels,
            )
    raise AssertionError("No padding of the schema aligns the pixels; has Arrow's layout changed?")


class _HoleSink:
    """A file for Arrow that skips one buffer instead of writing it."""

    def __init__(self, file: IO[bytes], hole: Any) -> None:
        self._file, self._hole = file, hole
        self.hole_at: int | None = None
        self.closed = False

    def write(self, data: Any) -> int:
        if isinstance(data, pa.Buffer) and data.address == self._hole.address:
            self.hole_at = self._file.tell()
            self._file.seek(data.size, os.SEEK_CUR)
        else:
            self._file.write(data)
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


def _column(labels: Labels) -> Any:
    """Return an Arrow array whose buffer is padded to the alignment."""
    padded = np.zeros(_padded(labels.nbytes) // 8, np.int64)
    padded[: len(labels)] = labels
    return pa.Array.from_buffers(pa.int64(), len(labels), [None, pa.py_buffer(padded)])


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def write_pixels(split: SplitFile, pixels: npt.NDArray[np.uint8]) -> None:
    """Write all pixels of a split from one array of shape (n, height, width, channels)."""
    content = np.ascontiguousarray(pixels).data.cast("B")
    with split.path.open("r+b") as file:
        file.seek(split.pixels_at)
        file.write(content)


def checked_split(
    path: Path, shape: tuple[int, int, int]
) -> tuple[SplitFile, npt.NDArray[np.uint8]]:
    """Return a split and a read-only view of its pixels once the format of its file is checked.

    Training opens a split with `trainables.data.dataset.open_split`, which checks less.

    Returns:
        The split, and its pixels, (n, height, width, channels).

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
    pixels: npt.NDArray[np.uint8] = batch.column(0).to_numpy_ndarray()
    columns: list[Labels] = [column.to_numpy() for column in batch.columns[1:]]
    addresses = [pixels.ctypes.data, *(column.ctypes.data for column in columns)]
    offsets = [address - start for address in addresses]
    if any(offset % ALIGNMENT_BYTES for offset in offsets):
        raise OrchestratorError(f"{path.name} has buffers that are not 64-byte aligned: {offsets}.")
    split = SplitFile(
        path=path,
        shape=shape,
        pixels_at=offsets[0],
        labels=columns[0],
        coarse_labels=columns[1] if len(columns) == 2 else None,
    )
    return split, pixels


def histogram(values: npt.NDArray[np.uint8], channels: int) -> Histogram:
    """Return how often each value occurs per channel, (channels, 256).

    Args:
        values: (..., width, channels).
        channels: 1 or 3.
    """
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
        whole = {name: pool.submit(files.sha256, split.path) for name, split in splits.items()}
        pixels = {
            name: pool.submit(files.sha256, split.path, split.pixels_at, split.pixel_bytes)
            for name, split in splits.items()
        }
    content = {
        "class_names": list(class_names),
        "splits": {
            name: {
                "shape": [len(split.labels), *split.shape],
                "pixels": pixels[name].result(),
                "labels": _label_digest(split.labels),
                "coarse_labels": _label_digest(split.coarse_labels),
            }
            for name, split in splits.items()
        },
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return (
        hashlib.sha256(canonical).hexdigest()[:16],
        {name: digest.result() for name, digest in whole.items()},
    )


def _label_digest(labels: Labels | None) -> str:
    return "" if labels is None else hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
