"""What a sweep will take, measured: a few steps of every variant on this machine's device.

Each variant is measured in a process of its own, as a trial of the sweep would run, with the
parameters of its first suggestion. What early stopping will save is not foreseen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.config import SweepConfig
    from orchestrator.plan import Plan
    from trainables.timing import TrainingTime


def measure(config: SweepConfig, plan: Plan, console: Console) -> dict[str, dict[str, float]]:
    """Measure every variant here, saying how it goes, and print what the sweep will take.

    Returns:
        the fields of `TrainingTime`, by variant.

    Raises:
        UsageError: the dataset is not prepared, a variant cannot be trained, or none fits here.
    """
    from orchestrator import capacity
    from trainables import forward

    folder = config.data.folder / plan.dataset
    if not (folder / "manifest.json").is_file():
        raise UsageError(
            f"`--measure` trains on the dataset, and {folder} holds none. Prepare it with "
            f"`python -m orchestrator.data prepare {plan.dataset}`."
        )
    cpus, gpus = float(os.cpu_count() or 1), float(forward.num_gpus())
    fits = capacity.check_fit(plan, [(cpus, gpus)], config.gpus_per_trial)
    measured = {}
    for number, variant in enumerate(plan.variants, start=1):
        console.print(f"Measuring {variant} ({number} of {len(plan.variants)}).", highlight=False)
        measured[variant] = _measured(plan, variant, folder)
    print_forecast(console, plan, measured, min(config.max_concurrent or fits, fits))
    return {variant: asdict(own) for variant, own in measured.items()}


def _measured(plan: Plan, variant: str, dataset: Path) -> TrainingTime:
    from orchestrator.study import new_study
    from trainables.timing import training_time

    trial = plan.train_config(variant, 0, new_study(plan, variant).ask(0))
    # Spawned: what this process holds is no trial's, and CUDA does not survive a fork.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(training_time, trial, dataset).result()
        except Exception as error:
            raise UsageError(
                f"{variant} cannot be measured: {type(error).__name__}: {error} Its trials would "
                "most likely fail as well; leave it out with --variants, or --measure."
            ) from error


def print_forecast(
    console: Console, plan: Plan, measured: Mapping[str, TrainingTime], concurrent: int
) -> None:
    """Print what the sweep will take if no trial is stopped early.

    Args:
        console: where.
        plan: the sweep.
        measured: from `measure`.
        concurrent: trials at a time.
    """
    from rich.table import Table

    from orchestrator.display import clock

    table = Table(title="Forecast, from a few steps of each model here")
    table.add_column("variant", no_wrap=True)
    for name in ("step", "epoch", "trial", "all trials", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    total_s = 0.0
    for variant, own in measured.items():
        trial_s = plan.epochs(variant) * own.epoch_s
        finals = plan.final_seeds if plan.space.params_for(variant) else 0
        all_s = trial_s * (plan.trials + finals)
        total_s += all_s
        table.add_row(
            variant,
            f"{1000 * own.step_s:,.1f} ms",
            f"{own.epoch_s:,.1f} s",
            clock(trial_s),
            clock(all_s),
            f"{own.peak_gib:.2f} GiB",
        )
    console.print(table)
    at_a_time = "one trial" if concurrent == 1 else f"{concurrent} trials"
    console.print(
        f"In all {total_s / 3600:,.2f} device-hours; with {at_a_time} at a time about "
        f"{clock(total_s / concurrent)}, as long as they do not slow each other down. Early "
        "stopping makes it less.",
        soft_wrap=True,
        highlight=False,
    )
