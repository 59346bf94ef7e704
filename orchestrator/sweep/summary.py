"""Prints a sweep's plan before it starts, and its results at its end."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from orchestrator.command import COMPLETE, console_on, program, sweep_command
from orchestrator.data.known_datasets import expected_manifest
from orchestrator.data.prepared import prepared
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.ledger import leaderboard as rows
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import ENDED, Attempt, Trial
from orchestrator.plan import disk, machines, resolve
from orchestrator.plan.options import SweepConfig, given_options
from orchestrator.plan.plan import Costs, Plan
from orchestrator.predict.model import manifest_of
from orchestrator.redaction import redacted
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.storage.paths import DATASET_MANIFEST, MODEL, REPORT, REPORT_PAGE
from orchestrator.storage.store import StorageError
from orchestrator.sweep import measure, opening
from orchestrator.sweep.context import SweepContext
from orchestrator.tracking import client
from orchestrator.tracking.tracker import Tracker
from search_spaces.space import shown
from trainables import limits
from trainables.data.dataset import DatasetError, Manifest, load_manifest


def dry_run(config: SweepConfig) -> int:
    """Print the plan without writing, downloading or starting anything; return the exit status."""
    from trainables.training.device import num_gpus  # imports torch, for which a sweep cannot wait

    space, console = resolve.load_space(config.space), console_on(sys.stdout)
    # The ledger is a copy: the sweep to resume is opened and checked as without --dry-run.
    with opening.copy_to_resume(config) as ledger:
        options = {**opening.kept_options(config, space, ledger), **given_options(config)}
        manifest = _manifest(config, options.get("dataset") or space.dataset, ledger)
        plan, costs = resolve.make_plan(config, space, manifest, options)
        has_work = True
        if ledger is not None:
            opening.resume_with(config, ledger, plan, costs)
            has_work = TrialScheduler(ledger, plan, retry_failed=config.retry_failed).has_work()
            console.print(_progress(config, plan, ledger, has_work=has_work))
        elif config.paths.ledger.exists():
            console.print(f"A sweep named {config.name!r} exists: add --resume, or change --name.")
        has_gpu, share = num_gpus() > 0, options.get("gpus_per_trial")
        print_plan(console, config.name, plan, costs, has_gpu=has_gpu, gpus_per_trial=share)
        for line in resolve.remarks(space, plan, manifest):
            console.print(line)
        concurrent = config.max_concurrent or limits.num_cpus()
        needed = disk.forecast_bytes(plan, costs, concurrent, options.get("keep"))
        console.print(
            f"Checkpoints take up to {disk.gib(needed)} with {_trials(concurrent)} at a time; "
            f"{disk.gib(disk.free_bytes(config.paths.root))} are free."
        )
        if config.measure and has_work:
            measure.measure(config, plan, costs, console, ledger)
    return COMPLETE


def _manifest(config: SweepConfig, name: str, ledger: Ledger | None) -> Manifest:
    """Return a dataset's manifest, if it is not prepared the one that preparing it would give."""
    folder, header = config.data.folder / name, ledger.header() if ledger else None
    if (folder / DATASET_MANIFEST).is_file():
        try:
            return load_manifest(folder)
        except DatasetError as error:
            raise UsageError(str(error)) from error
    recorded = header.manifest if header is not None and header.dataset == name else None
    if recorded is not None and config.data.address is not None:  # from which it would be fetched
        return manifest_of(recorded)
    names = (found.folder.name for found in prepared(config.data.folder))
    expected = expected_manifest(name, names)  # refuses a dataset that cannot be prepared
    return expected if recorded is None else manifest_of(recorded)


def _progress(config: SweepConfig, plan: Plan, ledger: Ledger, *, has_work: bool) -> str:
    """Return a sentence on the planned trials that the sweep to resume has already."""
    most = {"search": plan.trials, "final": plan.final_seeds}
    trials = [t for t in ledger.trials() if t.variant in plan.variants and t.number < most[t.stage]]
    failed = sum(trial.status == "failed" for trial in trials)
    text = f"To resume {config.name!r}:"
    if not has_work:
        return f"{text} nothing is left to do, every trial of this sweep has ended already."
    ended = sum(trial.status in ENDED for trial in trials)
    text += f" {ended} of {_trials(plan.num_trials)} have ended"
    if failed:
        retried = "retried" if config.retry_failed else "not retried"
        text += f"; {failed} of them failed and will be {retried}"
    return f"{text}."


def _trials(number: int) -> str:
    return "1 trial" if number == 1 else f"{number} trials"


