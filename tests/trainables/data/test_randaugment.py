"""RandAugment on batches: each operation beside torchvision's and timm's.

Tolerances on means are four standard errors, those on distributions the 99.9 % quantile of the
test's own distribution.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data import auto_augment as timm_ops
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from tests.trainables.image_grid import config_with, real_images
from tests.trainables.noise import noise_images, seeded
from trainables.data import augment as module
from trainables.data.augment import augment
from trainables.data.randaugment import GEOMETRIC, OPERATIONS, PHOTOMETRIC, photometric, randaugment


def test_every_image_gets_every_operation_equally_often():
    n, rounds, side = 50, 120, 8
    images = noise_images(n, 3, side, side)
    # The photometric operations at magnitude 5 all differ from each other on noise.
    candidates = torch.stack(
        [images]
        + [photometric(name, images, 5.0, sign=sign) for name in PHOTOMETRIC for sign in (1, -1)]
    )
    draws = seeded()
    counts = dict.fromkeys(OPERATIONS, 0)
    of_first_image = dict.fromkeys(OPERATIONS, 0)
    for _ in range(rounds):
        results, (matrix,) = randaugment(images, 1, 5.0, draws)
        distance = (candidates - results).abs().flatten(2).amax(dim=2)  # (candidates, n)
        assert distance.amin(dim=0).max() < 1e-6  # each result is an operation on its own image
        for i, found in enumerate(distance.argmin(dim=0).tolist()):
            name = PHOTOMETRIC[(found - 1) // 2] if found else geometric_name(matrix[i], side)
            counts[name] += 1
            of_first_image[name] += i == 0
    expected = n * rounds / len(OPERATIONS)
    for name, count in counts.items():  # dealing from a deck varies less than the binomial
        assert abs(count - expected) < 4 * math.sqrt(expected), name
    assert stats.chisquare(list(of_first_image.values())).pvalue > 0.001


def geometric_name(matrix: Tensor, side: int) -> str:
    """Return the operation at magnitude 5 that the matrix (2, 3) stands for."""
    identity = torch.eye(2, 3)
    difference = (matrix - identity).abs() > 1e-6
    changed = {(int(row), int(column)) for row, column in difference.nonzero()}
    return {
        frozenset(): "identity",
        frozenset({(0, 0), (0, 1), (1, 0), (1, 1)}): "rotate",
        frozenset({(0, 1), (0, 2)}): "shear_x",
        frozenset({(1, 0), (1, 2)}): "shear_y",
        frozenset({(0, 2)}): "translate_x",
        frozenset({(1, 2)}): "translate_y",
    }[frozenset(changed)]


def on_one_image(name: str, image: Tensor, magnitude: float, sign: int) -> Tensor:
    """Return torchvision's result for one image (c, h, w)."""
    level = magnitude / 10
    factor = max(0.1, 1 + sign * 0.9 * level)
    match name:
        case "autocontrast":
            return tv.autocontrast(image)
        case "equalize":
            return tv.equalize(image)
        case "solarize":
            return tv.solarize(image, (256 - int(level * 256)) / 255)
        case "posterize":
            return tv.posterize(image, 4 - int(level * 4))
        case "color":
            return tv.adjust_saturation(image, factor)
        case "contrast":
            return tv.adjust_contrast(image, factor)
        case "brightness":
            return tv.adjust_brightness(image, factor)
        case _:
            return tv.adjust_sharpness(image, factor)


@pytest.mark.parametrize("name", PHOTOMETRIC)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [5.0, 9.0])
def test_photometric_operation_equals_torchvision_on_single_images(name, sign, magnitude):
    images = real_images(6)
    images[0] = 0.5  # nothing to stretch
    results = photometric(name, images, magnitude, sign=sign)
    for image, result in zip(images, results, strict=True):
        theirs = on_one_image(name, image, magnitude, sign)
        assert (result - theirs).abs().max() < 1e-6


TIMM_NAMES = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "solarize": "SolarizeIncreasing",
    "posterize": "PosterizeIncreasing",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


