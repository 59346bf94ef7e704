"""Batched augmentation: statistics with fixed seeds and derived tolerances, and exact equalities.

Tolerances on means are four standard errors, those on distributions the 99.9 % quantile of the
test's own distribution.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from tests.trainables.image_grid import AUGMENTATIONS, config_with, real_images, write_grid
from tests.trainables.noise import is_equal, noise_images, seeded
from trainables.data import augment as module
from trainables.data import preprocess
from trainables.data.augment import augment
from trainables.data.dataset import Manifest
from trainables.data.mixing import mix

EVERYTHING: dict[str, Any] = {
    "hflip": True,
    "vflip": True,
    "crop_padding_px": 4,
    "rotation_deg": 15.0,
    "shear_deg": 10.0,
    "zoom": 0.2,
    "brightness": 0.3,
    "grid_distortion": 0.5,
    "elastic": 0.5,
    "random_erasing": 0.5,
    "randaugment_ops": 2,
}
WITHIN_IMAGE = {
    name: fields
    for name, fields in AUGMENTATIONS.items()
    if not fields.keys() & {"mixup_alpha", "cutmix_alpha"}
} | {"everything": EVERYTHING}
# --- what holds for every augmentation -----------------------------------------------------------


def test_without_augmentation_the_same_tensors_are_returned():
    images, labels = noise_images(4), torch.arange(4)
    generator = seeded()
    before = generator.get_state()
    assert augment(images, config_with(), generator) is images
    mixed, targets = mix(images, labels, 4, config_with(), generator)
    assert mixed is images
    assert targets is labels
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("name", WITHIN_IMAGE)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_result_is_new_in_range_and_the_same_for_the_same_generator(name, layout, channels):
    images = noise_images(30, channels, 12, 20).contiguous(memory_format=layout)
    kept = images.clone()
    config = config_with(**WITHIN_IMAGE[name])
    first = augment(images, config, seeded(1))
    again = augment(images, config, seeded(1))
    other = augment(images, config, seeded(2))
    assert torch.equal(images, kept)
    assert first.data_ptr() != images.data_ptr()
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", WITHIN_IMAGE)
def test_memory_layout_does_not_change_the_result(name):
    images = noise_images(30)
    config = config_with(**WITHIN_IMAGE[name])
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(images, config, seeded()), augment(channels_last, config, seeded()))


@pytest.mark.parametrize("name", WITHIN_IMAGE)
def test_images_of_one_batch_get_different_draws(name):
    """With the flips alone there are four results and with RandAugment few, hence the minimum."""
    images = noise_images(1, h=24, w=24).expand(56, -1, -1, -1)
    results = augment(images, config_with(**WITHIN_IMAGE[name]), seeded())
    distinct = len({result.numpy().tobytes() for result in results})
    least = {"flips": 4, "randaugment": 30}.get(name, 45)
    assert distinct >= least


class Recorder(TorchDispatchMode):
    """Notes what would make the host wait for the device, or break a capture of the step."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "item",
        "unique",
        "bincount",
        "lift_fresh",  # a tensor made of host values: a blocking copy on a device
        "is_nonzero",
        "equal.",
    )

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.count += 1
        by_mask = name.startswith("aten.index.") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or any(word in name for word in self.WAITING):
            self.waiting.append(name)
        return func(*args, **(kwargs or {}))


def test_no_operation_makes_the_host_wait_for_the_device():
    images, labels = noise_images(30), torch.arange(30)
    generator = seeded()
    with Recorder() as recorder:
        augment(images, config_with(**EVERYTHING), generator)
        augment(images, config_with(**WITHIN_IMAGE["flip_and_crop"]), generator)
        mix(images, labels, 30, config_with(mixup_alpha=0.4, cutmix_alpha=1.0), generator)
    assert recorder.count > 200
    assert recorder.waiting == []