def print_plan(
    console: Console,
    sweep: str,
    plan: Plan,
    costs: Costs,
    *,
    has_gpu: bool,
    gpus_per_trial: float | None = None,
) -> None:
    """Print the trials, epochs and cost of each variant of a sweep, and what is searched."""
    shapes = machines.shapes(plan, has_gpus=has_gpu, gpus_per_trial=gpus_per_trial)
    workers = machines.workers_per_trial(plan)
    table = Table(title=f"Plan of {sweep!r} on {plan.dataset}, seed {plan.seed}")
    table.add_column("variant", no_wrap=True)
    names = ("image size, px", "trials", "epochs", "parameters", "MMACs", "MFLOPs", "per trial")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for variant in plan.variants:
        cost, (cpus, gpus) = costs[variant], shapes[variant]
        text = f"{cpus:g} CPU, {f'{gpus:g} GPU' if has_gpu else 'no GPU here'}"
        mega = cost.multiply_accumulates / 1e6
        table.add_row(
            variant,
            str(cost.image_size_px),
            str(plan.trials),
            str(plan.epochs(variant)),
            f"{cost.parameters:,}",
            f"{mega:,.1f}",
            f"{2 * mega:,.1f}",
            f"{workers} x ({text})" if workers > 1 else text,
        )
    console.print(table)
    for line in searched(plan):
        console.print(line, soft_wrap=True)
    if plan.num_finals:
        console.print(
            f"After the search, the best trial of each variant is trained again with "
            f"{plan.final_seeds} {'seed' if plan.final_seeds == 1 else 'seeds'} and evaluated once "
            "on the test split."
        )
    console.print("MMACs and MFLOPs count one image's forward pass. A GPU is used if there is one.")


def searched(plan: Plan) -> list[str]:
    """Return one line for each range that the plan searches, with variants if not all have it."""
    variants: dict[tuple[str, str], list[str]] = {}
    for variant in plan.variants:
        for name, values in plan.space.params_for(variant).items():
            variants.setdefault((name, shown(values)), []).append(variant)
    if not variants:
        return ["Searched: nothing; trials differ in their seeds."]
    width = max(len(name) for name, _ in variants)
    lines = ["Searched:"]
    for (name, text), names in sorted(variants.items()):
        only = "" if len(names) == len(plan.variants) else f" ({', '.join(names)})"
        lines.append(f"  {name:{width}}  {text}{only}")
    return lines


def print_end(context: SweepContext, scheduler: TrialScheduler, tracker: Tracker) -> None:
    """Print the leaderboard, the failures, and where the results are."""
    plan, ledger, console = context.plan, context.ledger, context.console
    trials = [trial for trial in ledger.trials() if trial.variant in plan.variants]
    for table in (leaderboard(plan, trials), final_table(plan, trials, ledger.evaluations())):
        if table.row_count:
            console.print(table)
    _print_failures(context, trials)
    for variant in scheduler.given_up():
        console.print(f"{variant} was stopped: several of its trials failed with the same error.")
    has_budget = context.config.budget_s or context.config.max_device_hours
    if has_budget and (left_out := scheduler.left_out()):
        number = ", ".join(f"{count} of {variant}" for variant, count in left_out.items())
        console.print(
            f"These trials did not fit the budget: {number}. To run them, give "
            f"{resume_command(context.config)} with a new --budget or a larger --max-device-hours.",
            soft_wrap=True,
        )
    _print_places(context, tracker)


def _print_failures(context: SweepContext, trials: Sequence[Trial]) -> None:
    console, ledger = context.console, context.ledger
    if not (lines := failures(trials, ledger.attempts())):
        return
    console.print("These trials failed or diverged:", style="bold")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)
    if any(trial.status == "failed" for trial in trials):
        again = f"To retry the failed ones, run: {resume_command(context.config)}"
        console.print(again, soft_wrap=True)


def _print_places(context: SweepContext, tracker: Tracker) -> None:
    """Print where the report, the model, the ledger and MLflow's runs are."""
    paths, lines = context.paths, []
    for output in tracker.outputs:
        page = REPORT_PAGE if output.name == REPORT else ""
        lines.append(f"{output.name.capitalize()}: {output.folder / page}")
    lines.append(f"Ledger: {paths.ledger}")
    if paths.remote:
        lines.append(
            f"Stored in {redacted(paths.remote)}; --resume continues from there on any machine."
        )
    for line in lines:
        context.console.print(line, soft_wrap=True)
    _print_mlflow(context, tracker)


