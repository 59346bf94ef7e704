"""Mixup and CutMix of a whole batch on its device, with random draws per image.

The host never waits for a value from the device, so a step with it can be captured as a CUDA graph.

Legend: n batch, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.config import TrainConfig
from trainables.data.augment import boxes


def mix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    config: TrainConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Blend every image with the previous one in the batch: mixup, CutMix, or either at random.

    The share of the image itself is drawn per image from Beta(alpha, alpha). With both alphas
    above 0 each image takes one of the two with equal probability. CutMix' share is that of the
    box within the image. Batches are shuffled, so the previous image is a random one.

    Args:
        images: (n, c, h, w); not modified.
        labels: (n,) integers below `num_classes`.
        num_classes: k.
        config: `mixup_alpha` and `cutmix_alpha` are used; the loss applies label smoothing.
        generator: on the device of `images`.

    Returns:
        Images (n, c, h, w) and targets (n, k) float32 that sum to 1, or both arguments unchanged
        when both alphas are 0.

    Source: Zhang et al., mixup, arXiv 1710.09412; Yun et al., CutMix, arXiv 1905.04899, with timm's
    box (mixup.py, `rand_bbox`). Deviation: shares and boxes per image, not per batch.
    """
    if not (config.mixup_alpha or config.cutmix_alpha):
        return images, labels
    n, _, height, width = images.shape
    if config.cutmix_alpha:
        own = _draw_beta(images, config.cutmix_alpha, generator)
        outside = ~_cutmix_boxes(images, own, generator)  # (n, 1, h, w): where the image stays
        share = outside.sum(dim=(1, 2, 3)).float() / (height * width)
        weight = outside.float()
    if config.mixup_alpha:
        blend = _draw_beta(images, config.mixup_alpha, generator)
        if config.cutmix_alpha:
            cuts = torch.rand(n, generator=generator, device=images.device) < 0.5
            share = torch.where(cuts, share, blend)
            weight = torch.where(cuts.view(-1, 1, 1, 1), weight, blend.view(-1, 1, 1, 1))
        else:
            share, weight = blend, blend.view(-1, 1, 1, 1)
    # `lerp` is exact at weights 0 and 1, so CutMix copies pixels.
    mixed = torch.lerp(images.roll(1, 0), images, weight)
    one_hot = (labels.unsqueeze(1) == torch.arange(num_classes, device=labels.device)).float()
    targets = torch.lerp(one_hot.roll(1, 0), one_hot, share.unsqueeze(1))
    return mixed, targets


def _draw_beta(images: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Return (n,) from Beta(alpha, alpha), exact and finite for every alpha above 0.

    G / (G + G') of two Gamma(alpha) draws, each as Gamma(alpha + 1) * U^(1 / alpha) in logarithms
    (Marsaglia and Tsang, 2000): for small alpha Gamma draws underflow to 0, their logarithms do
    not. `torch.distributions` takes no generator; `torch._standard_gamma`, which it calls, does.
    """
    shape = images.new_full((2, len(images)), alpha + 1)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = 1 - torch.rand(2, len(images), generator=generator, device=images.device)  # (0, 1]
    log_gamma = gamma.log() + uniform.log() / alpha
    return torch.sigmoid(log_gamma[0] - log_gamma[1])


def _cutmix_boxes(images: Tensor, own: Tensor, generator: torch.Generator) -> Tensor:
    """Return (n, 1, h, w) bool: boxes of area 1 - own about a random centre, cut at the border."""
    n, _, height, width = images.shape
    side = torch.sqrt(1 - own)
    limits = []
    for size in (height, width):
        length = (size * side).long()
        centre = torch.randint(0, size, (n,), generator=generator, device=images.device)
        limits += [centre - length // 2, centre + (length + 1) // 2]
    return boxes(images, *limits)
