"""Small trials on the digits, as the tests of the training core run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from trainables.config import TrainConfig
from trainables.data import augment, dataset
from trainables.training import checkpoint, loop
from trainables.training.loop import EpochEnd

CPU = torch.device("cpu")

# A network and a recipe in which everything draws random numbers or keeps state.
EVERY_DRAW: dict[str, Any] = {
    "variant": "cnn3_bn",
    "dropout": 0.3,
    "ema_decay": 0.9,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "hflip": True,
    "crop_padding_px": 1,
    "rotation_deg": 10.0,
    "brightness": 0.2,
    "random_erasing": 0.3,
    "label_smoothing": 0.1,
    "clip_grad_norm": 1.0,
    "l2": 1e-4,
    "weight_decay": 1e-2,
    "warmup_epochs": 0.5,
}


def digits_config(digits_dir: Path, **values: Any) -> TrainConfig:
    """A trial of `cnn3` at 32 px with batches of 32 and two steps per epoch, unless told else.

    In float32, so that sums can be compared closely and on every CPU.
    """
    return TrainConfig(
        **{
            "variant": "cnn3",
            "dataset": "digits",
            "dataset_fingerprint": dataset.load_manifest(digits_dir).fingerprint,
            "epochs": 2,
            "seed": 7,
            "image_size_px": 32,
            "batch_size": 32,
            "steps_per_epoch": 2,
            "lr": 0.02,
            "precision": "float32",
            **values,
        }
    )


def train(config: TrainConfig, digits_dir: Path, folder: Path | None = None) -> list[EpochEnd]:
    """Train on the CPU to the end."""
    return list(loop.fit(config, digits_dir, checkpoints=folder, device=CPU))


def learned(ends: list[EpochEnd]) -> list[dict[str, float]]:
    """The figures of each epoch without those that a clock or the machine decides."""
    measured = {"epoch_s", "images_per_s", "device_peak_gib", "data_s", "val_s", "checkpoint_s"}
    return [
        {name: value for name, value in end.metrics.to_dict().items() if name not in measured}
        for end in ends
    ]


def seeds_drawn_from(config: TrainConfig, digits_dir: Path) -> tuple[list[int], list[int]]:
    """The seeds of dropout's and of augmentation's generator, in each epoch of a training."""
    layers, augmentation = [], []

    def augmented(images: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
        augmentation.append(generator.initial_seed())
        layers.append(torch.initial_seed())
        return images

    with mock.patch.object(augment, "augment", augmented):
        train(config, digits_dir)
    return list(dict.fromkeys(layers)), list(dict.fromkeys(augmentation))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, weights and optimizer state, by a path of names."""
    weights, optimizer, _ = checkpoint.load(folder)
    return dict(_walk("", {"weights": weights, "optimizer": optimizer}))


def assert_same_tensors(left: Path, right: Path) -> None:
    """Two checkpoints hold bitwise the same weights and optimizer state."""
    ours, theirs = tensors_of(left), tensors_of(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def _walk(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(f"{path}/{name}", item)