def _print_mlflow(context: SweepContext, tracker: Tracker) -> None:
    """Print what was registered, how MLflow is started, and the address of the sweep's page."""
    console, space, uri = context.console, context.plan.space, redacted(tracker.uri)
    lines: list[str | Text] = []
    if version := tracker.registered:
        address = client.version_address(uri, version.name, version.version)
        lines.append(f"Registered: version {version.version} of {version.name!r}, {address}")
    elif (name := tracker.register_as) and not any(o.name == MODEL for o in tracker.outputs):
        lines.append(
            f"Registered: nothing as {name!r} yet; the sweep has not written a best model."
        )
    if command := client.ui_command(uri):
        lines.append(f"MLflow: {command}")
    if tracker.experiment:
        page = client.page_address(uri, tracker.experiment, space.metric, space.mode)
        # One line on a narrow terminal; many terminals open the whole address of the link.
        short = client.short_page_address(uri, tracker.experiment)
        link: list[str | Text] = ["then open:", Text(short, style=Style(link=page))]
        lines += link if console.is_terminal else [f"then open {page}"]
    for line in lines:
        console.print(line, soft_wrap=True)


def print_stopped(context: SweepContext, error: BaseException) -> None:
    """Print why a sweep ended early, with the traceback in the log; raise a `UsageError` again."""
    if isinstance(error, UsageError):
        raise error
    with contextlib.suppress(OSError):
        traceback.print_exception(error)  # to the log
    is_ours = isinstance(error, OrchestratorError | StorageError)
    reason = str(error) if is_ours else f"{error!r}."
    context.fail(
        f"The sweep stopped. {reason} Everything until then is stored. Details: "
        f"{context.paths.log}\nTo resume, run: {resume_command(context.config)}"
    )


def resume_command(config: SweepConfig, storage: Path | None = None) -> str:
    """Return the command that resumes this command's sweep here, without its secrets.

    `storage` replaces the one that was given, for a sweep that was moved.
    """
    words = [word for word in config.words if word != "--resume"]
    added = ["--storage", str(storage)] if storage else []
    # Variables may have been set for one command only.
    for name, flag, value in (
        ("SWEEP_STORAGE", "--storage", config.storage),
        ("SWEEP_DATA_DIR", "--data-dir", config.data_dir),
    ):
        if os.environ.get(name) and not any(word.startswith(flag) for word in [*words, *added]):
            added += [flag, str(value)]
    end = words.index("--") if "--" in words else len(words)  # only positional ones follow it
    words[end:end] = [*added, "--resume"]
    return _command(words)


def same_command(config: SweepConfig) -> str:
    """Return the command that was given, without its secrets."""
    return _command(config.words)


def _command(words: Sequence[str]) -> str:
    python = program(Path(sys.executable or "python").name)
    return python + sweep_command(*words).removeprefix("python")


def leaderboard(plan: Plan, trials: Sequence[Trial]) -> Table:
    """Return a table of the best trial of every variant's search, best variant first."""
    metric, mode = plan.space.metric, plan.space.mode
    table = Table(title="Search results (validation split)")
    for name in rows.search_headings(metric):
        table.add_column(name, justify="left" if name in ("variant", "signature") else "right")
    table.add_column("best hyperparameters")
    for row in rows.search_rows(trials, plan.variants, mode):
        table.add_row(*row.cells(metric), rows.params_text(row.best.params))
    return table


def final_table(
    plan: Plan, trials: Sequence[Trial], evaluations: Mapping[str, Mapping[str, Any]]
) -> Table:
    """Return a table of each variant's evaluation on the test split, without rows if none has."""
    table = Table(title="Leaderboard (test split)")
    for name in rows.EVALUATED_HEADINGS:
        table.add_column(name, justify="left" if name == "variant" else "right")
    found = rows.evaluated(trials, plan.variants, evaluations, plan.space.mode)
    for variant, each in found.items():
        table.add_row(*rows.evaluated_cells(variant, each))
    return table


def failures(trials: Sequence[Trial], attempts: Sequence[Attempt]) -> list[str]:
    """Return a line for each failed or diverged trial: failure class, last line, log."""
    last = {attempt.signature: attempt for attempt in attempts}
    lines = []
    for trial in trials:
        if trial.status not in ("failed", "diverged"):
            continue
        attempt = last[trial.signature]
        text = (attempt.failure_text or "").strip().splitlines()
        reason = f"{attempt.failure_class}: {text[-1]}" if text else "the loss was not finite"
        lines.append(
            f"{trial.signature}  {trial.name}  {trial.status} after "
            f"{attempt.attempt} {'attempt' if attempt.attempt == 1 else 'attempts'}  {reason}  "
            f"(log: {attempt.log})"
        )
    return lines
