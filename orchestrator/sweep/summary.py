"""What a sweep says of its plan before it starts, and of how it went at its end."""

from __future__ import annotations

import contextlib
import shlex
import statistics
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.ledger import ranking
from orchestrator.ledger.ranking import is_better
from orchestrator.ledger.records import ENDED, Attempt, Trial
from orchestrator.plan.options import SweepConfig
from orchestrator.plan.plan import Plan
from orchestrator.redaction import redacted
from orchestrator.storage.paths import REPORT, REPORT_PAGE
from orchestrator.storage.store import StorageError
from orchestrator.tracking import client

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.plan.plan import Plan, VariantCost
    from orchestrator.search.scheduler import TrialScheduler
    from orchestrator.tracking.tracker import Tracker


def print_plan(console: Console, plan: Plan, facts: dict[str, VariantCost]) -> None:
    """Print what a sweep would do, model by model."""
    table = Table(title=f"Plan of {plan.space.name!r} on {plan.dataset}, seed {plan.seed}")
    table.add_column("variant", no_wrap=True)
    for name in (
        "image size, px",
        "trials",
        "epochs",
        "parameters",
        "MMACs",
        "MFLOPs",
        "per trial",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in plan.variants:
        fixed, own = plan.space.fixed_for(variant), facts[variant]
        mega = own.multiply_accumulates / 1e6
        table.add_row(
            variant,
            str(own.image_size_px),
            str(plan.trials),
            str(plan.overrides.get("epochs", fixed["epochs"])),
            f"{own.parameters:,}",
            f"{mega:,.1f}",
            f"{2 * mega:,.1f}",
            f"{fixed.get('threads', 1)} CPU, {plan.space.gpus_for(variant):g} GPU",
        )
    console.print(table)
    searched = sorted({name for v in plan.variants for name in plan.space.params_for(v)})
    console.print(f"Searched: {', '.join(searched) or 'nothing; trials differ in their seeds'}.")
    if plan.num_finals:
        console.print(
            f"After its search the best of each variant is trained again with {plan.final_seeds} "
            f"{'seed' if plan.final_seeds == 1 else 'seeds'} and evaluated once by the test split."
        )
    console.print("Operations are per image, forward. A GPU is used where the cluster has one.")


def print_end(
    console: Console, config: SweepConfig, plan: Plan, scheduler: TrialScheduler, tracker: Tracker
) -> None:
    """Print the leaderboard, what failed, and where everything is."""
    ledger, uri = scheduler.ledger, tracker.uri
    trials = [trial for trial in ledger.trials() if trial.variant in plan.variants]
    console.print(leaderboard(plan, trials))
    evaluated = final_table(plan, trials, ledger.evaluations())
    if evaluated is not None:
        console.print(evaluated)
    lines = failures(trials, ledger.attempts())
    if lines:
        console.print("These trials did not end well:", style="bold")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"Failed ones are tried again by: {resume_command()}", soft_wrap=True)
    for variant in scheduler.given_up():
        console.print(f"{variant} was stopped: the same error came from several trials.")
    left_out = scheduler.left_out() if config.budget_s or config.max_device_hours else {}
    if left_out:
        number = ", ".join(f"{count} of {variant}" for variant, count in left_out.items())
        console.print(
            f"The budget had no room for more: trials not trained to their end are {number}. Go on "
            f"with {resume_command()}, with a new --budget or a larger --max-device-hours.",
            soft_wrap=True,
        )
    for output in tracker.outputs:
        page = REPORT_PAGE if output.name == REPORT else ""
        where = f"{output.name.capitalize()}: {output.folder / page}"
        console.print(where, soft_wrap=True, highlight=False)
    console.print(f"Ledger: {config.paths.ledger}", soft_wrap=True, highlight=False)
    if config.paths.remote:
        stored = f"{redacted(config.paths.remote)}, which --resume on any machine goes on from."
        console.print(f"Stored in {stored}", soft_wrap=True, highlight=False, markup=False)
    command = client.ui_command(redacted(uri))
    if command:
        console.print(f"MLflow: {command}", soft_wrap=True, highlight=False, markup=False)
    if tracker.experiment:
        space = plan.space
        page = client.page_address(redacted(uri), tracker.experiment, space.metric, space.mode)
        console.print(f"then open {page}", soft_wrap=True, highlight=False, markup=False)


