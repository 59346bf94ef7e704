"""Shuffled batches of a split, resident on the device or memory-mapped."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainables import limits
from trainables.data.dataset import open_split

# Share of a device's memory that resident images may take; larger splits are streamed.
RESIDENT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class ImageStore:
    """A split's images and labels.

    A resident store's `images` and `labels` are on the device (a CPU maps them into its memory). A
    streamed one's are on the host, and `gather` copies each batch through pinned memory.
    """

    images: Tensor  # (n, h, w, c) uint8
    labels: Tensor  # (n,) int64
    device: torch.device
    is_resident: bool

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (b, h, w, c) uint8 and labels (b,) of the given rows, on the device.

        `rows` (b,) must be on the device of `images`, or the host would have to wait for them.
        """
        if self.is_resident:
            return self.images.index_select(0, rows), self.labels.index_select(0, rows)
        return self._staged(self.images, rows), self._staged(self.labels, rows)

    def _staged(self, column: Tensor, rows: Tensor) -> Tensor:
        shape, is_pinned = (len(rows), *column.shape[1:]), self.device.type == "cuda"
        staging = torch.empty(shape, dtype=column.dtype, pin_memory=is_pinned)
        torch.index_select(column, 0, rows, out=staging)
        return staging.to(self.device, non_blocking=True)


@functools.lru_cache(maxsize=4)
def open_store(
    folder: Path, split: str, device: torch.device, resident_share: float = RESIDENT_SHARE
) -> ImageStore:
    """Open a split for a device, resident where it fits into `resident_share` of its memory.

    It is kept for the process's life, for the next trial on the same device.
    """
    pixels, classes = open_split(folder, split)
    with warnings.catch_warnings():  # the mapped memory is shared, and never written to
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images, labels = torch.from_numpy(pixels), torch.from_numpy(classes)
    is_resident = images.nbytes <= resident_share * _memory_bytes(device)
    if is_resident:
        images, labels = images.to(device), labels.to(device)
    return ImageStore(images, labels, device, is_resident)


def _memory_bytes(device: torch.device) -> int:
    """Return how much of a device's memory this process may take."""
    if device.type == "cuda":
        whole = torch.cuda.get_device_properties(device).total_memory
        return int(whole * torch.cuda.get_per_process_memory_fraction(device))
    return limits.memory_bytes()


def derived_seed(seed: int, *purpose: int | str) -> int:
    """Return a 63-bit seed that depends on `seed` and its purpose, so restarts need no state."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def train_batches(
    rows: Tensor, batch_size: int, seed: int, epoch: int, rank: int, workers: int
) -> Iterator[Tensor]:
    """Yield this worker's row numbers, batch by batch, in the epoch's order.

    The order is drawn over all workers' images; each takes its slice of every batch. A last
    partial batch is left out, so that all batches have one shape, unless it is the only one.

    `rows` are the (n,) training images, `batch_size` counts images over all workers and is divided
    by `workers`, `seed` is the trial's, `epoch` is counted from 0.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    batch = min(batch_size, len(order) - len(order) % workers)
    share = batch // workers
    for start in range(0, len(order) - batch + 1, batch):
        yield order[start + rank * share : start + (rank + 1) * share]


def steps_in_epoch(images: int, batch_size: int) -> int:
    """Return how many batches `train_batches` yields."""
    return max(images // batch_size, 1)