def timm_arguments(name: str, magnitude: float, sign: int, monkeypatch: pytest.MonkeyPatch):
    """Return timm's arguments at a magnitude, in a fixed direction."""
    level_to_argument = timm_ops.LEVEL_TO_ARG[TIMM_NAMES[name]]
    monkeypatch.setattr(timm_ops, "_randomly_negate", lambda value: sign * value)
    return level_to_argument(magnitude, {}) if level_to_argument else ()


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name", PHOTOMETRIC)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [0.0, 5.0, 9.0])
def test_photometric_operation_equals_timm_on_pillow(name, sign, magnitude, monkeypatch):
    """Within two grey levels: Pillow rounds after each step, we never do."""
    images = real_images(6)
    results = photometric(name, images, magnitude, sign=sign)
    arguments = timm_arguments(name, magnitude, sign, monkeypatch)
    operation = timm_ops.NAME_TO_OP[TIMM_NAMES[name]]
    for image, result in zip(images, results, strict=True):
        theirs = torch.from_numpy(np.array(operation(as_pillow(image), *arguments)))
        difference = (result - theirs.permute(2, 0, 1) / 255).abs().max()
        assert difference < 2.01 / 255


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("sign", [1, -1])
def test_geometric_operation_equals_timm_on_pillow(name, sign, monkeypatch):
    """Inside, that is where all four neighbours are pixels: the fill and the rim differ."""
    magnitude, side = 9.0, 64
    images = real_images(28 * 2)
    _, (matrix,) = randaugment(images, 1, magnitude, seeded())
    row, column = {
        "rotate": (1, 0),
        "shear_x": (0, 1),
        "shear_y": (1, 0),
        "translate_x": (0, 2),
        "translate_y": (1, 2),
    }[name]  # the entry that has the direction's sign
    wanted = [
        i
        for i in range(len(images))
        if geometric_name(matrix[i], side) == name and float(matrix[i, row, column]) * sign > 0
    ]
    assert len(wanted) == 2  # two of 56 per operation and direction
    at = module._centred(images, side)
    x, y = at.view(1, 1, -1), at.view(1, -1, 1)
    ours = module._sample(images[wanted], matrix[wanted], x, y)
    inside = module._sample(torch.ones_like(ours), matrix[wanted], x, y) > 1 - 1e-4
    arguments = timm_arguments(name, magnitude, sign, monkeypatch)
    operation = timm_ops.NAME_TO_OP[TIMM_NAMES[name]]
    for i, result, valid in zip(wanted, ours, inside, strict=True):
        changed = operation(
            as_pillow(images[i]), *arguments, resample=Image.Resampling.BILINEAR, fillcolor=0
        )
        theirs = torch.from_numpy(np.array(changed)).permute(2, 0, 1) / 255
        assert valid.float().mean() > 0.5
        assert (result - theirs)[valid].abs().max() < 1.5 / 255


def test_all_geometry_of_randaugment_is_in_the_result():
    """The matrices of two slots compose to the second's, then the first's, from output to input."""
    n, side = 28, 16
    images = torch.rand(1, 1, side, side, generator=seeded()).expand(n, -1, -1, -1)
    _, turns = randaugment(images, 2, 3.0, seeded(4))
    composed = module._compose(turns[0], turns[1])
    point = torch.tensor([3.0, -5.0, 1.0])
    for i in range(n):
        inner = torch.cat((turns[1][i] @ point, torch.ones(1)))
        assert torch.allclose(composed[i] @ point, turns[0][i] @ inner, atol=1e-5)
    assert not torch.equal(turns[0], turns[1])


def test_black_stays_black_and_outside_is_black_under_randaugment():
    """Solarize and the like come before the geometry, so the fill is always zero."""
    white = torch.ones(280, 3, 16, 16)
    results = augment(white, config_with(randaugment_ops=1, randaugment_magnitude=9.0), seeded())
    moved = ((results > 0) & (results < 1)).sum() + (results == 0).sum()
    assert moved > 0
    translated = [r for r in results if (r[:, :, :6] == 0).all() and (r[:, :, 8:] == 1).all()]
    assert len(translated) == 10  # of 280: one direction of translate_x, 6.48 px
