"""Parameters and multiply-accumulates of models, counted without allocating weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.config import TrainConfig
from trainables.models import build

if TYPE_CHECKING:
    from torch import nn


def model_cost(config: TrainConfig, *, num_classes: int, in_channels: int) -> tuple[int, int]:
    """Return trainable parameters and multiply-accumulates of one image's forward pass.

    FLOPs are twice the multiply-accumulates. Weights are not read.

    Raises:
        ValueError: the model cannot be built with these choices.
    """
    import torch

    with torch.device("meta"):
        model = build.build_model(
            config, num_classes=num_classes, in_channels=in_channels, read_weights=False
        )
    macs = count_multiply_accumulates(
        model, image_size_px=config.image_size_px, in_channels=in_channels
    )
    return count_parameters(model), macs


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(item.numel() for item in model.parameters() if item.requires_grad)


def count_published(model: nn.Module) -> int:
    """Return all parameters and batch-norm running means and variances, as Keras counts."""
    statistics = sum(
        item.numel()
        for name, item in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    )
    return sum(item.numel() for item in model.parameters()) + statistics


def count_multiply_accumulates(model: nn.Module, *, image_size_px: int, in_channels: int) -> int:
    """Return the multiply-accumulates of one image's forward pass; FLOPs are twice as many.

    Convolutions, linear layers and attention count, as in torch's `FlopCounterMode`; norms,
    activations and pooling do not. Only shapes are propagated, and the model is not changed.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    image = torch.empty(1, in_channels, image_size_px, image_size_px, device="meta")
    training = [module for module in model.modules() if module.training]
    model.eval()  # batch norm refuses a single value per channel in training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(model, shapes, (image,))
    finally:
        for module in training:
            module.training = True
    flops: int = counter.get_total_flops()
    return flops // 2
