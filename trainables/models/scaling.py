"""EfficientNet's compound scaling, and B0s scaled by it.

Names of variants, beside the three of `SINGLE_DIMENSION`:

    efficientnet_b0_phi<NUMBER>                         d = 1.2^phi, w = 1.1^phi, r = 1.15^phi
    efficientnet_b0_d<NUMBER>_w<NUMBER>_r<NUMBER>       any triple, such as d1.4_w1.2_r1.3

Source: Tan and Le, EfficientNet (arXiv 1905.11946v5), equation 3 and table 3.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

BASE_SIZE_PX = 224  # the paper's image size of B0

_LARGEST = 10.0  # of a multiplier: B7 has d = 3.1, w = 2.0; beyond 10 no device holds the result
_NUMBER = r"\d+(?:\.\d+)?"
_PHI = re.compile(rf"efficientnet_b0_phi({_NUMBER})")
_TRIPLE = re.compile(rf"efficientnet_b0_d({_NUMBER})_w({_NUMBER})_r({_NUMBER})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """Multipliers of B0's number of blocks, number of channels and image size."""

    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0

    def __post_init__(self) -> None:
        problems = [
            f"The {item.name} multiplier must be over 0 and at most {_LARGEST:g}; got {value:g}."
            for item in fields(self)
            if not 0.0 < (value := getattr(self, item.name)) <= _LARGEST
        ]
        if problems:
            raise ValueError(" ".join(problems))


# Table 3 of the paper, rows 2 to 4, trained by the space `cifar10_scaling`. The paper counts 1.8
# to 1.9 billion multiply-accumulates for each at 224 px; torch counts 1.58 (depth), 1.45
# (width) and 1.54 (resolution, 448 px), and 1.80 for the paper's compound row,
# d1.4_w1.2_r1.3 at 291 px.
SINGLE_DIMENSION = {
    "efficientnet_b0_depth": Scaling(depth=4.0),
    "efficientnet_b0_width": Scaling(width=2.0),
    "efficientnet_b0_resolution": Scaling(resolution=2.0),
}


def compound_scaling(
    phi: float, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15
) -> Scaling:
    """Return the three multipliers at `phi`: alpha^phi, beta^phi, gamma^phi.

    Compute grows by (alpha * beta^2 * gamma^2)^phi, about 2^phi. The published coefficients of B1
    to B7 follow the rule only roughly: phi = 1 gives B2's network exactly, but 258 px for its 260.

    Source: equation 3 of the paper; the coefficients are those of its grid search on B0.

    Raises:
        ValueError: a multiplier is not over 0 and at most 10.
    """
    if not all(math.isfinite(value) for value in (phi, alpha, beta, gamma)):
        raise ValueError(
            "phi, alpha, beta and gamma must be finite; "
            f"got phi={phi}, alpha={alpha}, beta={beta}, gamma={gamma}."
        )
    try:
        return Scaling(depth=alpha**phi, width=beta**phi, resolution=gamma**phi)
    except OverflowError as error:
        raise ValueError(f"The multipliers at phi={phi:g} are too large to compute.") from error


def scaling_of(variant: str) -> Scaling | None:
    """Return the scaling in a variant's name; None if it names no scaled B0.

    Raises:
        ValueError: a multiplier is out of range.
    """
    if variant in SINGLE_DIMENSION:
        return SINGLE_DIMENSION[variant]
    if match := _PHI.fullmatch(variant):
        return compound_scaling(float(match[1]))
    if match := _TRIPLE.fullmatch(variant):
        depth, width, resolution = map(float, match.groups())
        return Scaling(depth=depth, width=width, resolution=resolution)
    return None


def scaled_size_px(scaling: Scaling, image_size_px: int) -> int:
    """Return `image_size_px` times the resolution multiplier, to the nearest pixel (half: up)."""
    return math.floor(image_size_px * scaling.resolution + 0.5)


def build_scaled_b0(scaling: Scaling, **options: Any) -> nn.Module:
    """Build B0 with scaled depth and width; `scaled_size_px` applies the resolution.

    Channels are rounded to multiples of 8 and blocks rounded up, as in the published family. The
    options are those of `timm.create_model`.
    """
    from timm.models.efficientnet import _gen_efficientnet

    model: nn.Module = _gen_efficientnet(  # type: ignore[no-untyped-call]
        "efficientnet_b0",
        channel_multiplier=scaling.width,
        depth_multiplier=scaling.depth,
        **options,
    )
    return model
