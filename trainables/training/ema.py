"""The moving average of weights (`ema_decay`), kept in a second model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def make_updater(average: nn.Module, model: nn.Module, decay: float) -> Callable[[int], None]:
    """Return the function that updates `average`, with its batch norms' statistics, from `model`.

    It takes the number of earlier updates: the decay warms up, or short trainings would be
    evaluated with weights close to the initial ones. torch's `AveragedModel` makes the host wait
    for a CUDA device at every step.

    Source: `tf.train.ExponentialMovingAverage` with `num_updates`, as in EfficientNet's reference
    code.
    """
    tensors = ((*part.parameters(), *part.buffers()) for part in (average, model))
    pairs = [(ours.detach(), theirs.detach()) for ours, theirs in zip(*tensors, strict=True)]
    averaged = [ours for ours, _ in pairs if ours.is_floating_point()]
    followed = [theirs for _, theirs in pairs if theirs.is_floating_point()]
    counts = [ours for ours, _ in pairs if not ours.is_floating_point()]
    counted = [theirs for _, theirs in pairs if not theirs.is_floating_point()]

    def update(updates: int) -> None:
        kept = min(decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(averaged, followed, 1 - kept)
        if counts:
            torch._foreach_copy_(counts, counted)

    return update