def test_the_recorder_of_host_waits_detects_one():
    with Recorder() as recorder:
        values = torch.arange(3.0)
        values[values > 1]
        values.max().item()
        torch.tensor([1.0])
    assert len(recorder.waiting) >= 3


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(2, 4, 8, 8),
    ],
)
def test_wrong_input_is_refused_with_the_way_out(images):
    with pytest.raises(ValueError, match="Divide uint8 images by 255") as caught:
        augment(images, config_with(hflip=True), seeded())
    assert str(tuple(images.shape)) in str(caught.value)
    assert str(images.dtype) in str(caught.value)


# --- flips and crops -----------------------------------------------------------------------------


def test_each_flip_happens_to_half_of_the_images_and_independently():
    n = 4000
    images = noise_images(1, 1, 4, 6).expand(n, -1, -1, -1)
    flipped = augment(images, config_with(hflip=True, vflip=True), seeded())
    counts = [
        int(is_equal(flipped, images.flip(dims) if dims else images).sum())
        for dims in ([], [2], [3], [2, 3])
    ]
    assert sum(counts) == n
    assert stats.chisquare(counts).statistic < stats.chi2.ppf(0.999, 3)


@pytest.mark.parametrize("field", ["hflip", "vflip"])
def test_one_flip_alone_leaves_the_other_axis(field):
    n = 1000
    images = noise_images(n, 1, 4, 6)
    flipped = augment(images, config_with(**{field: True}), seeded())
    mirrored = is_equal(flipped, images.flip(3 if field == "hflip" else 2))
    assert (mirrored | is_equal(flipped, images)).all()
    assert abs(int(mirrored.sum()) - n / 2) < 4 * math.sqrt(n / 4)


@pytest.mark.parametrize("shape", [(3, 7, 9), (1, 8, 5)])
def test_crop_equals_slicing_the_padded_image_at_uniform_offsets(shape):
    padding, n = 2, 5000
    c, h, w = shape
    image = noise_images(1, c, h, w)
    cropped = augment(image.expand(n, -1, -1, -1), config_with(crop_padding_px=padding), seeded())
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    counts = [
        int(is_equal(cropped, padded[:, :, top : top + h, left : left + w]).sum())
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    assert sum(counts) == n  # every result is one of the slices, exactly
    assert stats.chisquare(counts).statistic < stats.chi2.ppf(0.999, len(counts) - 1)


def test_every_image_keeps_its_own_pixels_under_flip_and_crop():
    n, padding = 64, 1
    images = noise_images(n, 3, 5, 6)
    results = augment(
        images, config_with(hflip=True, vflip=True, crop_padding_px=padding), seeded()
    )
    found = torch.zeros(n, dtype=torch.int64)
    for dims in ([], [2], [3], [2, 3]):
        flipped = torch.nn.functional.pad(images.flip(dims) if dims else images, (padding,) * 4)
        for top in range(3):
            for left in range(3):
                found += is_equal(results, flipped[:, :, top : top + 5, left : left + 6])
    assert (found == 1).all()


def test_copying_and_sampling_agree_on_flips_and_crops():
    images = noise_images(64, 3, 16, 32)
    config = config_with(hflip=True, vflip=True, crop_padding_px=3)
    copied = augment(images, config, seeded())
    sampled = module._warp(images, config, [], seeded())
    assert (copied - sampled).abs().max() < 1e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_and_crops_of_stored_bytes_are_those_of_their_intensities(channels):
    stored = torch.randint(0, 256, (64, 16, 24, channels), dtype=torch.uint8, generator=seeded(1))
    config = config_with(hflip=True, vflip=True, crop_padding_px=3)
    moved = module.flip_and_crop(stored, config, seeded())
    images = augment(stored.permute(0, 3, 1, 2).float() / 255, config, seeded())
    assert moved.dtype == torch.uint8
    assert torch.equal(moved.permute(0, 3, 1, 2).float() / 255, images)


@pytest.mark.parametrize("side", [16, 24])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["nothing", *WITHIN_IMAGE])
def test_the_network_s_input_is_augmented_resized_and_normalised_intensities(
    name, channels_last, side
):
    stored = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8, generator=seeded(1))
    fields = WITHIN_IMAGE.get(name, {})
    config = replace(config_with(**fields), image_size_px=side, channels_last=channels_last)
    mean, std = (0.1, 0.4, 0.5), (0.2, 0.25, 0.3)
    manifest = Manifest(
        name="noise",
        fingerprint="f",
        class_names=("a", "b"),
        height_px=16,
        width_px=16,
        channels=3,
        mean=mean,
        std=std,
        images={"train": 8},
    )
    before = stored.clone()
    found = preprocess.preparation(config, manifest, torch.device("cpu"))(stored, seeded())
    images = augment(stored.permute(0, 3, 1, 2).float() / 255, config, seeded())
    if side != 16:
        images = torch.nn.functional.interpolate(images, (side, side), mode="bicubic").clamp(0, 1)
    shift, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    assert torch.equal(stored, before)
    assert (found - (images - shift) / spread).abs().max() < 1e-5
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)


