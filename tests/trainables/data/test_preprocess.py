"""Stored pixels become the network's input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from orchestrator.data.known_datasets import expected_manifest
from tests.golden.make import DEFAULTS
from trainables.data.preprocess import preparation


def resized(pixels: npt.NDArray[np.uint8], size_px: int) -> npt.NDArray[np.float32]:
    """Return an image (h, w, 3) as the network gets it, before normalization, (h, w, 3)."""
    manifest = replace(expected_manifest("cifar10"), mean=(0.0,) * 3, std=(1.0,) * 3)
    prepare = preparation(replace(DEFAULTS, image_size_px=size_px), manifest, torch.device("cpu"))
    image = prepare(torch.from_numpy(pixels)[None], None)[0].permute(1, 2, 0)
    return np.asarray(image.contiguous())


def by_pillow(pixels: npt.NDArray[np.uint8], size_px: int) -> npt.NDArray[np.float32]:
    """Return an image (h, w, 3) resized by Pillow in floating point, 0 to 1."""
    planes = [Image.fromarray(pixels[..., c].astype(np.float32) / 255) for c in range(3)]
    size = (size_px, size_px)
    scaled = [np.asarray(each.resize(size, Image.Resampling.BICUBIC)) for each in planes]
    return np.stack(scaled, axis=-1).clip(0, 1)


def test_fine_stripes_vanish_when_an_image_shrinks() -> None:
    """0.42 cycles per pixel are more than half a cycle per pixel of the smaller image."""
    row = np.round(127.5 + 127.5 * np.sin(2 * np.pi * 0.42 * np.arange(64))).astype(np.uint8)
    stripes = np.broadcast_to(row[None, :, None], (64, 64, 3)).copy()
    small = resized(stripes, 32)
    assert small.std() == pytest.approx(by_pillow(stripes, 32).std(), abs=1e-5)
    assert small.std() == pytest.approx(0.0146, abs=2e-4)  # without antialiasing 0.149


@pytest.mark.parametrize("size_px", [8, 31, 32, 63])
def test_shrunk_images_are_pillows(size_px: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(resized(noise, size_px), by_pillow(noise, size_px), atol=1e-5)


def test_enlarged_images_have_the_kernel_of_opencv() -> None:
    """The study that upscales by a named method, `cifar100_transfer`, lists OpenCV."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    images = torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 255
    expected = F.interpolate(images, size=(64, 64), mode="bicubic")[0].clamp(0, 1)
    np.testing.assert_allclose(resized(noise, 64), expected.permute(1, 2, 0), atol=1e-6)
