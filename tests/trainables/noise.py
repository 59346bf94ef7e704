"""Seeded draws and images of noise, for tests of augmentation."""

from __future__ import annotations

import torch
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_images(n: int, c: int = 3, h: int = 16, w: int = 16) -> Tensor:
    """Return 8-bit noise in 0 to 1, as a stored image is."""
    return torch.randint(0, 256, (n, c, h, w), generator=seeded(9)).float() / 255


def is_equal(left: Tensor, right: Tensor) -> Tensor:
    """Return (n,) bool: which images of two batches are the same in every pixel."""
    return (left == right).flatten(1).all(dim=1)