# --- rotation, shear, zoom -----------------------------------------------------------------------


@pytest.mark.parametrize(("side", "tolerance"), [(64, 1e-6), (28, 1e-5)])
def test_affine_sampling_with_nothing_drawn_is_the_identity(side, tolerance):
    """Positions are exact at powers of two; elsewhere they round at about 1e-6 of a pixel."""
    images = noise_images(8, 3, side, side)
    same = module._warp(images, config_with(), [], seeded())
    assert (same - images).abs().max() < tolerance


def test_affine_sampling_equals_torchvision():
    n, h, w = 24, 20, 28
    images = noise_images(n, 3, h, w)
    config = config_with(rotation_deg=40.0, shear_deg=25.0, zoom=0.3)
    ours = augment(images, config, seeded(3))
    draws = seeded(3)
    angle, shear, zoom = (2 * torch.rand(n, generator=draws) - 1 for _ in range(3))
    for i in range(n):
        theirs = tv.affine(
            images[i],
            angle=float(angle[i]) * 40,
            translate=[0, 0],
            scale=1 + float(zoom[i]) * 0.3,
            shear=[float(shear[i]) * 25, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        assert (ours[i] - theirs).abs().max() < 1e-4  # 1e-5 px of rounding x the steepest noise


def blob(side: int, radius: float) -> Tensor:
    """Return (1, 1, side, side): a Gaussian spot to the right of the centre by `radius`."""
    at = torch.arange(side) - (side - 1) / 2
    return torch.exp(-((at - radius) ** 2 + at.unsqueeze(1) ** 2) / 8).view(1, 1, side, side)


def centroid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return (n,) x and y of the centres of mass, in pixels from the centre."""
    at = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    mass = images.sum(dim=(1, 2, 3))
    return (images * at).sum(dim=(1, 2, 3)) / mass, (images * at.unsqueeze(1)).sum(
        dim=(1, 2, 3)
    ) / mass


def test_rotation_angles_are_uniform_in_their_range():
    n, limit = 2000, 30.0
    images = blob(41, 10).expand(n, -1, -1, -1)
    x, y = centroid(augment(images, config_with(rotation_deg=limit), seeded()))
    assert (torch.hypot(x, y) - 10).abs().max() < 0.05  # it turns about the centre
    degrees = torch.rad2deg(torch.atan2(y, x)).numpy()
    assert np.abs(degrees).max() < limit + 0.1
    assert stats.kstest(degrees / limit, "uniform", args=(-1, 2)).pvalue > 0.001


def test_zoom_is_uniform_in_its_range():
    n, limit = 2000, 0.4
    images = blob(51, 10).expand(n, -1, -1, -1)
    x, y = centroid(augment(images, config_with(zoom=limit), seeded()))
    assert y.abs().max() < 0.01
    scale = (x / 10).numpy()
    assert stats.kstest((scale - 1) / limit, "uniform", args=(-1, 2)).pvalue > 0.001


def test_shear_moves_rows_sideways_by_a_uniform_angle():
    n, limit = 2000, 20.0
    images = blob(51, 10).transpose(2, 3).expand(n, -1, -1, -1)
    x, y = centroid(augment(images, config_with(shear_deg=limit), seeded()))
    assert (y - 10).abs().max() < 0.05
    degrees = torch.rad2deg(torch.atan(x / 10)).numpy()
    assert stats.kstest(degrees / limit, "uniform", args=(-1, 2)).pvalue > 0.001


def test_flips_come_first_then_the_geometric_operations_of_each_slot():
    n = 40
    shift = torch.tensor([[1.0, 0.0, 6.0], [0.0, 1.0, 0.0]]).expand(n, -1, -1)  # 6 px to the left
    turn = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0]]).expand(n, -1, -1)
    images = blob(51, 10).expand(n, -1, -1, -1)
    x, y = centroid(module._warp(images, config_with(hflip=True), [shift, turn], seeded()))
    radius = torch.hypot(x, y)
    # 10 px to the right of the centre, or to the left after a flip; then the shift; then the turn.
    right, left = (radius - 4).abs() < 0.05, (radius - 16).abs() < 0.05
    assert (right ^ left).all()
    assert right.any()
    assert left.any()
    assert torch.allclose(x[right], torch.tensor(4 * 0.6), atol=0.05)
    assert torch.allclose(y[right], torch.tensor(-4 * 0.8), atol=0.05)


# --- grid distortion and elastic transform -------------------------------------------------------


def test_grid_distortion_is_bounded_centred_and_keeps_order_and_edges():
    n, size = 4000, 64
    moved = module._grid_displacement(torch.zeros(n, 3, size, size), size, seeded())
    # The extreme: two cells at 1.3 and three at 0.7, which put the second knot at 2.6 / 4.7.
    assert moved.abs().max() <= (2.6 / 4.7 - 2 / 5) * size
    error = moved.std(dim=0) / math.sqrt(n)
    assert (moved.mean(dim=0).abs() <= 4 * error).all()
    position = moved + torch.arange(size) + 0.5
    step = position.diff(dim=1)
    assert step.min() > 0.7 / (0.7 + 4 * 1.3) * 5 - 1e-4
    assert step.max() < 1.3 / (1.3 + 4 * 0.7) * 5 + 1e-4
    half_step_at_the_edge = step[:, 0] / 2
    assert torch.allclose(position[:, 0], half_step_at_the_edge, atol=1e-4)
    assert torch.allclose(size - position[:, -1], step[:, -1] / 2, atol=1e-4)


@pytest.mark.parametrize("size", [32, 64])
def test_elastic_displacement_has_the_stated_spread_at_every_pixel_and_is_smooth(size):
    n = 3000
    moved = torch.cat(
        [
            module._elastic_displacement(torch.zeros(n // 4, 3, size, size), size, draws)
            for draws in [seeded()]
            for _ in range(4)
        ]
    )
    spread = 0.02545 * size  # 120 * sqrt(1 / 3) / (2 sqrt(pi) * 6) / 128 of the side
    # Four standard errors for one pixel; the largest of size^2 pixels reaches about 4.5.
    assert (moved.mean(dim=0).abs() < 5 * spread / math.sqrt(n)).all()
    assert ((moved.std(dim=0) / spread - 1).abs() < 5 / math.sqrt(2 * n)).all()
    assert moved.abs().max() < 7 * spread
    # Neighbours correlate as a Gaussian of sigma does after smoothing: exp(-1 / (4 sigma^2)).
    middle = moved[:, size // 4 : -size // 4, size // 4 : -size // 4]
    correlation = float((middle[:, 1:] * middle[:, :-1]).mean() / middle.square().mean())
    sigma = 6 / 128 * size
    assert abs(correlation - math.exp(-1 / (4 * sigma**2))) < 0.01


@pytest.mark.parametrize("field", ["grid_distortion", "elastic", "random_erasing"])
def test_a_probability_is_the_share_of_changed_images(field):
    n, probability = 1000, 0.3
    images = noise_images(n, 1, 16, 16)
    results = augment(images, config_with(**{field: probability}), seeded())
    changed = int(((results - images).abs().flatten(1).amax(dim=1) > 1e-3).sum())
    assert abs(changed - n * probability) < 4 * math.sqrt(n * probability * (1 - probability))


# --- brightness and erasing ----------------------------------------------------------------------


def test_brightness_factors_have_mean_one_the_uniform_variance_and_no_correlation():
    n, limit = 5000, 0.4
    images = torch.full((n, 3, 2, 2), 0.5)  # 0.5 * 1.4 stays below the clamp
    results = augment(images, config_with(brightness=limit), seeded())
    assert (results == results[:, :1, :1, :1]).all()  # one factor per image
    factor = results[:, 0, 0, 0].double() / 0.5
    variance = limit**2 / 3
    assert abs(factor.mean() - 1) < 4 * math.sqrt(variance / n)
    # The variance of a uniform variable's squared deviation is limit^4 * (1/5 - 1/9).
    assert abs(factor.var() - variance) < 4 * limit**2 * math.sqrt((1 / 5 - 1 / 9) / n)
    centred = factor - factor.mean()
    lagged = float((centred[1:] * centred[:-1]).mean() / centred.square().mean())
    assert abs(lagged) < 4 / math.sqrt(n)


def test_brightness_is_clamped_at_white():
    results = augment(torch.ones(200, 1, 2, 2), config_with(brightness=0.5), seeded())
    assert results.max() == 1
    assert results.min() < 0.6


def erased_by_timm(n: int, side: int) -> Tensor:
    """Return (n, side, side) bool: what timm's random erasing takes away."""
    random.seed(0)
    erase = RandomErasing(probability=1.0, mode="const", device="cpu")
    return torch.cat([erase(torch.ones(1, side, side)) == 0 for _ in range(n)])


def test_erased_boxes_are_rectangles_with_the_areas_shapes_and_places_of_timm():
    n, side = 3000, 32
    sentinel = torch.full((n, 3, side, side), 2.0)  # outside of the noise's range
    results = augment(sentinel, config_with(random_erasing=1.0), seeded())
    erased = results < 1
    assert (erased == erased[:, :1]).all()  # all channels
    assert (results[~erased] == 2).all()
    rows, columns = erased[:, 0].any(dim=2).sum(dim=1), erased[:, 0].any(dim=1).sum(dim=1)
    share = erased[:, 0].float().mean(dim=(1, 2))
    assert torch.allclose(share * side**2, (rows * columns).float())
    assert share.min() > 0.015  # 2 % and a third, give or take the rounding of sides to pixels
    assert share.max() < 0.36
    theirs = erased_by_timm(n, side)
    their_rows, their_columns = theirs.any(dim=2).sum(dim=1), theirs.any(dim=1).sum(dim=1)
    tops, their_tops = erased[:, 0].any(dim=2).int().argmax(1), theirs.any(dim=2).int().argmax(1)
    lefts, their_lefts = erased[:, 0].any(dim=1).int().argmax(1), theirs.any(dim=1).int().argmax(1)
    for ours, other in (
        (share, theirs.float().mean(dim=(1, 2))),
        (rows / columns, their_rows / their_columns),
        (tops, their_tops),
        (lefts, their_lefts),
    ):
        assert stats.ks_2samp(ours.numpy(), other.numpy()).pvalue > 0.001
    noise = results[erased]
    assert abs(noise.mean() - 0.5) < 4 / math.sqrt(12 * len(noise))


# --- for the eye ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_image_grid_shows_originals_beside_augmented_images(name):
    images = real_images(3)
    with Image.open(write_grid(name, images)) as picture:
        sheet = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert sheet.shape == (3, 3 * 68 * 2, 9 * 68 * 2)
    small = sheet[:, ::2, ::2]
    for row, image in enumerate(images):
        top = 68 * row
        assert torch.equal(small[:, top : top + 64, :64], (image * 255).round().byte())
    others = small[:, :64, 68:].reshape(3, 64, 8, 68)[..., :64].permute(2, 0, 1, 3)
    changed = (others != (images[0] * 255).round().byte()).flatten(1).any(dim=1)
    assert int(changed.sum()) >= 4
