"""What a sweep will take, measured: a few steps of every variant on this machine's device.

Each variant is measured in a process of its own, as a trial of the sweep would run, with the
parameters of its first suggestion. What early stopping will save is not foreseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.plan import Plan
    from trainables.timing import TrainingTime


def measure(plan: Plan, dataset: Path, console: Console) -> dict[str, TrainingTime]:
    """Measure every variant of a plan, saying how it goes.

    Args:
        plan: what will be trained.
        dataset: folder of the prepared dataset.
        console: where progress is printed.

    Raises:
        OrchestratorError: a variant cannot be trained here; the message has its error.
    """
    from orchestrator.study import Study
    from trainables.timing import training_time

    found: dict[str, TrainingTime] = {}
    for number, variant in enumerate(plan.variants, start=1):
        console.print(f"Measuring {variant} ({number} of {len(plan.variants)}).", highlight=False)
        study = Study(
            variant,
            plan.space.params_for(variant),
            mode=plan.space.mode,
            startup_trials=plan.space.startup_trials,
            sweep_seed=plan.seed,
            enqueued=plan.space.enqueued if plan.space.params_for(variant) else (),
        )
        config = plan.train_config(variant, 0, study.ask(0))
        # Spawned: what this process holds is no trial's, and CUDA does not survive a fork.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            try:
                found[variant] = pool.submit(training_time, config, dataset).result()
            except Exception as error:
                raise OrchestratorError(
                    f"{variant} cannot be measured: {type(error).__name__}: {error} Its trials "
                    "would most likely fail as well; try it alone with --variants."
                ) from error
    return found


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
