"""`--measure`: forecasts a sweep from a few training steps of every variant on this machine.

Each variant is measured in a process of its own, as a trial of the sweep runs, with the
hyperparameters of its first trial. The forecast assumes that no trial is stopped early.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from orchestrator.errors import UsageError
from orchestrator.ledger.ledger import Ledger
from orchestrator.plan import budget, disk, forecast, machines
from orchestrator.plan.options import SweepConfig, given_options
from orchestrator.plan.plan import Costs, Plan
from orchestrator.search.sampler import study_of
from orchestrator.storage.paths import DATASET_MANIFEST
from orchestrator.sweep.progress import duration
from trainables import limits

if TYPE_CHECKING:
    from trainables.training.probe import TrainingTime


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepForecast:
    """What the remaining trials of a sweep take if none is stopped early."""

    concurrent: int  # trials at a time
    epochs: int  # of all trials
    wall_s: float
    device_s: float  # of all trials' devices, as `budget.shares` counts them
    disk_bytes: int  # the most that checkpoints take
    devices: Mapping[str, float]  # that a trial counts as, by variant


def measure(
    config: SweepConfig, plan: Plan, costs: Costs, console: Console, ledger: Ledger | None = None
) -> dict[str, float]:
    """Return the measured seconds of an epoch by variant; print the forecast and store it.

    The ledger keeps the first measurement of each variant, and the forecast from before the first
    trial; it is None for a sweep that is only planned.

    Raises:
        UsageError: the dataset is not prepared, a variant cannot be trained, or none fits here.
    """
    options = ledger.header().options if ledger else given_options(config)
    concurrent = _concurrent(config, plan, options)
    measured = _measure_variants(config, plan, console)
    epoch_s = {variant: times.epoch_s for variant, times in measured.items()}
    trials = [t for t in ledger.trials() if t.variant in plan.variants] if ledger else []
    latest = ledger.latest_epochs() if ledger else {}
    epochs = {v: forecast.epochs_left(plan, v, trials, latest) for v in plan.variants}
    sweep = forecast_sweep(
        epochs,
        epoch_s,
        budget.shares(plan, options.get("gpus_per_trial")),
        longest_s=max((plan.epochs(v) * epoch_s[v] for v in epochs if epochs[v]), default=0.0),
        concurrent=concurrent,
        disk_bytes=disk.forecast_bytes(plan, costs, config.max_concurrent, options.get("keep")),
    )
    print_forecast(console, plan, measured, epochs, sweep)
    if ledger is not None:
        first = {variant: asdict(times) for variant, times in measured.items()}
        ledger.put("forecast", {**first, **ledger.header().forecast})
        if not ledger.attempts():
            ledger.put("forecast_whole", asdict(sweep))
    return epoch_s


def forecast_sweep(
    epochs: Mapping[str, int],
    epoch_s: Mapping[str, float],
    devices: Mapping[str, float],
    *,
    longest_s: float,
    concurrent: int,
    disk_bytes: int,
) -> SweepForecast:
    """Return the forecast for trials that do not slow each other down.

    `epochs` of all trials, `epoch_s` of one epoch and `devices` of one trial are by variant;
    `longest_s` is the time of the longest trial.
    """
    all_s = {variant: number * epoch_s[variant] for variant, number in epochs.items()}
    return SweepForecast(
        concurrent=concurrent,
        epochs=sum(epochs.values()),
        wall_s=max(sum(all_s.values()) / concurrent, longest_s),
        device_s=sum(devices[variant] * seconds for variant, seconds in all_s.items()),
        disk_bytes=disk_bytes,
        devices=devices,
    )


def _concurrent(config: SweepConfig, plan: Plan, options: Mapping[str, Any]) -> int:
    """Return how many trials run on this machine at a time."""
    from trainables.training import device

    here = (float(limits.num_cpus()), float(device.num_gpus()))
    fits = machines.check_fit(plan, [here], options.get("gpus_per_trial"))
    return min(config.max_concurrent or fits, fits)


def _measure_variants(config: SweepConfig, plan: Plan, console: Console) -> dict[str, TrainingTime]:
    """Return the times of trials; n workers are assumed to be n times as fast as one."""
    folder = config.data.folder / plan.dataset
    if not (folder / DATASET_MANIFEST).is_file():
        raise UsageError(
            f"`--measure` trains on the dataset, and {folder} holds none. Prepare it with "
            f"`python -m orchestrator.data prepare {plan.dataset}`."
        )
    measured = {}
    for number, variant in enumerate(plan.variants, start=1):
        console.print(f"Measuring {variant} ({number} of {len(plan.variants)}).")
        times = _measure_variant(plan, variant, folder)
        workers = machines.workers_per_trial(plan)
        measured[variant] = replace(times, epoch_s=times.epoch_s / workers)
    return measured


def _measure_variant(plan: Plan, variant: str, dataset: Path) -> TrainingTime:
    from trainables.training.probe import training_time

    trial = plan.train_config(variant, 0, study_of(plan, variant).ask(0))
    # Spawned, because trials do not share this process's state and CUDA does not survive a fork.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(training_time, trial, dataset).result()
        except Exception as error:
            raise UsageError(
                f"{variant} cannot be measured: {type(error).__name__}: {error} Its trials would "
                "most likely fail as well. Leave it out with --variants, or leave out --measure."
            ) from error


def print_forecast(
    console: Console,
    plan: Plan,
    measured: Mapping[str, TrainingTime],
    epochs: Mapping[str, int],
    sweep: SweepForecast,
) -> None:
    """Print the forecast of each variant, with its epochs left to train, and of the sweep."""
    table = Table(title="Forecast from a few steps of each variant on this machine")
    table.add_column("variant", no_wrap=True)
    for name in ("step", "epoch", "trial", "all trials", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant, times in measured.items():
        table.add_row(
            variant,
            f"{1000 * times.step_s:,.1f} ms",
            f"{times.epoch_s:,.1f} s",
            duration(plan.epochs(variant) * times.epoch_s),
            duration(epochs[variant] * times.epoch_s),
            f"{times.peak_gib:.2f} GiB",
        )
    console.print(table)
    at_a_time = "one trial" if sweep.concurrent == 1 else f"{sweep.concurrent} trials"
    workers = machines.workers_per_trial(plan)
    console.print(
        f"In total {sweep.device_s / 3600:,.2f} device-hours; with {at_a_time} at a time about "
        f"{duration(sweep.wall_s)}, if they do not slow each other down"
        + (f" and {workers} workers are {workers} times as fast as one. " if workers > 1 else ". ")
        + "Early stopping shortens this; starting trials and testing add to it. "
        f"Checkpoints take up to {disk.gib(sweep.disk_bytes)}.",
        soft_wrap=True,
    )
