"""What the rows compare with: scripts as Ray's, Optuna's and MLflow's documentation has them.

Ray 2.60: a Tune function that starts a `TorchTrainer` and hands its reports on
(docs.ray.io, "Hyperparameter Tuning with Ray Tune", Train V2); Optuna: `study.optimize`; MLflow:
`MLflowLoggerCallback`. Model, data and batches are the same as ours.
"""

from __future__ import annotations

import functools
import itertools
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def build(
    variant: str, *, classes: int, channels: int, image_size_px: int, dropout: float = 0.0
) -> Any:
    """Return the same network as ours, freshly initialised."""
    from trainables.config import TrainConfig
    from trainables.models.build import build_model

    config = TrainConfig(
        variant=variant,
        dataset="any",
        dataset_fingerprint="any",
        epochs=1,
        seed=0,
        image_size_px=image_size_px,
        dropout=dropout,
    )
    return build_model(config, num_classes=classes, in_channels=channels)


def train_one_batch(config: dict[str, Any]) -> dict[str, float]:
    """Train one batch of the digits and validate on 144 images, as a trial of ours does.

    Returns:
        `loss`, `first_step_s` and `done_s`: the times of day of the first optimizer step's end
        and of the end of all.
    """
    device = _device()
    images, labels = (part.to(device) for part in _digits())
    torch.manual_seed(0)
    model = build("cnn3", classes=10, channels=1, image_size_px=32).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    model.train()
    loss = F.cross_entropy(model(images[:32]), labels[:32])
    loss.backward()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    first_step_s = time.time()
    model.eval()
    with torch.inference_mode():
        F.cross_entropy(model(images[32:176]), labels[32:176]).item()
    return {"loss": loss.item(), "first_step_s": first_step_s, "done_s": time.time()}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_share(concurrent: int) -> float:
    """Return the share of this machine's GPU that each of so many trials gets; 0 without one."""
    return 1 / concurrent if torch.cuda.is_available() else 0.0


@functools.cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    images = F.interpolate(images[:176], size=(32, 32), mode="bicubic")
    return images, torch.from_numpy(digits.target[:176])


def start_torch_trainer(config: dict[str, Any]) -> None:
    """Run one trial as documented for Ray Train V2 under Tune: a worker group of its own.

    Args:
        config: the trial's, with `storage`, a folder, and `gpus`, the worker's share of a GPU.
    """
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    TorchTrainer(
        train_loop_of_torch_trainer,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=1,
            use_gpu=config["gpus"] > 0,
            resources_per_worker={"CPU": 1, "GPU": config["gpus"]} if config["gpus"] else None,
        ),
        run_config=train.RunConfig(
            name=f"trial-{time.time_ns()}",
            storage_path=config["storage"],
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    ).fit()


def train_loop_of_torch_trainer(config: dict[str, Any]) -> None:
    from ray import train

    for metrics in _loop(config):
        train.report(metrics)


def train_function(config: dict[str, Any]) -> None:
    """Run one trial as a plain Tune function."""
    from ray import tune

    for metrics in _loop(config):
        tune.report(metrics)


def _loop(config: dict[str, Any]) -> Any:
    if config.get("epochs"):
        yield from train_epochs(config)
    else:
        yield train_one_batch(config)


def train_epochs(config: dict[str, Any]) -> Any:
    """Train a small CNN on 64 px images in the precision and memory format that ours has.

    Args:
        config: `lr`, `dropout`, `batch_size`, `epochs`, `steps`, the most batches of an epoch and
            of its validation (None: all), `variant`, and `images`, the path of a tensor file with
            `train` and `val`, each uint8 images (n, h, w, c) and labels.
    """
    from torch.utils.data import DataLoader, TensorDataset

    from trainables.training.device import is_faster_in_bfloat16

    began_s = time.time()
    torch.set_num_threads(1)
    device = _device()
    parts = torch.load(config["images"], mmap=True, weights_only=True)
    train, val = (TensorDataset(*parts[name]) for name in ("train", "val"))
    loader = DataLoader(train, config["batch_size"], shuffle=True, drop_last=True)
    evaluated = DataLoader(val, 256)
    model: nn.Module = build(
        config["variant"], classes=200, channels=3, image_size_px=64, dropout=config["dropout"]
    ).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    uses = is_faster_in_bfloat16(config["variant"], device)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=uses)

    def batches(of: Any) -> Any:
        for pixels, labels in itertools.islice(of, config["steps"]):
            images = pixels.to(device).permute(0, 3, 1, 2).float().div_(255)
            yield images.sub_(0.45).div_(0.27), labels.to(device)

    for _ in range(config["epochs"]):
        model.train()
        for images, labels in batches(loader):
            flips = torch.rand(len(images), 1, 1, 1, device=device) < 0.5
            optimizer.zero_grad()
            with amp:
                loss = F.cross_entropy(model(torch.where(flips, images.flip(-1), images)), labels)
            loss.backward()
            optimizer.step()
        model.eval()
        correct = seen = 0
        with torch.inference_mode(), amp:
            for images, labels in batches(evaluated):
                correct += int((model(images).argmax(1) == labels).sum())
                seen += len(labels)
        times = {"began_s": began_s, "ended_s": time.time()}
        yield {"loss": loss.item(), "val_top1": correct / seen, **times}


def tune(  # noqa: PLR0913 - Tune's own
    trainable: Any,
    space: dict[str, Any],
    *,
    trials: int,
    concurrent: int,
    storage: Path,
    metric: str = "loss",
    mode: str = "min",
    scheduler: Any = None,
    callbacks: list[Any] | None = None,
    actor_cpus: float = 1,
    actor_gpus: float = 0,
    reuse_actors: bool = False,
) -> Any:
    """Run Ray Tune with OptunaSearch; returns its result grid.

    Raises:
        RuntimeError: a trial failed.
    """
    from ray import tune as ray_tune
    from ray.tune.search.optuna import OptunaSearch

    results = ray_tune.Tuner(
        ray_tune.with_resources(trainable, {"CPU": actor_cpus, "GPU": actor_gpus}),
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            metric=metric,
            mode=mode,
            num_samples=trials,
            max_concurrent_trials=concurrent,
            search_alg=OptunaSearch(),
            scheduler=scheduler,
            reuse_actors=reuse_actors,
        ),
        run_config=ray_tune.RunConfig(
            name="documented", storage_path=str(storage), verbose=0, callbacks=callbacks
        ),
    ).fit()
    if results.errors:
        raise RuntimeError(str(results.errors[0]))
    return results
