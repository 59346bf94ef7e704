"""RandAugment for a whole batch: each operation is computed only for the images that draw it.

The geometric operations are returned as matrices, so that `augment` samples only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_UNSIGNED = ("autocontrast", "equalize", "solarize", "posterize")
PHOTOMETRIC = (*_UNSIGNED, "color", "contrast", "brightness", "sharpness")
OPERATIONS = ("identity", *GEOMETRIC, *PHOTOMETRIC)  # the 14 of arXiv 1909.13719, figure 2
_SIGNS = (1, -1)  # every operation has two groups of rows, one for each direction


def randaugment(
    images: Tensor, num_ops: int, magnitude: float, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Apply the photometric operations, and return the geometric ones as matrices.

    For each of the `num_ops` slots the images are distributed at random over 14 operations x 2
    directions, in groups of one fixed size: every operation is computed on its own images only,
    without the host waiting for their number, so one slot costs one pass over the batch. Every
    image gets every operation and direction with the same probability; unlike with independent
    draws, none is used more than ceil(n / 28) times in one slot of a batch.

    `images` are (n, c, h, w) in 0 to 1, with 1 or 3 channels, on the device of `generator`, and are
    not modified; `magnitude` is 0 to 10. Each slot gives matrices (n, 2, 3) from output to input
    positions, in pixels from the image's centre, to be composed in order.

    Source: Cubuk et al., RandAugment, arXiv 1909.13719; magnitudes as timm 1.0's increasing variant
    (`rand-mM-inc1`, auto_augment.py). Deviations: no Invert and SolarizeAdd but identity (timm's
    list has the first two), each slot always applies (timm: half the time; the paper: always), at
    least one bit is kept by posterize (timm keeps none at magnitude 10), black fill and bilinear
    sampling (timm: the mean colour, bilinear or bicubic), all photometric operations before all
    geometric ones, so that the statistics they use are the image's own and the fill stays black.
    """
    n = len(images)
    places = math.ceil(n / (len(OPERATIONS) * len(_SIGNS)))  # per operation and direction
    num_rows = places * len(OPERATIONS) * len(_SIGNS)
    row_of_image = torch.arange(n, device=images.device)
    matrices = []
    for _ in range(num_ops):
        # A random permutation of images and spare rows, whose results are not used.
        dealt = torch.rand(num_rows, generator=generator, device=images.device)
        image_of_row = dealt.argsort(stable=True)
        images = images.index_select(0, row_of_image[image_of_row.clamp_max(n - 1)])
        row_of_image = image_of_row.argsort()[:n]
        _apply_photometric(images, places, magnitude)
        by_row = _geometric_matrices(images, places, magnitude)
        matrices.append(by_row.index_select(0, row_of_image))
    return images.index_select(0, row_of_image), matrices


def _cells(name: str, places: int) -> tuple[slice, slice]:
    """Return the adjacent groups of rows of an operation's positive and negative direction."""
    first = OPERATIONS.index(name) * len(_SIGNS) * places
    return slice(first, first + places), slice(first + places, first + 2 * places)


def _apply_photometric(images: Tensor, places: int, magnitude: float) -> None:
    """Apply every photometric operation to its rows, in place."""
    for name in PHOTOMETRIC:
        cells = _cells(name, places)
        if name in _UNSIGNED:
            both = slice(cells[0].start, cells[1].stop)
            images[both] = photometric(name, images[both], magnitude, sign=1)
            continue
        for cell, sign in zip(cells, _SIGNS, strict=True):
            images[cell] = photometric(name, images[cell], magnitude, sign=sign)


def photometric(name: str, images: Tensor, magnitude: float, *, sign: int) -> Tensor:
    """Return the images (n, c, h, w) after one photometric operation on all of them.

    `images` are in 0 to 1 and are not modified. `magnitude` is 0 to 10, and `sign` (1 or -1) is the
    direction of color, contrast, brightness and sharpness.
    """
    level = magnitude / 10
    factor = max(0.1, 1 + sign * 0.9 * level)  # _enhance_increasing_level_to_arg
    if name in _ADJUSTMENTS:
        return _ADJUSTMENTS[name](images, factor)
    result: Tensor
    match name:
        case "autocontrast":
            result = _autocontrast(images)
        case "equalize":
            result = tv.equalize(images)
        case "solarize":  # _solarize_increasing_level_to_arg: 256 is none, 0 inverts everything
            # Half a grey level lower, so that rounding has no effect on a pixel at the limit.
            threshold = (256 - int(level * 256) - 0.5) / 255
            result = torch.where(images >= threshold, 1 - images, images)
        case "posterize":  # _posterize_increasing_level_to_arg
            result = tv.posterize(images, max(1, 4 - int(level * 4)))
        case _:
            raise ValueError(
                f"Unknown photometric operation {name!r}. Known: {', '.join(sorted(PHOTOMETRIC))}."
            )
    return result


# The next two are torchvision's `autocontrast` and `adjust_sharpness` without their copies from the
# host, for which it would wait.


def _autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel to 0 to 1; a channel of one value stays as it is."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    flat = low == high
    span = (high - low).masked_fill(flat, 1)
    return ((images - low.masked_fill(flat, 0)) / span).clamp_(0, 1)


def _adjust_sharpness(images: Tensor, factor: float) -> Tensor:
    """Blend with (factor below 1) or move away from (above 1) a smoothed copy."""
    if min(images.shape[2:]) < 3:
        return images
    result = images.clone()
    inner = result[..., 1:-1, 1:-1]  # Pillow leaves the border as it is
    # Pillow's SMOOTH: all nine weigh 1, the centre 4 more; over 13.
    smooth = (9 * F.avg_pool2d(images, 3, stride=1) + 4 * inner) / 13
    inner.sub_(smooth).mul_(factor).add_(smooth)
    return result.clamp_(0, 1)


_ADJUSTMENTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "color": tv.adjust_saturation,
    "contrast": tv.adjust_contrast,
    "brightness": tv.adjust_brightness,
    "sharpness": _adjust_sharpness,
}


def _geometric_matrices(images: Tensor, places: int, magnitude: float) -> Tensor:
    """Return (rows, 2, 3): output to input positions in pixels from the image's centre."""
    rows, _, height, width = images.shape
    level = magnitude / 10
    matrix = images.new_zeros(rows, 2, 3)
    matrix.diagonal(dim1=1, dim2=2).fill_(1)
    # Entries with a sign that depends on the direction. Shears keep the top and left edge in place,
    # as Pillow's do: hence the offset by half the height or width.
    shear = 0.3 * level
    sine = math.sin(math.radians(30 * level))
    signed = {
        "rotate": ((0, 1, -sine), (1, 0, sine)),
        "shear_x": ((0, 1, shear), (0, 2, shear * height / 2)),
        "shear_y": ((1, 0, shear), (1, 2, shear * width / 2)),
        "translate_x": ((0, 2, 0.45 * level * width),),
        "translate_y": ((1, 2, 0.45 * level * height),),
    }
    for name, entries in signed.items():
        for cell, sign in zip(_cells(name, places), _SIGNS, strict=True):
            for row, column, value in entries:
                matrix[cell, row, column].fill_(sign * value)
    positive, negative = _cells("rotate", places)
    turned = slice(positive.start, negative.stop)
    matrix[turned].diagonal(dim1=1, dim2=2).fill_(math.cos(math.radians(30 * level)))
    return matrix
