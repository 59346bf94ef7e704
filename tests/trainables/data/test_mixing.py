"""Mixup and CutMix: shares, boxes, targets.

Tolerances on means are four standard errors, those on distributions the 99.9 % quantile of the
test's own distribution.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.trainables.image_grid import config_with
from tests.trainables.noise import noise_images, seeded
from trainables.data import mixing
from trainables.data.mixing import mix

MIXES: dict[str, dict[str, Any]] = {
    "mixup": {"mixup_alpha": 0.4},
    "cutmix": {"cutmix_alpha": 1.0},
    "either": {"mixup_alpha": 0.4, "cutmix_alpha": 1.0},
}


@pytest.mark.parametrize("name", MIXES)
def test_mixing_is_deterministic_and_leaves_its_input(name):
    images, labels = noise_images(12), torch.arange(12) % 5
    kept = images.clone()
    config = config_with(**MIXES[name])
    first = mix(images, labels, 5, config, seeded(1))
    again = mix(images, labels, 5, config, seeded(1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert torch.equal(images, kept)
    assert not torch.equal(first[0], mix(images, labels, 5, config, seeded(2))[0])


def mixed_levels(n: int, size_px: int = 1, **fields: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return images of one grey level per index, mixed; and targets over one class per index."""
    levels = torch.arange(n) / n
    images = levels.view(-1, 1, 1, 1).expand(n, 1, size_px, size_px)
    mixed, targets = mix(images, torch.arange(n), n, config_with(**fields), seeded())
    return levels, mixed, targets


@pytest.mark.parametrize("name", MIXES)
def test_targets_sum_to_one_and_weigh_as_the_pixels_do(name):
    levels, mixed, targets = mixed_levels(200, size_px=16, **MIXES[name])
    assert targets.shape == (200, 200)
    assert targets.dtype == torch.float32
    assert (targets.sum(dim=1) - 1).abs().max() < 1e-6
    assert ((targets > 0).sum(dim=1) <= 2).all()
    # The mean pixel is the levels' mean, weighted by the target.
    assert (mixed.mean(dim=(1, 2, 3)) - targets @ levels).abs().max() < 1e-5


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 3.0])
def test_mixup_shares_follow_the_beta_distribution_per_image(alpha):
    n = 3000
    shares = mixing._draw_beta(torch.zeros(n, 1, 1, 1), alpha, seeded()).double().numpy()
    assert np.isfinite(shares).all()
    assert abs(shares.mean() - 0.5) < 4 * math.sqrt(1 / (4 * (2 * alpha + 1)) / n)
    # Of shares below 1e-6 or above 1 - 1e-6 float32 keeps too little for a test of the shape.
    kept = np.clip(shares, 1e-6, 1 - 1e-6)
    grid = np.linspace(0.001, 0.999, 999)
    ours = np.searchsorted(np.sort(kept), grid) / n
    theirs = stats.beta(alpha, alpha).cdf(grid)
    assert np.abs(ours - theirs).max() < stats.kstwobign.ppf(0.999) / math.sqrt(n)


def test_cutmix_copies_one_box_and_its_share_is_the_target():
    n, h, w = 300, 12, 20
    images = noise_images(n, 3, h, w)
    mixed, targets = mix(images, torch.arange(n), n, config_with(cutmix_alpha=1.0), seeded())
    partner = images.roll(1, 0)
    own = (mixed == images).all(dim=1)
    foreign = (mixed == partner).all(dim=1)
    assert (own | foreign).all()  # every pixel is a copy
    box = ~own
    rows, columns = box.any(dim=2).sum(dim=1), box.any(dim=1).sum(dim=1)
    assert torch.equal(box.sum(dim=(1, 2)), rows * columns)
    share = own.float().mean(dim=(1, 2))
    assert (targets.diagonal() - share).abs().max() < 1e-6
    assert (targets.roll(1, 1).diagonal() + share - 1).abs().max() < 1e-6
    assert share.unique().numel() > 50  # boxes are drawn per image


def test_cutmix_boxes_have_the_area_of_timm():
    """Mean share against timm's own function on the same distribution."""
    from timm.data.mixup import cutmix_bbox_and_lam

    n, size_px = 3000, 32
    images = torch.zeros(n, 1, size_px, size_px)
    draws = seeded()
    own = mixing._draw_beta(images, 1.0, draws)
    ours = 1 - mixing._cutmix_boxes(images, own, draws).float().mean(dim=(1, 2, 3)).numpy()
    np.random.seed(0)
    theirs = [
        cutmix_bbox_and_lam((size_px, size_px), share)[1]
        for share in np.random.beta(1.0, 1.0, size=n)
    ]
    assert stats.ks_2samp(ours, np.array(theirs)).pvalue > 0.001


def test_with_both_alphas_each_image_takes_one_of_the_two_equally_often():
    n = 1500
    levels, mixed, _ = mixed_levels(n, size_px=8, mixup_alpha=1.0, cutmix_alpha=1.0)
    own, partner = levels.view(-1, 1, 1), levels.roll(1, 0).view(-1, 1, 1)
    pixels = mixed[:, 0]
    blended = ((pixels != own) & (pixels != partner)).flatten(1).all(dim=1)
    copied = ((pixels == own) | (pixels == partner)).flatten(1).all(dim=1)
    assert (blended ^ copied).float().mean() > 0.99
    assert abs(int(blended.sum()) - n / 2) < 4 * math.sqrt(n / 4)


def test_equal_labels_keep_a_hard_target():
    labels = torch.full((6,), 2)
    _, targets = mix(noise_images(6), labels, 4, config_with(mixup_alpha=1.0), seeded())
    assert torch.allclose(targets, torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(6, 4))
