"""From "the previous trial is done" to the next one's first optimizer step.

Trials of one batch of a small CNN, one at a time. Ours is the real command, whose trials are
planned, checkpointed, recorded and tracked; it is timed by its ledger: from the arrival of a
trial's last epoch at the driver to the end of the next one's first step.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks import documented
from benchmarks.harness import Benchmark, Measure, scratch

SPACE = """
from optuna.distributions import FloatDistribution
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    name="start", dataset="digits", variants=("cnn3",), trials={trials}, image_size=32,
    base={{"epochs": 1, "steps_per_epoch": 1, "batch_size": 32, "optimizer": "adamw"}},
    params={{"lr": FloatDistribution(5e-4, 1e-2, log=True)}},
    final_seeds=0,
)
"""


def ours(full: bool) -> Measure:
    from orchestrator.ledger.ledger import open_ledger
    from orchestrator.storage.paths import SweepPaths

    trials = 200
    folder = scratch()
    (folder / "start.py").write_text(SPACE.format(trials=trials))
    command = [sys.executable, "-m", "orchestrator.sweep", "start.py", "--max-concurrent", "1"]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    ledger = open_ledger(SweepPaths(folder / "results", "start").ledger, read_only=True)
    rows = sorted(
        (row for trial in ledger.trials() for row in ledger.epochs(trial.signature)),
        key=lambda row: row.seq,
    )
    assert len(rows) == trials
    seconds = [
        row.arrived_s - row.metrics["val_s"] - row.metrics["checkpoint_s"] - before.arrived_s
        for before, row in itertools.pairwise(rows)
    ]
    whole_s = (rows[-1].arrived_s - rows[0].arrived_s) / (len(rows) - 1)
    return Measure(values=seconds, facts={"whole_trial_s": whole_s})


def torch_trainer(full: bool) -> Measure:
    """Ray Tune, and a TorchTrainer with one worker for every trial."""
    return _under_tune(
        documented.start_torch_trainer,
        trials=10 if full else 3,
        actor_cpus=0.01,
        reuse_actors=True,
    )


def tune_function(full: bool, *, reuse_actors: bool = False) -> Measure:
    """Ray Tune with a plain function, as it is or with `reuse_actors`."""
    return _under_tune(
        documented.train_function,
        trials=50 if full else 10 if reuse_actors else 3,
        actor_cpus=1,
        actor_gpus=documented.gpu_share(1),
        reuse_actors=reuse_actors,
    )


def optuna_alone(full: bool) -> Measure:
    """Optuna's `study.optimize` in this process: no process, checkpoint or record of a trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ends: list[dict[str, float]] = []

    def objective(trial: optuna.Trial) -> float:
        ends.append(
            documented.train_one_batch({"lr": trial.suggest_float("lr", 5e-4, 1e-2, log=True)})
        )
        return ends[-1]["loss"]

    optuna.create_study().optimize(objective, n_trials=50)
    return Measure(values=_gaps(ends))


def _under_tune(
    trainable: Any,
    *,
    trials: int,
    actor_cpus: float,
    actor_gpus: float = 0,
    reuse_actors: bool,
) -> Measure:
    import ray
    from ray import tune

    ray.init(num_cpus=2, logging_level=logging.ERROR, include_dashboard=True)
    results = documented.tune(
        trainable,
        {
            "lr": tune.loguniform(5e-4, 1e-2),
            "storage": str(scratch() / "train"),
            "gpus": documented.gpu_share(1),
        },
        trials=trials,
        concurrent=1,
        storage=scratch() / "tune",
        actor_cpus=actor_cpus,
        actor_gpus=actor_gpus,
        reuse_actors=reuse_actors,
    )
    ends = sorted((result.metrics for result in results), key=lambda m: m["first_step_s"])
    return Measure(values=_gaps(ends))


def _gaps(ends: list[dict[str, float]]) -> list[float]:
    return [after["first_step_s"] - before["done_s"] for before, after in itertools.pairwise(ends)]


def _bare_s(probes: Mapping[str, float]) -> float:
    """Build the model and take its first step on all cores, in a warm process."""
    seconds = []
    for _ in range(20):
        began_s = time.time()
        seconds.append(documented.train_one_batch({"lr": 1e-3})["first_step_s"] - began_s)
    return statistics.median(seconds)


BENCHMARK = Benchmark(
    name="trial_start",
    title="trial start: from the previous trial's end to the first optimizer step",
    unit="trial",
    contenders={
        "ours": ours,
        "Ray Tune + TorchTrainer": torch_trainer,
        "Ray Tune function": tune_function,
        "the same with reuse_actors": functools.partial(tune_function, reuse_actors=True),
        "Optuna alone": optuna_alone,
    },
    goals={"Ray Tune + TorchTrainer": 300, "Ray Tune function": 10},
    goals_cuda={"Ray Tune + TorchTrainer": 300, "Ray Tune function": 10},
    at_most=0.05,
    limit=_bare_s,
)
