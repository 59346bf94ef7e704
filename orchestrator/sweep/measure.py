"""What a sweep will take, measured: a few steps of every variant on this machine's device.

Each variant is measured in a process of its own, as a trial of the sweep would run, with the
parameters of its first suggestion. What early stopping will save is not foreseen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from orchestrator.ledger.header import read_header
from orchestrator.plan import budget, forecast
from orchestrator.plan.options import given_options
from orchestrator.storage.paths import DATASET_MANIFEST

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.ledger.ledger import Ledger
    from orchestrator.plan.options import SweepConfig
    from orchestrator.plan.plan import Plan, VariantCost
    from trainables.training.probe import TrainingTime


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepForecast:
    """What was to be done of a sweep, as forecast.

    Attributes:
        concurrent: trials at a time.
        epochs: of all trials, if none is stopped early.
        wall_s: seconds on the clock.
        device_s: seconds of their devices, as `budget.shares` counts them.
        disk_bytes: the most that checkpoints take.
        devices: that a trial counts as, by variant.
    """

    concurrent: int
    epochs: int
    wall_s: float
    device_s: float
    disk_bytes: int
    devices: Mapping[str, float]


def measure(
    config: SweepConfig,
    plan: Plan,
    facts: Mapping[str, VariantCost],
    console: Console,
    ledger: Ledger | None = None,
) -> dict[str, float]:
    """Measure every variant here, saying how it goes, and print what is left of the sweep.

    Args:
        config: the command line.
        plan: the sweep.
        facts: of its variants.
        console: where it is said.
        ledger: the sweep's, which keeps the first forecast of each variant and that of the whole
            sweep from before it began; None: a sweep that is only planned.

    Returns:
        The seconds of a trial's epoch, by variant.

    Raises:
        UsageError: the dataset is not prepared, a variant cannot be trained, or none fits here.
    """
    from orchestrator.plan import disk, machines
    from trainables.training import device

    folder = config.data.folder / plan.dataset
    if not (folder / DATASET_MANIFEST).is_file():
        raise UsageError(
            f"`--measure` trains on the dataset, and {folder} holds none. Prepare it with "
            f"`python -m orchestrator.data prepare {plan.dataset}`."
        )
    options = read_header(ledger).options if ledger else given_options(config)
    share, keep = options.get("gpus_per_trial"), options.get("keep")
    cpus, gpus = float(os.cpu_count() or 1), float(device.num_gpus())
    fits = machines.check_fit(plan, [(cpus, gpus)], share)
    concurrent = min(config.max_concurrent or fits, fits)
    measured = {}
    for number, variant in enumerate(plan.variants, start=1):
        console.print(f"Measuring {variant} ({number} of {len(plan.variants)}).", highlight=False)
        measured[variant] = _measured(plan, variant, folder)
    trials = [t for t in ledger.trials() if t.variant in plan.variants] if ledger else []
    latest = ledger.latest_epochs() if ledger else {}
    epochs = {v: forecast.epochs_left(plan, v, trials, latest) for v in plan.variants}
    epoch_s = {v: _by_workers(plan, own.epoch_s) for v, own in measured.items()}
    whole = whole_of(
        epochs,
        epoch_s,
        budget.shares(plan, share),
        longest_s=max((plan.epochs(v) * epoch_s[v] for v in epochs if epochs[v]), default=0.0),
        concurrent=concurrent,
        disk_bytes=disk.forecast_bytes(
            plan, facts, config.max_concurrent or os.cpu_count() or 1, keep
        ),
    )
    print_forecast(console, plan, measured, epochs, whole)
    if ledger is not None:
        own = {v: {**asdict(times), "epoch_s": epoch_s[v]} for v, times in measured.items()}
        ledger.put("forecast", {**own, **read_header(ledger).forecast})
        if not ledger.attempts():
            ledger.put("forecast_whole", asdict(whole))
    return epoch_s


def whole_of(
    epochs: Mapping[str, int],
    epoch_s: Mapping[str, float],
    devices: Mapping[str, float],
    *,
    longest_s: float,
    concurrent: int,
    disk_bytes: int,
) -> SweepForecast:
    """Return what so many epochs take, of trials that do not slow each other down.

    Args:
        epochs: of all trials, by variant.
        epoch_s: seconds of one, by variant.
        devices: that a trial counts as, by variant.
        longest_s: seconds of the longest trial.
        concurrent: trials at a time.
        disk_bytes: the most that checkpoints take.
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


def _by_workers(plan: Plan, epoch_s: float) -> float:
    """Return a trial's epoch; several workers are taken to be as many times as fast as one."""
    return epoch_s / int(plan.overrides.get("workers", 1))


def _measured(plan: Plan, variant: str, dataset: Path) -> TrainingTime:
    from orchestrator.search.sampler import new_study
    from trainables.training.probe import training_time

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
    console: Console,
    plan: Plan,
    measured: Mapping[str, TrainingTime],
    epochs: Mapping[str, int],
    whole: SweepForecast,
) -> None:
    """Print what is left of a sweep if no trial is stopped early.

    Args:
        console: where.
        plan: the sweep.
        measured: by variant.
        epochs: left, by variant.
        whole: all of it.
    """
    from rich.table import Table

    from orchestrator.plan import disk
    from orchestrator.sweep.display import clock

    table = Table(title="Forecast, from a few steps of each model here")
    table.add_column("variant", no_wrap=True)
    for name in ("step", "epoch", "trial", "all trials", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant, own in measured.items():
        epoch_s = _by_workers(plan, own.epoch_s)
        table.add_row(
            variant,
            f"{1000 * own.step_s:,.1f} ms",
            f"{epoch_s:,.1f} s",
            clock(plan.epochs(variant) * epoch_s),
            clock(epochs[variant] * epoch_s),
            f"{own.peak_gib:.2f} GiB",
        )
    console.print(table)
    at_a_time = "one trial" if whole.concurrent == 1 else f"{whole.concurrent} trials"
    workers = int(plan.overrides.get("workers", 1))
    console.print(
        f"In all {whole.device_s / 3600:,.2f} device-hours; with {at_a_time} at a time about "
        f"{clock(whole.wall_s)}, as long as they do not slow each other down"
        + (f" and {workers} workers are {workers} times as fast as one. " if workers > 1 else ". ")
        + "Early stopping makes it less; starts of trials and final tests come on top. "
        f"Checkpoints take up to {disk.gib(whole.disk_bytes)}.",
        soft_wrap=True,
        highlight=False,
    )
