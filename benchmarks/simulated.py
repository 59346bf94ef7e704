"""Sweeps with simulated trials, which report metrics without training; the rest is real."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from orchestrator.ledger.ledger import Ledger, create_ledger
from orchestrator.plan.plan import Plan
from search_spaces.space import SearchSpace
from trainables.metrics import METRIC_NAMES

PARAMS = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "batch_size": CategoricalDistribution([32, 64, 128]),
    "optimizer": CategoricalDistribution(["sgd", "adamw"]),
}
VARIANTS = ("cnn2", "cnn3", "resnet50", *(f"efficientnet_b{n}" for n in range(7)))


def plan(*, trials: int, variants: Sequence[str], epochs: int) -> Plan:
    """Return a plan with `trials` per variant and early stopping after 1, 3 and 9 epochs."""
    space = SearchSpace(
        name="simulated",
        dataset="digits",
        variants=tuple(variants),
        trials=trials,
        image_size=64,
        base={"epochs": epochs},
        params=PARAMS,
        first_rung_epochs=1,
        rung_factor=3,
    )
    return Plan(
        space=space,
        seed=0,
        trials=trials,
        variants=space.variants,
        image_size_px=dict.fromkeys(space.variants, 64),
        dataset="digits",
        fingerprint="f" * 8,
        overrides={},
    )


def new_ledger(folder: Path, plan: Plan) -> Ledger:
    """Return a ledger without trials, with the header that tracker and retention read."""
    facts = {
        "sweep_id": "0123456789ab",
        "created_s": time.time(),
        "plan": plan.identity(),
        "keep_best": plan.space.keep_best,
        "options": {},
        "dataset": "digits",
        "versions": {},
    }
    return create_ledger(folder / "ledger.sqlite", facts)


def metrics(config: Mapping[str, Any], epoch: int) -> dict[str, float]:
    """Return the metrics of an epoch; trials near lr 0.01 and dropout 0.2 are better."""
    return dict.fromkeys(METRIC_NAMES, 1.0) | {"val_top1": curve(config, epoch)}


def curve(config: Mapping[str, Any], epoch: int) -> float:
    """Return the accuracy of a simulated trial after an epoch."""
    miss = abs(math.log10(config["lr"]) + 2) / 4 + abs(config["dropout"] - 0.2)
    reached: float = (1 - miss) * (1 - 0.5 ** (epoch + 1))
    return reached


def trial(epoch_s: float) -> Callable[[dict[str, Any]], None]:
    """Return a replacement of `execution.worker.run_trial` that sleeps and reports each epoch."""

    def run_trial(config: dict[str, Any]) -> None:
        from ray import tune

        job = json.loads(config["job"])
        address = {"signature": job["signature"], "attempt": job["attempt"]}
        epochs = job["config"]["epochs"]
        for epoch in range(epochs):
            time.sleep(epoch_s)
            row = {"epoch": epoch, "checkpoint": None, **metrics(job["config"], epoch)}
            last = {"outcome": "complete"} if epoch + 1 == epochs else {}
            tune.report({**address, "kind": "epoch", **row, **last})

    return run_trial


def run(plan: Plan, folder: Path, *, epoch_s: float, concurrent: int, address: str) -> Ledger:
    """Run a plan under Ray as the sweep command does, and return its ledger."""
    from orchestrator.clock import Clock
    from orchestrator.execution import cluster, tune_adapter, worker
    from orchestrator.search.scheduler import TrialScheduler
    from orchestrator.storage.paths import DataLocation, SweepPaths

    ledger = new_ledger(folder, plan)
    scheduler = TrialScheduler(ledger, plan)
    worker.run_trial = trial(epoch_s)  # type: ignore[assignment]
    joined = cluster.connect(address, needs_state_api=False)
    tune_adapter.run(
        scheduler,
        paths=SweepPaths(folder, "simulated"),
        dataset=DataLocation(folder),
        options=tune_adapter.ExecutionOptions(
            max_concurrent=concurrent, gpus_per_trial=None, hang_timeout_s=600, keep_all=False
        ),
        is_local=joined.is_local,
        clock=Clock(),
    )
    cluster.disconnect()
    return ledger
