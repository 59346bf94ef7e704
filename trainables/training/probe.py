"""Measures how fast a network trains on this device."""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainables.config import TrainConfig
from trainables.data import batches
from trainables.data.dataset import training_and_validation_rows
from trainables.training import loop
from trainables.training.device import default_device

_STEPS = 8  # of each of two epochs, of which the first warms up and may compile


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingTime:
    """Time of a step, of an epoch with its checkpoint, and peak memory."""

    step_s: float
    epoch_s: float
    peak_gib: float


def training_time(config: TrainConfig, dataset: Path) -> TrainingTime:
    """Return the time of a configuration, from two epochs of a few training and evaluation steps.

    `dataset` is the folder of the prepared dataset. Several workers are measured as one with the
    whole batch. Raises any error of the training.
    """
    device = default_device()
    train, val = training_and_validation_rows(
        dataset, config.dataset_fingerprint, config.validation_fraction, config.split_seed
    )
    steps = batches.steps_in_epoch(len(train), config.batch_size)
    trained = min(steps, _STEPS)
    steps_in_all = config.epochs * min(steps, config.steps_per_epoch or steps)
    short = replace(
        config,
        # As many steps in total, so that it is compiled where the whole training is.
        epochs=max(config.epochs, math.ceil(steps_in_all / trained), 2),
        steps_per_epoch=_STEPS,
        workers=1,
        freeze_epochs=0,
    )
    ends: list[float] = []

    def on_step() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        training = loop.fit(short, dataset, checkpoints=Path(folder), on_step=on_step)
        _, epoch = itertools.islice(training, 2)
    gaps = [after - before for before, after in itertools.pairwise(ends[trained : 2 * trained])]
    mean_s = (epoch.metrics.epoch_s - epoch.metrics.val_s) / trained
    step_s = statistics.median(gaps) if gaps else mean_s  # one step has no gap
    evaluated = min(len(val), max(config.batch_size, 256) * _STEPS)  # as `loop.evaluate` does
    image_s = epoch.metrics.val_s / evaluated if evaluated else 0.0
    if config.steps_per_epoch:
        steps, val = min(steps, config.steps_per_epoch), val[:evaluated]
    return TrainingTime(
        step_s=step_s,
        epoch_s=math.fsum((steps * step_s, len(val) * image_s, epoch.metrics.checkpoint_s)),
        peak_gib=epoch.metrics.device_peak_gib,
    )
