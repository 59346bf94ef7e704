"""Two worker processes train as one does, and judge what they save."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainables.digits_trials import (
    CPU,
    digits_config,
    learned,
    seeds_drawn_from,
    train,
)
from trainables.config import TrainConfig
from trainables.data import batches, dataset, preprocess
from trainables.models import build
from trainables.training import checkpoint, loop

TRIALS: dict[str, dict[str, Any]] = {
    "plain": {"variant": "cnn3", "ema_decay": 0.5, "clip_grad_norm": 1.0, "l2": 1e-3},
    "parts": {"variant": "cnn3", "micro_batch_size": 5},
    "frozen": {"variant": "cnn3", "freeze_epochs": 1, "micro_batch_size": 5, "lr": 0.05},
    "batch_norm": {"variant": "cnn3_bn", "ema_decay": 0.5, "epochs": 1, "hflip": True},
}


def as_rank(rank: int, digits_dir: Path, folder: Path) -> None:
    """Train all trials as one of two gloo processes and write the figures down."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    figures = {}
    for name, values in TRIALS.items():
        config = digits_config(digits_dir, workers=2, **values)
        figures[name] = learned(train(config, digits_dir, folder / name))
    (folder / f"figures_{rank}.json").write_text(json.dumps(figures))
    seeds = seeds_drawn_from(digits_config(digits_dir, workers=2), digits_dir)
    (folder / f"seeds_{rank}.json").write_text(json.dumps(seeds))
    while not (folder / f"seeds_{1 - rank}.json").exists():
        time.sleep(0.05)  # the other one may still need this one's answers
    # Gloo's threads have aborted a process at its end, on a busy machine; all is written by now.
    os._exit(0)


@pytest.fixture(scope="module")
def group(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained all trials."""
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(as_rank, (digits_dir, folder), nprocs=2)
    return folder


def figures_of(group: Path, rank: int, name: str) -> list[dict[str, float]]:
    return json.loads((group / f"figures_{rank}.json").read_text())[name]


@pytest.mark.parametrize("name", list(TRIALS))
def test_all_workers_report_the_same_metrics(group, name):
    assert figures_of(group, 0, name) == figures_of(group, 1, name)


@pytest.mark.parametrize("name", ["plain", "parts", "frozen"])
def test_two_workers_learn_the_same_as_one(group, digits_dir, tmp_path, name):
    # Without batch norm, whose statistics are each worker's own.
    config = digits_config(digits_dir, **TRIALS[name])
    alone = train(config, digits_dir, tmp_path)
    assert len(alone) == 2
    for ours, theirs in zip(learned(alone), figures_of(group, 0, name), strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)
    mine, _, _ = checkpoint.load(tmp_path / "epoch_0001")
    together, _, _ = checkpoint.load(group / name / "epoch_0001")
    assert mine.keys() == together.keys()
    for part, tensors in mine.items():
        for key, tensor in tensors.items():
            assert torch.allclose(tensor, together[part][key], atol=1e-5), (part, key)


def test_the_workers_evaluate_the_saved_weights(group, digits_dir):
    # Each worker has seen other images, so its batch-norm statistics differ from the saved ones
    # unless they are shared before the validation split is split among the workers.
    config = TrainConfig.from_dict(
        {**digits_config(digits_dir, **TRIALS["batch_norm"]).to_dict(), "workers": 2}
    )
    weights, _, state = checkpoint.load(group / "batch_norm" / "epoch_0000")
    assert state["signature"] == config.signature()
    model = build.build_model(config, num_classes=10, in_channels=1, read_weights=False)
    model.load_state_dict(weights["average"])
    store = batches.open_store(digits_dir, "train", CPU)
    rows = dataset.split_indices(store.labels.numpy(), 0.1, 0)[1]
    prepare = preprocess.preparation(config, dataset.load_manifest(digits_dir), CPU)
    loss, top1, top5 = loop.evaluate(config, model, store, torch.from_numpy(rows), prepare)
    (reported,) = figures_of(group, 0, "batch_norm")
    assert reported["val_loss"] == pytest.approx(loss, rel=1e-6)
    assert (reported["val_top1"], reported["val_top5"]) == (top1, top5)


def test_each_worker_draws_its_own_dropout_and_augmentation(group):
    layers, augmentation = zip(
        *(json.loads((group / f"seeds_{rank}.json").read_text()) for rank in (0, 1)), strict=True
    )
    assert len({*layers[0], *layers[1]}) == 4  # two epochs each
    assert len({*augmentation[0], *augmentation[1]}) == 4


def test_only_the_first_worker_writes(group):
    assert sorted(path.name for path in (group / "plain").iterdir()) == ["epoch_0000", "epoch_0001"]
