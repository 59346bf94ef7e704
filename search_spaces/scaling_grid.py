"""The grid over depth, width and resolution from which compound scaling was derived.

B0 is scaled in 14 ways of about equal cost: alpha * beta^2 * gamma^2 is about 2 at each point
(alpha: depth, beta: width, gamma: resolution). The paper's point (1.2, 1.1, 1.15) and the three
single dimensions are included. The recipe is that of `cifar100_family`, on CIFAR-100.

Data: `python -m orchestrator.data prepare cifar100`
Command: `python -m orchestrator.sweep scaling_grid`
Quick check on a sample of the data:
    `--epochs 1 --trials 1 --variants efficientnet_b0,efficientnet_b0_d1.2_w1.1_r1.15`
    Do not use `--image-size N`: it removes the resolution from the grid.
Published: (1.2, 1.1, 1.15) is the best point, on ImageNet.

The networks' real cost differs: blocks are rounded up, channels to multiples of 8 and image sizes
to whole pixels. They take 1.9 to 3.8 times B0's multiply-accumulates, so compare their accuracy
at their multiply-accumulates.
"""

import math

from search_spaces.cifar100_family import RECIPE
from search_spaces.space import SearchSpace

PAPER = (1.2, 1.1, 1.15)
_DEPTHS = (1.0, 1.2, 1.4, 1.6, 2.0)
_WIDTHS = (1.0, 1.1, 1.2, 1.3, 1.41)


def _points() -> tuple[tuple[float, float, float], ...]:
    """Return (alpha, beta, gamma), with gamma to two decimals so that the product is about 2.

    The paper's point keeps its own gamma (the product is 1.92).
    """
    points = []
    for alpha in _DEPTHS:
        for beta in _WIDTHS:
            gamma = round(math.sqrt(2.0 / (alpha * beta**2)), 2)
            if gamma >= 1.0:  # the paper scales up only
                points.append(PAPER if (alpha, beta) == PAPER[:2] else (alpha, beta, gamma))
    return tuple(points)


GRID = _points()


def variant_of(point: tuple[float, float, float]) -> str:
    """Return the variant's name for (alpha, beta, gamma), such as efficientnet_b0_d2_w1_r1."""
    alpha, beta, gamma = point
    return f"efficientnet_b0_d{alpha:g}_w{beta:g}_r{gamma:g}"


SPACE = SearchSpace(
    name="scaling_grid",
    dataset="cifar100",
    variants=("efficientnet_b0", *map(variant_of, GRID)),
    trials=3,
    image_size="native",
    base={**RECIPE, "dropout": 0.2},
    source="Tan and Le, 2019, section 3.3",
    recipe_notes=(
        "The paper names only its best point, found on ImageNet, without other points or results. "
        "Here alpha (depth) is 1, 1.2, 1.4, 1.6 or 2, beta (width) 1, 1.1, 1.2, 1.3 or 1.41, and "
        "gamma (resolution) follows from alpha * beta^2 * gamma^2 = 2 and is at least 1.",
        "alpha * beta^2 * gamma^2 is 1.92 at the paper's point and within 1 % of 2 at all others; "
        "the networks' counted multiply-accumulates are 1.9 to 3.8 times B0's, since blocks are "
        "rounded up, channels to multiples of 8 and sizes to whole pixels.",
        "The recipe is that of the study `cifar100_family`, with B0's dropout at every point.",
    ),
)
