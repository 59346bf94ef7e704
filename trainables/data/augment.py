"""Augmentation of a whole batch on its device, with random draws per image.

The host never waits for a value from the device: shapes and branches depend on the configuration
alone, so a step with it can be captured as a CUDA graph.

Legend: n batch, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.config import TrainConfig

_GRID_STEPS = 5  # albumentations' GridDistortion: num_steps
_GRID_LIMIT = 0.3  # albumentations' GridDistortion: distort_limit

# Elastic: the default of albumentations (alpha 1, sigma 50) moves nothing visibly. The strength is
# that of its example for 128 px images (alpha=120, sigma=120 * 0.05), as fractions of the size.
_ELASTIC_SIGMA = 6 / 128
_ELASTIC_STD = 120 / math.sqrt(3) / (2 * math.sqrt(math.pi) * 6) / 128  # 2.5 %

_ERASED_AREA = (0.02, 1 / 3)  # of the image; timm's RandomErasing
_ERASED_RATIO = (0.3, 1 / 0.3)  # height over width, uniform in the logarithm; timm
_ERASE_ATTEMPTS = 10  # boxes tried until one fits; timm


def augment(images: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Return randomly changed images; the same tensor if the configuration has no augmentation.

    In order: RandAugment's photometric operations; all geometric changes in one sampling pass
    (flips, then the crop, then rotation with shear and zoom about the centre, then RandAugment's
    geometric operations, then grid distortion and elastic displacement, which are added);
    brightness; random erasing. Sampling is bilinear with zeros outside. Since it is one pass,
    pixels that the crop moves out of the frame can be rotated back into it. With flips and the crop
    alone pixels are copied, not interpolated. Not inside `torch.autocast`: sampling positions need
    float32.

    `images` are (n, c, h, w) in 0 to 1 before normalisation, with 1 or 3 channels, and are not
    modified; the result has the same form, channels first in memory. `generator` is on their
    device, and the same state gives the same result.

    Raises:
        ValueError: `images` is not a float32 batch with 1 or 3 channels.
    """
    if images.dtype != torch.float32 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            "`augment` takes float32 images of shape (n, 1 or 3, h, w) in 0 to 1; got "
            f"{images.dtype} of shape {tuple(images.shape)}. Divide uint8 images by 255 first."
        )
    is_copied, is_interpolated = copies_pixels(config), _interpolates(config)
    moves = is_copied or is_interpolated or config.randaugment_ops
    if not (moves or config.brightness or config.random_erasing):
        return images
    images = images.contiguous()  # channels-last batches would take up to twice as long
    turns: list[Tensor] = []
    if config.randaugment_ops:
        from trainables.data.randaugment import randaugment  # torchvision takes a second to import

        images, turns = randaugment(
            images, config.randaugment_ops, config.randaugment_magnitude, generator
        )
    if turns or is_interpolated:
        images = _warp(images, config, turns, generator)
    elif is_copied:
        images = flip_and_crop(images.permute(0, 2, 3, 1), config, generator)
        images = images.permute(0, 3, 1, 2).contiguous()
    if config.brightness:
        factor = 1 + _symmetric(images, config.brightness, generator)
        images = (images * factor.view(-1, 1, 1, 1)).clamp_(0, 1)
    if config.random_erasing:
        images = _erase(images, config.random_erasing, generator)
    return images


def _symmetric(images: Tensor, half_range: float, generator: torch.Generator) -> Tensor:
    """Return (n,) uniform in +-half_range; zeros, without drawing, for 0."""
    if not half_range:
        return images.new_zeros(len(images))
    draws = torch.rand(len(images), generator=generator, device=images.device)
    return (2 * draws - 1) * half_range


