"""Plans, ledgers and learning curves for tests without training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from orchestrator.ledger.ledger import Ledger, create_ledger
from orchestrator.plan.options import SweepConfig
from orchestrator.plan.plan import Plan
from orchestrator.sweep.arguments import _parser, config_from
from search_spaces.space import SearchSpace
from trainables.metrics import METRIC_NAMES

PARAMS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "batch_size": CategoricalDistribution([32, 64, 128]),
    "optimizer": CategoricalDistribution(["sgd", "adamw"]),
}


def metrics(**values: float) -> dict[str, float]:
    """Return the metrics of an epoch; those not given have a number of their own each."""
    return {name: float(number) for number, name in enumerate(METRIC_NAMES)} | values


def parse_args(argv: Sequence[str]) -> SweepConfig:
    """Return the configuration of a command line of `orchestrator.sweep`."""
    return config_from(_parser().parse_args(argv))


def space(**values: Any) -> SearchSpace:
    defaults: dict[str, Any] = {
        "name": "test",
        "dataset": "digits",
        "variants": ("cnn2", "cnn3"),
        "trials": 4,
        "image_size": 32,
        "base": {"epochs": 9},
        "params": PARAMS,
        "first_rung_epochs": 1,
        "rung_factor": 3,
        "startup_trials": 3,
        "max_attempts": 3,
    }
    return SearchSpace(**{**defaults, **values})


def evaluation(epoch: int, **values: float) -> dict[str, Any]:
    """Return an evaluation on the test split, without the fields that only the report reads."""
    average = {"per_class": [0.5, 0.7], "macro": 0.6, "weighted": 0.6}
    return {
        "split": "test",
        "images": 10,
        "epoch": epoch,
        **{"top1": 0.6, "top5": 1.0, "loss": 1.2, "ece": 0.1, "superclass_top1": None},
        **{"precision": average, "recall": average, "f1": average},
        **{"inference_ms": 1.5, "inference_images_per_s": 900.0},
        **values,
    }


def plan(
    space: SearchSpace,
    *,
    seed: int = 0,
    trials: int | None = None,
    final_seeds: int = 0,
    final_on_all: bool = False,
) -> Plan:
    return Plan(
        space=space,
        seed=seed,
        trials=trials or space.trials,
        variants=tuple(space.variants),
        image_size_px=dict.fromkeys(space.variants, 32),
        dataset="digits",
        fingerprint="f" * 8,
        overrides={},
        final_seeds=final_seeds,
        final_on_all=final_on_all,
    )


def new_ledger(path: Path, plan: Plan, **facts: Any) -> Ledger:
    """Create a ledger with a sweep header; `facts` replace or add fields."""
    return create_ledger(
        path,
        {
            "sweep_id": "0123456789ab",
            "created_s": 1_700_000_000.0,
            "plan": plan.identity(),
            "keep_best": plan.space.keep_best,
            "options": {},
            "dataset": "digits",
            "versions": {"torch": "2"},
            **facts,
        },
    )


def curve(config: Mapping[str, Any], epoch: int) -> float:
    """Return a trial's validation accuracy after an epoch: better near lr 0.01, dropout 0.2."""
    miss = abs(math.log10(config["lr"]) + 2) / 4 + abs(config["dropout"] - 0.2)
    return (1 - miss) * (1 - 0.5 ** (epoch + 1)) + (config["seed"] % 97) * 1e-4