def print_stopped(console: Console, config: SweepConfig, error: BaseException) -> None:
    """Print why a sweep ended before its time; the traceback goes to the log.

    Raises:
        UsageError: it was the user's mistake, which is told by whoever started the sweep.
    """
    if isinstance(error, UsageError):
        raise error
    with contextlib.suppress(OSError):
        traceback.print_exception(error)  # into the log
    is_told = isinstance(error, OrchestratorError | StorageError)
    said = str(error) if is_told else f"{error!r}."
    console.print(
        f"The sweep stopped. {said} What was done is stored; go on with "
        f"{resume_command()}. Details: {config.paths.log}",
        soft_wrap=True,
        style="red",
    )


def resume_command() -> str:
    """Return what the user types to go on with the sweep of this command, without its secrets."""
    words = [word for word in sys.argv[1:] if word != "--resume"]
    return redacted(shlex.join(["python", "-m", "orchestrator.sweep", *words, "--resume"]))


def leaderboard(plan: Plan, trials: Sequence[Trial]) -> Table:
    """Return the best trial of every variant, best variant first."""
    metric, mode = plan.space.metric, plan.space.mode
    table = Table(title=f"Best of each variant ({metric}, validation split)")
    for name in ("variant", metric, "epoch", "trials", "signature", "found with"):
        table.add_column(name, justify="right" if name in (metric, "epoch", "trials") else "left")
    best: dict[str, Trial] = {}
    for trial in trials:
        if trial.status not in ("complete", "stopped") or trial.best_value is None:
            continue
        if trial.stage == "final":
            continue
        held = best.get(trial.variant)
        if held is None or is_better(trial.best_value, held.best_value or 0.0, mode):
            best[trial.variant] = trial
    ended = Counter(t.variant for t in trials if t.status in ENDED and t.stage == "search")
    for trial in sorted(
        best.values(), key=lambda t: (t.best_value or 0.0) * (-1 if mode == "max" else 1)
    ):
        table.add_row(
            trial.variant,
            f"{trial.best_value:.4f}",
            str((trial.best_epoch or 0) + 1),
            str(ended[trial.variant]),
            trial.signature,
            "  ".join(f"{name} {_short(value)}" for name, value in trial.params.items()),
        )
    return table


def final_table(
    plan: Plan, trials: Sequence[Trial], evaluations: Mapping[str, Mapping[str, Any]]
) -> Table | None:
    """Return what the test split says of each variant's chosen configuration, None without any."""
    table = Table(title="Chosen configurations, evaluated once by the test split")
    for name in ("variant", "seeds", "test top-1", "test top-5", "loss", "calibration error"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for variant in plan.variants:
        own = ranking.final_trials_of(trials, variant, plan.space.mode)
        evaluated = [
            evaluations[trial.signature] for trial in own if trial.signature in evaluations
        ]
        if evaluated:
            table.add_row(
                variant,
                str(len(evaluated)),
                *(_spread([one[name] for one in evaluated]) for name in ("top1", "top5")),
                *(_spread([one[name] for one in evaluated]) for name in ("loss", "ece")),
            )
    return table if table.row_count else None


def _spread(values: Sequence[float]) -> str:
    """Return mean and, of several, standard deviation."""
    mean = statistics.fmean(values)
    return f"{mean:.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def failures(trials: Sequence[Trial], attempts: Sequence[Attempt]) -> list[str]:
    """Return one line for each failed or diverged trial: its class, last line and log."""
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


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
