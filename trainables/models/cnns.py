"""The baseline CNNs of two studies, `tinyimagenet_baselines` and `cifar100_transfer`, as data.

Shapes in comments: n images, c channels, h and w pixels, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, pairwise

import torch
from torch import Tensor, nn

from trainables.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class CnnSpec:
    """Layers of one CNN: stacks of 3x3 convolutions, each max-pooled by 2, then dense layers.

    `stack_dropout` (empty: none) and `hidden_dropout` are the rates after each stack and each
    hidden layer, as multiples of the configuration's `dropout`.
    """

    stacks: tuple[tuple[int, ...], ...]  # channels of the convolutions between two poolings
    hidden: tuple[int, ...]  # units of the dense layers before the classifier
    same_padding: bool = False
    batch_norm: bool = False
    stack_dropout: tuple[float, ...] = ()
    hidden_dropout: tuple[float, ...]
    published_size_px: int = 64

    def map_size_px(self, image_size_px: int) -> int:
        """Return the last feature map's height in pixels; 0: the image is too small."""
        for stack in self.stacks:
            lost_px = 0 if self.same_padding else 2 * len(stack)
            image_size_px = max(0, image_size_px - lost_px) // 2
        return image_size_px

    def smallest_size_px(self) -> int:
        """Return the smallest image size of which at least one pixel reaches the dense layers."""
        return next(size_px for size_px in count(1) if self.map_size_px(size_px))


CNN_SPECS = {
    # Models 1 to 4 of the study `tinyimagenet_baselines`: figures 5 to 8, text of section IV. Where
    # it has no dropout (cnn2, cnn6), ours sits before the classifier and is off at 0; for cnn3 and
    # cnn3_bn it publishes 0.5.
    "cnn2": CnnSpec(stacks=((32,), (64,)), hidden=(1024,), hidden_dropout=(1.0,)),
    "cnn3": CnnSpec(stacks=((32,), (64,), (128,)), hidden=(512,), hidden_dropout=(1.0,)),
    "cnn6": CnnSpec(
        stacks=((64, 64), (128, 128), (256, 512)),
        hidden=(4096, 1024),
        same_padding=True,
        batch_norm=True,
        hidden_dropout=(0.0, 1.0),
    ),
    "cnn3_bn": CnnSpec(
        stacks=((64,), (128,), (256,)),
        hidden=(512,),
        same_padding=True,
        batch_norm=True,
        hidden_dropout=(1.0,),
    ),
    # The 9-layer CNN of the study `cifar100_transfer`, reconstructed: the study gives only the
    # number of layers and 13,870,484 parameters (32 px, 100 classes). These widths give exactly
    # that count, and they are those of the script in its author's public repository
    # (CIFAR100_ImageRecognition, CIFAR100_ImageClassification_FinalCode_001081074.py), which drops
    # out 0.2, 0.5, 0.5 after the stacks and 0.5 after the dense layers: all of it at `dropout` 0.5.
    "cnn9": CnnSpec(
        stacks=((128, 128), (256, 256), (512, 512)),
        hidden=(1000, 1000),
        same_padding=True,
        stack_dropout=(0.4, 1.0, 1.0),
        hidden_dropout=(1.0, 1.0),
        published_size_px=32,
    ),
}


class PlainCnn(nn.Module):
    """A CNN of `CnnSpec`: every hidden layer is linear, then batch norm if any, then ReLU."""

    def __init__(self, config: TrainConfig, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        spec, dropout, channels = CNN_SPECS[config.variant], config.dropout, in_channels
        layers: list[nn.Module] = []
        shares = spec.stack_dropout or (0.0,) * len(spec.stacks)
        for stack, share in zip(spec.stacks, shares, strict=True):
            for width in stack:
                # Keras keeps the bias before a batch norm; the published totals count it.
                layers.append(nn.Conv2d(channels, width, 3, padding=int(spec.same_padding)))
                layers += [nn.BatchNorm2d(width)] if spec.batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                channels = width
            layers.append(nn.MaxPool2d(2))
            layers += [nn.Dropout(share * dropout)] if share else []
        self.features = nn.Sequential(*layers)

        layers = []
        units = (channels * spec.map_size_px(config.image_size_px) ** 2, *spec.hidden)
        for (inputs, outputs), share in zip(pairwise(units), spec.hidden_dropout, strict=True):
            layers.append(nn.Linear(inputs, outputs))
            layers += [nn.BatchNorm1d(outputs)] if spec.batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            layers += [nn.Dropout(share * dropout)] if share else []
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(units[-1], num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature maps, (n, c, h, w) -> (n, c', h', w'), as timm's models do."""
        maps: Tensor = self.features(images)
        return maps

    def forward_head(self, maps: Tensor) -> Tensor:
        """Return the logits of the last feature maps, (n, c', h', w') -> (n, k)."""
        logits: Tensor = self.classifier(self.hidden(maps.flatten(1)))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: (n, c, h, w) -> (n, k)."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Return the last layer, as timm's models do."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[float, ...]]:
        """Return the function from a parameter's name to the number of its layer, for timm.

        A layer is a convolution or a dense layer with its batch norm. `coarse` is part of timm's
        interface and has no effect.
        """
        depths, depth = {}, -1
        for name, module in self.named_modules():  # in the order of the forward pass
            depth += isinstance(module, nn.Conv2d | nn.Linear)
            depths[name] = depth

        def layer(parameter: str) -> tuple[float, ...]:
            return (float(depths[parameter.rpartition(".")[0]]),)

        return layer


def build_cnn(config: TrainConfig, *, num_classes: int, in_channels: int) -> PlainCnn:
    """Build one of `CNN_SPECS` for images of `in_channels` x `image_size_px` x `image_size_px`.

    Weights are initialised as in Keras, which the studies used: Glorot uniform, zero biases. Batch
    norm has torch's epsilon 1e-5 and momentum 0.1 (Keras: 1e-3 and the equivalent of 0.01), because
    with the latter the running statistics lag behind in a training of few epochs.

    Raises:
        ValueError: the images are too small for the network.
    """
    if problems := too_small(config.variant, config.image_size_px):
        raise ValueError(*problems)
    device = torch.get_default_device()
    # Built without memory first, so that torch's own initialisation is not computed.
    with torch.device("meta"):
        model = PlainCnn(config, num_classes=num_classes, in_channels=in_channels)
    _give_memory(model, device)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
    return model


def _give_memory(model: nn.Module, device: torch.device) -> None:
    """Do what `model.to_empty(device=device)` does, without its import of sympy (0.4 s)."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            empty = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            module.register_parameter(name, nn.Parameter(empty))
        for name, buffer in module.named_buffers(recurse=False):
            empty = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            module.register_buffer(name, empty)


def too_small(name: str, image_size_px: int) -> list[str]:
    """Return the sentence for images that are too small for a CNN; none for others."""
    smallest_px = CNN_SPECS[name].smallest_size_px()
    if image_size_px >= smallest_px:
        return []
    return [
        f"{name!r} needs images of at least {smallest_px} x {smallest_px} px, because its "
        "convolutions and poolings leave nothing of smaller ones; got "
        f"{image_size_px} px. Set the image size to {smallest_px} or more."
    ]