def _happens(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Return (n,) bool, true with the given probability."""
    return torch.rand(len(images), generator=generator, device=images.device) < probability


def _draw_flips_and_offsets(
    images: Tensor, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (n,) bool of horizontal and vertical flips, and (2, n) offsets y, x of the crop, px.

    An offset is that of the crop in the unpadded image: -crop_padding_px to crop_padding_px.
    """
    n, padding, device = len(images), config.crop_padding_px, images.device
    never = torch.zeros(n, dtype=torch.bool, device=device)
    hflip = _happens(images, 0.5, generator) if config.hflip else never
    vflip = _happens(images, 0.5, generator) if config.vflip else never
    offsets = torch.zeros(2, n, dtype=torch.int64, device=device)
    if padding:
        offsets = torch.randint(-padding, padding + 1, (2, n), generator=generator, device=device)
    return hflip, vflip, offsets


def copies_pixels(config: TrainConfig) -> bool:
    """Return whether only flips and the crop move pixels, so that they can come first."""
    moves = config.hflip or config.vflip or config.crop_padding_px
    return bool(moves) and not config.randaugment_ops and not _interpolates(config)


def _interpolates(config: TrainConfig) -> bool:
    """Return whether pixels are moved by fractions of a pixel."""
    affine = config.rotation_deg or config.shear_deg or config.zoom
    return bool(affine or config.grid_distortion or config.elastic)


def flip_and_crop(pixels: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Flip, pad with zeros and crop by copying rows: exactly what slicing would give.

    Every output row is a run of w neighbouring pixels of one buffer that holds each row twice, as
    it is and mirrored, with zeros between the rows; only the runs' starts are drawn.

    `pixels` are (n, h, w, c) of any type, on the device of `generator`, and are not modified; the
    result has their shape and is contiguous.
    """
    n, height, width, c = pixels.shape
    padding = config.crop_padding_px
    hflip, vflip, (offset_y, offset_x) = _draw_flips_and_offsets(pixels, config, generator)
    copies = 2 if config.hflip else 1
    # Row: `padding` zeros, then w pixels. The zeros to the right of a row are those of the next.
    # The first row stands for all rows above and below the images.
    buffer = pixels.new_zeros(copies * n * height + 2, padding + width, c)
    inner = buffer[1:-1].view(copies, n, height, padding + width, c)[:, :, :, padding:]
    inner[0] = pixels
    if config.hflip:
        inner[1] = pixels.flip(2)

    i = torch.arange(height, device=pixels.device)
    row = i + offset_y.unsqueeze(1)  # (n, h)
    inside = (row >= 0) & (row < height)
    row = torch.where(vflip.unsqueeze(1), height - 1 - row, row)
    image = hflip * n + torch.arange(n, device=pixels.device)
    line = 1 + image.unsqueeze(1) * height + row
    start = line * (padding + width) + (padding + offset_x).unsqueeze(1)
    start = torch.where(inside, start, 0)
    runs = buffer.as_strided((buffer.numel() // c - width + 1, width * c), (c, 1))
    return runs.index_select(0, start.flatten()).view(n, height, width, c)


def _warp(
    images: Tensor, config: TrainConfig, turns: list[Tensor], generator: torch.Generator
) -> Tensor:
    """Compose all geometric changes and sample once."""
    matrix = _draw_affine(images, config, generator)
    for turn in turns:
        matrix = _compose(matrix, turn)
    _, _, height, width = images.shape
    x = _centred(images, width).view(1, 1, -1)
    y = _centred(images, height).view(1, -1, 1)
    if config.grid_distortion:
        happens = _happens(images, config.grid_distortion, generator).float().unsqueeze(1)
        x = x + (_grid_displacement(images, width, generator) * happens).unsqueeze(1)
        y = y + (_grid_displacement(images, height, generator) * happens).unsqueeze(2)
    if config.elastic:
        happens = _happens(images, config.elastic, generator).float().view(-1, 1, 1)
        x = x + _elastic_displacement(images, width, generator) * happens
        y = y + _elastic_displacement(images, height, generator) * happens
    return _sample(images, matrix, x, y)


def _centred(images: Tensor, size: int) -> Tensor:
    """Return (size,) positions of the pixels' centres, in pixels from the image's centre."""
    return torch.arange(size, dtype=images.dtype, device=images.device) - (size - 1) / 2


def _draw_affine(images: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Return (n, 2, 3) from output to input positions, in pixels from the image's centre.

    Source: the inverse matrix of torchvision's `affine` with shear along x alone (as its
    `RandomAffine` with one number), which comes after the flips and the crop.
    """
    hflip, vflip, offsets = _draw_flips_and_offsets(images, config, generator)
    angle = torch.deg2rad(_symmetric(images, config.rotation_deg, generator))
    shear = torch.tan(torch.deg2rad(_symmetric(images, config.shear_deg, generator)))
    scale = 1 + _symmetric(images, config.zoom, generator)
    sin, cos = angle.sin(), angle.cos()
    mirror_x, mirror_y = 1 - 2 * hflip.float(), 1 - 2 * vflip.float()
    rows = (
        mirror_x * (cos - sin * shear) / scale,
        mirror_x * (cos * shear + sin) / scale,
        mirror_x * offsets[1],
        mirror_y * -sin / scale,
        mirror_y * cos / scale,
        mirror_y * offsets[0],
    )
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the matrices (n, 2, 3) that apply `inner` to a position, then `outer`.

    Written out instead of `matmul`, which may run in TF32 and then errs by hundredths of a pixel.
    """
    linear = (outer[:, :, :2, None] * inner[:, None]).sum(dim=2)
    return torch.cat((linear[:, :, :2], linear[:, :, 2:] + outer[:, :, 2:]), dim=2)


def _sample(images: Tensor, matrix: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample the images (n, c, h, w) bilinearly at `matrix` (n, 2, 3) @ (x, y), zero outside.

    `x` and `y` are broadcastable to (n, h, w), in pixels from the centre.
    """
    _, _, height, width = images.shape
    a, b, tx = (matrix[:, 0] * (2 / width)).view(-1, 3, 1, 1).unbind(1)
    d, e, ty = (matrix[:, 1] * (2 / height)).view(-1, 3, 1, 1).unbind(1)
    grid = images.new_empty(len(images), height, width, 2)
    # In place: on a CPU `torch.stack` takes four times as long as the rest of the grid.
    torch.add(a * x, b * y + tx, out=grid[..., 0])
    torch.add(d * x, e * y + ty, out=grid[..., 1])
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _grid_displacement(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return (n, size): by how many pixels grid distortion moves each column (or row).

    The five equal cells show parts of the input whose lengths are 1 +- 0.3, scaled to fill the
    image again; linear between them. No position moves by more than 0.16 of the size.

    Source: albumentations 2.0's GridDistortion with its defaults (`num_steps=5`,
    `distort_limit=0.3`, `normalized=True`).
    """
    draws = torch.rand(len(images), _GRID_STEPS, generator=generator, device=images.device)
    lengths = 1 + (2 * draws - 1) * _GRID_LIMIT
    lengths = lengths / lengths.sum(dim=1, keepdim=True)
    centres = torch.arange(size, dtype=images.dtype, device=images.device) + 0.5
    step = torch.arange(_GRID_STEPS, dtype=images.dtype, device=images.device).unsqueeze(1)
    passed = (centres * (_GRID_STEPS / size) - step).clamp(0, 1)  # (5, size): of each cell
    return (lengths.unsqueeze(2) * passed).sum(dim=1) * size - centres


def _elastic_displacement(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return (n, h, w): the elastic displacement in pixels along the dimension of length `size`.

    Uniform noise per pixel, smoothed by a Gaussian, with mean 0 and a standard deviation of 2.5 %
    of the size at every pixel.

    Source: Simard et al., 2003, and albumentations' ElasticTransform, alpha=120 and sigma=6 at
    128 px. Deviations: sigma is a fraction of the size and the strength is the standard deviation
    after smoothing (alpha / sigma would keep it equal in pixels, not in fractions of the size);
    near the border the smoothing window is cut off and rescaled, not reflected; no affine part,
    which has its own fields.
    """
    n, _, height, width = images.shape
    noise = 2 * torch.rand(n, height, width, generator=generator, device=images.device) - 1
    smooth = _smoothing(images, height) @ noise @ _smoothing(images, width).T
    return smooth * (_ELASTIC_STD * size * math.sqrt(3))  # uniform noise has the variance 1 / 3


def _smoothing(images: Tensor, size: int) -> Tensor:
    """Return (size, size): Gaussian weights whose rows keep the variance of white noise."""
    i = torch.arange(size, dtype=images.dtype, device=images.device)
    distance = (i - i.unsqueeze(1)) / (_ELASTIC_SIGMA * size)
    weights = torch.exp(-0.5 * distance.square())
    length: Tensor = torch.linalg.vector_norm(weights, dim=1, keepdim=True)
    return weights / length


def boxes(images: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return (n, 1, h, w) bool, true inside a box of each image (n, c, h, w).

    All limits are (n,), in pixels; `top` and `left` are inside, `bottom` and `right` outside.
    """
    _, _, height, width = images.shape
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    rows = (y >= top.unsqueeze(1)) & (y < bottom.unsqueeze(1))
    columns = (x >= left.unsqueeze(1)) & (x < right.unsqueeze(1))
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def _erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Fill a random box of an image with noise, uniform in 0 to 1 per pixel and channel.

    After normalisation by about 0.45 and 0.25 that is noise of mean about 0 and standard deviation
    about 1.15, close to timm's `pixel` mode, which draws N(0, 1) after normalisation.

    Source: Zhong et al., Random Erasing, arXiv 1708.04896, with random values (its best fill);
    area, ratio and the ten attempts as timm's RandomErasing. The attempts are drawn together and
    the first that fits is taken, which is the same without a loop; if none fits, nothing happens.
    """
    n, _, height, width = images.shape
    draws = torch.rand(2, n, _ERASE_ATTEMPTS, generator=generator, device=images.device)
    low, high = _ERASED_AREA
    area = (low + (high - low) * draws[0]) * (height * width)
    log_low, log_high = math.log(_ERASED_RATIO[0]), math.log(_ERASED_RATIO[1])
    ratio = torch.exp(log_low + (log_high - log_low) * draws[1])
    tall = torch.sqrt(area * ratio).round().long()
    wide = torch.sqrt(area / ratio).round().long()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(dim=1, keepdim=True)  # 0 where none fits
    tall, wide = tall.gather(1, first).squeeze(1), wide.gather(1, first).squeeze(1)
    happens = _happens(images, probability, generator) & fits.any(dim=1)

    place = torch.rand(2, n, generator=generator, device=images.device)
    # `rand` may round up to the number of places when multiplied, hence the limit.
    top = torch.minimum((place[0] * (height - tall + 1)).long(), height - tall)
    left = torch.minimum((place[1] * (width - wide + 1)).long(), width - wide)
    box = boxes(images, top, top + tall, left, left + wide) & happens.view(-1, 1, 1, 1)
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return torch.where(box, noise, images)
