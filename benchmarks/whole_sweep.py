"""A whole sweep from the command to its end, to the same number of trial-epochs.

Small CNN on the real images, TPE, two trials at a time with one thread each, metrics in an MLflow
SQLite store. An epoch is 10 steps, with `--full` all of the images. Ours also saves a checkpoint of
every epoch, keeps a ledger and writes its report.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import documented, images
from benchmarks.harness import Benchmark, Measure, scratch
from orchestrator.ledger.ledger import open_ledger
from orchestrator.storage.paths import SweepPaths

SPACE = """
from optuna.distributions import CategoricalDistribution, FloatDistribution
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    name="whole", dataset="tinyimagenet", variants=("cnn3",), trials={trials}, image_size="native",
    base={{
        "epochs": 1, "steps_per_epoch": {steps}, "hflip": True,
        "optimizer": "adamw", "schedule": "constant",
    }},
    params={{
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "batch_size": CategoricalDistribution({batch_sizes}),
    }},
    final_seeds=0,
)
"""


BATCH_SIZES = (64, 128)


def run_ours(
    *, trials: int, concurrent: int, steps: int | None, batch_sizes: tuple[int, ...] = BATCH_SIZES
) -> tuple[float, int]:
    """Run our command: one epoch of `steps` steps (None: all) per trial.

    Returns:
        The seconds it took, and how many trials trained at a time, at most.
    """
    data_dir = images.prepared().parent
    folder = scratch() / f"ours-{trials}"
    folder.mkdir()
    (folder / "whole.py").write_text(
        SPACE.format(trials=trials, steps=steps or 0, batch_sizes=batch_sizes)
    )
    command = [sys.executable, "-m", "orchestrator.sweep", "whole.py"]
    command += ["--max-concurrent", str(concurrent), "--data-dir", str(data_dir)]
    if gpus := documented.gpu_share(concurrent):
        command += ["--gpus-per-trial", str(gpus)]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    began_s = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, env=env)
    took_s = time.perf_counter() - began_s
    with contextlib.closing(
        open_ledger(SweepPaths(folder / "results", "whole").ledger, read_only=True)
    ) as ledger:
        rows = [row for trial in ledger.trials() for row in ledger.epochs(trial.signature)]
    shutil.rmtree(folder)
    assert len(rows) == trials
    return took_s, _at_a_time([(r.arrived_s - r.metrics["epoch_s"], r.arrived_s) for r in rows])


def run_documented(
    *, trials: int, concurrent: int, steps: int | None, batch_sizes: tuple[int, ...] = BATCH_SIZES
) -> tuple[float, int]:
    """Run Ray Tune, a TorchTrainer per trial, OptunaSearch and MLflow's callback.

    Returns:
        As `run_ours`.
    """
    parts = _tensors()
    began_s = time.perf_counter()
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    folder = scratch() / f"documented-{trials}"
    # Two workers, each of which asks for a whole CPU, and their drivers, which only wait.
    ray.init(num_cpus=3, logging_level=logging.ERROR, include_dashboard=True)
    results = documented.tune(
        documented.start_torch_trainer,
        {
            "lr": tune.loguniform(1e-4, 1e-2),
            "dropout": tune.uniform(0.0, 0.5),
            "batch_size": tune.choice(batch_sizes),
            "epochs": 1,
            "steps": steps,
            "variant": "cnn3",
            "images": str(parts),
            "storage": str(folder / "train"),
            "gpus": documented.gpu_share(concurrent),
        },
        trials=trials,
        concurrent=concurrent,
        storage=folder / "tune",
        metric="val_top1",
        mode="max",
        callbacks=[
            MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder}.db", experiment_name="whole")
        ],
        actor_cpus=0.01,
        reuse_actors=True,
    )
    ray.shutdown()
    took_s = time.perf_counter() - began_s
    return took_s, _at_a_time([(r.metrics["began_s"], r.metrics["ended_s"]) for r in results])


def _at_a_time(spans: list[tuple[float, float]]) -> int:
    return max(sum(a <= start < b for a, b in spans) for start, _ in spans)


def _tensors() -> Path:
    """Return the file with the same images as ours, decoded already, split as ours are."""
    import torch

    from trainables.data import dataset

    path = scratch() / "images.pt"
    if not path.exists():
        pixels, labels = dataset.open_split(images.prepared(), "train")
        rows = dict(zip(("train", "val"), dataset.split_indices(labels, 0.1, 0), strict=True))
        parts = {
            name: (torch.from_numpy(pixels[chosen]), torch.from_numpy(labels[chosen]))
            for name, chosen in rows.items()
        }
        torch.save(parts, path)
    return path


def ours(full: bool) -> Measure:
    return _per_epoch(run_ours, full)


def torch_trainer(full: bool) -> Measure:
    """Ray Tune, a TorchTrainer per trial, OptunaSearch, MLflowLoggerCallback."""
    return _per_epoch(run_documented, full)


def _per_epoch(run: object, full: bool) -> Measure:
    trials, steps = (6, None) if full else (3, 10)
    took_s, at_a_time = run(trials=trials, concurrent=2, steps=steps)  # type: ignore[operator]
    return Measure(
        values=[took_s / trials],
        facts={"trial_epochs": trials, "steps": steps or "all", "trials_at_a_time": at_a_time},
    )


def train(batch_size: int) -> float:
    """Train two epochs of ten steps in this process, as a trial does; seconds of the second."""
    from trainables.config import TrainConfig
    from trainables.data import dataset
    from trainables.training import device, loop

    folder = images.prepared()
    config = TrainConfig(
        variant="cnn3",
        dataset="tinyimagenet",
        dataset_fingerprint=dataset.load_manifest(folder).fingerprint,
        epochs=2,
        seed=0,
        image_size_px=images.SIZE_PX,
        batch_size=batch_size,
        steps_per_epoch=10,
        hflip=True,
    )
    *_, last = loop.fit(config, folder, device=device.default_device())
    return last.metrics.epoch_s


def _training_s(probes: Mapping[str, float]) -> float:
    """Train an epoch in a warm process; on CPUs, with one thread as trials do, two at a time."""
    return statistics.mean(map(train, BATCH_SIZES)) / (1 if documented.gpu_share(1) else 2)


BENCHMARK = Benchmark(
    name="whole_sweep",
    title="whole sweep, small CNN on real images",
    unit="trial-epoch",
    contenders={"ours": ours, "Ray Tune + TorchTrainer + OptunaSearch + MLflow": torch_trainer},
    goals={"Ray Tune + TorchTrainer + OptunaSearch + MLflow": 5},
    goals_cuda={"Ray Tune + TorchTrainer + OptunaSearch + MLflow": 20},
    limit=_training_s,
    limit_is_of_full=False,
)
