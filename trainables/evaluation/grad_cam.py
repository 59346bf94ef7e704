"""Grad-CAM: maps of the image areas that contribute most to a predicted class.

Legend: n images, c channels, h and w of the feature map, k classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def activation_maps(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """Return how much each place of the last feature map contributes to a class (Grad-CAM).

    Each channel is weighted by the mean gradient of the class' logit with respect to it; negative
    sums are cut off, and each map is scaled to a highest value of 1. With global average pooling
    and one linear layer this is CAM (Zhou et al., arXiv 1512.04150) without its negative part.
    Only the head is differentiated, and the model keeps no gradient.

    Args:
        model: in evaluation mode; a timm model or one of ours.
        images: (n, channels, height, width), prepared for the network.
        classes: (n,) class numbers.

    Returns:
        (n, h, w) float32 in 0 to 1, all 0 where nothing contributes. None where the last features
        have no place in the image: a transformer's tokens, or a map of a single pixel.

    Source: Selvaraju et al., Grad-CAM, arXiv 1610.02391, equations 1 and 2.
    """
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        return None
    network: Any = model
    with torch.no_grad():
        features = network.forward_features(images)
    if not isinstance(features, Tensor) or features.ndim != 4:
        return None
    is_channels_last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
    channels, places = (3, (1, 2)) if is_channels_last else (1, (2, 3))
    if features.shape[places[0]] * features.shape[places[1]] == 1:
        return None
    with torch.enable_grad():
        # A copy: the head of some models works in place.
        features = features.detach().requires_grad_()
        logits = network.forward_head(features.clone())
        score = logits.gather(1, classes[:, None]).sum()
        (slopes,) = torch.autograd.grad(score, features)
    weights = slopes.float().mean(dim=places, keepdim=True)
    maps = F.relu((weights * features.detach().float()).sum(dim=channels))
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, torch.zeros_like(maps))
