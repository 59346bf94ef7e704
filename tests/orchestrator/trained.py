"""A sweep of really trained digits: a ledger with two trials, their checkpoints, images to ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from orchestrator.ledger.ledger import Ledger
from orchestrator.storage.paths import SweepPaths
from tests.orchestrator.sweeps import new_ledger, plan, space
from tests.trainables.digits_trials import digits_config
from trainables.config import TrainConfig
from trainables.data import dataset
from trainables.training import loop

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Trained:
    """A storage with the sweep "tiny", whose best trial is `config` with its `checkpoint`."""

    storage: Path
    data_dir: Path
    config: TrainConfig
    checkpoint: Path
    value: float

    @property
    def manifest(self) -> dataset.Manifest:
        return dataset.load_manifest(self.data_dir / "digits")

    @property
    def paths(self) -> SweepPaths:
        return SweepPaths(self.storage, "tiny")


def train_sweep(storage: Path, data_dir: Path, **facts: Any) -> Trained:
    """Train `cnn2` a little and `cnn3` well, as trials of one sweep."""
    paths = SweepPaths(storage, "tiny")
    ledger = new_ledger(paths.ledger, plan(space()), **facts)
    digits = data_dir / "digits"
    some = digits_config(digits, variant="cnn2", epochs=1, ema_decay=0.5, lr=1e-3)
    good = digits_config(digits, epochs=2, steps_per_epoch=0, optimizer="adamw", lr=2e-3)
    _train(ledger, paths, some, digits)
    checkpoint, value = _train(ledger, paths, good, digits)
    ledger.close()
    return Trained(storage, data_dir, good, checkpoint, value)


def _train(
    ledger: Ledger, paths: SweepPaths, config: TrainConfig, digits: Path
) -> tuple[Path, float]:
    """Train one trial and record it as a driver does; return its best checkpoint and value."""
    key = config.signature()
    ledger.plan_trial(
        signature=key,
        variant=config.variant,
        number=0,
        config=config.to_dict(),
        params={},
        seen_seq=ledger.seq,
    )
    attempt = ledger.start_attempt(key, resumed_from=None, micro_batch_size=0)
    home = f"trials/{key}/attempt_{attempt}"
    values, best = [], 0
    for end in loop.fit(config, digits, checkpoints=paths.root / home, device=CPU):
        name = f"{home}/{end.checkpoint}"
        ledger.record_epoch(key, attempt, end.epoch, end.metrics.to_dict(), name)
        values.append(end.metrics.val_top1)
        best = end.best_epoch
    ledger.end_attempt(
        key, attempt, outcome="complete", trial_status="complete", best=(best, values[best])
    )
    return paths.root / home / f"epoch_{best:04d}", values[best]


def write_test_images(data_dir: Path, folder: Path, count: int) -> tuple[list[Path], np.ndarray]:
    """Write the first test images as PNG files of their own size; return files and pixels."""
    pixels, _ = dataset.open_split(data_dir / "digits", "test")
    files = []
    for row in range(count):
        file = folder / f"digit_{row}.png"
        Image.fromarray(pixels[row].squeeze(-1)).save(file)
        files.append(file)
    return files, pixels[:count]
