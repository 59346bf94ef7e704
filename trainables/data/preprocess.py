"""Prepares stored pixels for the model: augments, resizes and normalizes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.config import TrainConfig
from trainables.data import augment, dataset
from trainables.models import build


def preparation(
    config: TrainConfig, manifest: dataset.Manifest, device: torch.device
) -> Callable[[Tensor, torch.Generator | None], Tensor]:
    """Return the function from stored pixels to the network's input.

    It takes (n, h, w, c) uint8 and a generator (None: no augmentation) and returns
    (n, c, image_size_px, image_size_px) float32, normalised, in the model's memory format.
    """
    mean, std = build.normalisation(config, manifest.mean, manifest.std)
    # As long as a row of pixels, so that whole rows are computed at once.
    shift = torch.tensor(mean, device=device).repeat(config.image_size_px)
    scale = torch.tensor(std, device=device).reciprocal().repeat(config.image_size_px)
    side = (config.image_size_px, config.image_size_px)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    # On bytes, flips and the crop take a quarter of the time, with the same result.
    is_early = augment.copies_pixels(config)
    late = replace(config, hflip=False, vflip=False, crop_padding_px=0) if is_early else config

    def prepare(pixels: Tensor, draws: torch.Generator | None) -> Tensor:
        if draws is not None and is_early:
            pixels = augment.flip_and_crop(pixels, config, draws)
        images = pixels.permute(0, 3, 1, 2).float().div_(255)
        if draws is not None:
            images = augment.augment(images, late, draws)
        if images.shape[2:] != side:
            # Without antialiasing, fine stripes of a larger image become coarse ones. It uses
            # Pillow's kernel; without it, enlarging uses OpenCV's, as the study that upscales did.
            is_smaller = side[0] < max(images.shape[2:])
            images = F.interpolate(images, size=side, mode="bicubic", antialias=is_smaller)
            images.clamp_(0, 1)  # bicubic overshoots
        rows: Tensor = images.permute(0, 2, 3, 1).contiguous().flatten(2)  # (n, h, w * c)
        rows.sub_(shift).mul_(scale)
        images = rows.unflatten(2, (side[1], -1)).permute(0, 3, 1, 2)
        ready: Tensor = images.contiguous(memory_format=layout)
        return ready

    return prepare
