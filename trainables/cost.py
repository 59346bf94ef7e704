"""What a configuration's model costs, counted without building it in memory."""

from __future__ import annotations

from trainables import models
from trainables.config import TrainConfig


def model_cost(config: TrainConfig, *, num_classes: int, in_channels: int) -> tuple[int, int]:
    """Return trainable parameters and multiply-accumulates of one image's forward pass.

    FLOPs are twice the multiply-accumulates. Weights are not read.

    Raises:
        ValueError: the model cannot be built with these choices.
    """
    import torch

    with torch.device("meta"):
        model = models.build_model(
            config,
            num_classes=num_classes,
            in_channels=in_channels,
            image_side_px=config.side_px,
            read_weights=False,
        )
    macs = models.count_multiply_accumulates(model, side_px=config.side_px, in_channels=in_channels)
    return models.count_parameters(model), macs
