"""`python -m orchestrator.sweep SPACE`: parse, plan, run, print; the only place that does.

Exit status: 0 all trials ended well, 1 some failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, Any

from orchestrator.clock import Clock
from orchestrator.command import COMPLETE, FAILED, INTERRUPTED, warn
from orchestrator.errors import (
    OrchestratorError,
    UsageError,
)
from orchestrator.ledger import backup
from orchestrator.ledger.header import read_header
from orchestrator.plan.options import SweepConfig
from orchestrator.redaction import redacted
from orchestrator.storage import checkpoints, locks
from orchestrator.storage.paths import DataLocation, SweepPaths
from orchestrator.sweep import opening, signals, terminal
from orchestrator.sweep.opening import check_room, open_sweep, tracking_uri

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.execution.cluster import Cluster
    from orchestrator.ledger.backup import LedgerBackup
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.plan.plan import Plan, VariantCost
    from orchestrator.search.scheduler import TrialScheduler
    from orchestrator.sweep.mlflow_thread import MlflowThread
    from orchestrator.tracking.artifacts import Output
    from trainables.data.dataset import Manifest


def sweep(config: SweepConfig) -> int:
    """Run or continue a sweep."""
    opening.check_existence(config)
    with locks.driver_lock(config.paths), backup.open_backup(config.paths, say=warn) as durable:
        opening.check_existence(config)  # again: another driver may have begun it meanwhile
        if durable:
            durable.fetch()
        is_new = not config.resume
        print(f"Sweep {config.name!r}: preparing.", flush=True)
        try:
            ledger, plan, facts, manifest = open_sweep(config)
        except BaseException:
            opening.remove_traces(config.paths)
            raise
        try:
            if durable:
                durable.start(ledger)
            with terminal.redirected_output(
                None if config.verbose else config.paths.log
            ) as console:
                return _run(config, console, ledger, plan, facts, manifest, durable)
        except (UsageError, KeyboardInterrupt):
            is_new = is_new and not ledger.attempts()
            if durable and is_new:
                durable.discard()
            ledger.close()
            if is_new:  # it never began, so its name is free again
                config.paths.ledger.unlink()
                opening.remove_traces(config.paths)
            raise
        finally:
            if durable:
                durable.stop()
            ledger.close()


def _run(
    config: SweepConfig,
    console: Console,
    ledger: Ledger,
    plan: Plan,
    facts: dict[str, VariantCost],
    manifest: Manifest,
    durable: LedgerBackup | None,
) -> int:
    """Start Ray and the background threads, wait for the end, say how it was."""
    from orchestrator.execution import cluster
    from orchestrator.ledger.database import LedgerError
    from orchestrator.sweep import measure, summary
    from orchestrator.sweep.mlflow_thread import MlflowThread
    from orchestrator.tracking.tracker import Tracker

    measured_s: dict[str, float] = {}  # of an epoch, by variant, where trials train as here
    scheduler = _scheduler(config, ledger, plan, facts, measured_s)
    here_s: dict[str, float] = {}
    if config.measure and scheduler.has_work():
        here_s = measure.measure(config, plan, facts, console, ledger)
    if scheduler.has_work() and not config.force:
        check_room(config, plan, facts, read_header(ledger).options.get("keep"))
    up_to = None if durable is None else lambda: durable.copied_seq
    tracker = Tracker(ledger, config.paths, tracking_uri(config, ledger), up_to)
    interruption = signals.Interruption()
    interrupted = interruption.wanted
    errors: list[BaseException] = []
    with signals.signals_set(interruption):
        views = MlflowThread(tracker, config.paths)
        if scheduler.has_work():
            ray_cluster = cluster.connect(
                config.address, needs_state_api=plan.overrides.get("workers", 1) > 1
            )
            signals.handle_signals(interruption)  # again: Ray installs its own
            if ray_cluster.is_local:
                measured_s.update(here_s)
            console.print(ray_cluster.describe())
            _check_cluster(console, config, scheduler, ray_cluster)
            runner = _start_trials(config, scheduler, manifest, errors, ray_cluster.is_local)
            views.start()
            _watch(console, scheduler, views, runner, durable, interrupted)
            try:
                scheduler.interrupt()  # nothing, after an end of its own
            except LedgerError as error:  # `--resume` closes what is open then
                errors.append(error)
        else:
            views.start()
            console.print("Every trial of this sweep has ended already.")
        with cluster.leaving():
            if durable and durable.lost:
                console.print(durable.lost, soft_wrap=True, style="red")
                return FAILED
            outcome = _outcome(scheduler, interrupted.is_set() or bool(errors))
            if outcome != "interrupted":
                tracker.outputs = _hand_over(console, config.paths, ledger, manifest)
        outcome = _finish(console, config, views, durable, outcome, interruption)
    summary.print_end(console, config, plan, scheduler, tracker)
    if scheduler.halted():
        errors.append(
            OrchestratorError(
                f"{redacted(str(config.storage))} cannot take more: {scheduler.halted()} Free some "
                "space or make it writable."
            )
        )
    if errors and not interrupted.is_set():
        summary.print_stopped(console, config, errors[0])
        return FAILED
    return {"complete": COMPLETE, "failed": FAILED}.get(outcome, INTERRUPTED)


def _check_cluster(
    console: Console, config: SweepConfig, scheduler: TrialScheduler, cluster: Cluster
) -> None:
    """See that trials can run on the cluster, and be found again; else leave it.

    Raises:
        UsageError: of some variant not even one trial fits.
    """
    from orchestrator.execution.cluster import disconnect
    from orchestrator.plan import machines

    try:
        share = read_header(scheduler.ledger).options.get("gpus_per_trial")
        machines.check_fit(scheduler.plan, cluster.machines, share)
    except UsageError:
        disconnect()
        raise
    if cluster.may_have_many_nodes and not config.paths.remote:
        console.print(
            f"{config.paths.root} lies on this machine, but trials will run on others as well: "
            "unless all of them see this folder, a trial that moves starts anew, and its "
            "weights stay where it ran. Give a --storage that all can reach, as s3://bucket/x.",
            soft_wrap=True,
            style="yellow",
        )


def _scheduler(
    config: SweepConfig,
    ledger: Ledger,
    plan: Plan,
    facts: dict[str, VariantCost],
    measured_s: dict[str, float],
) -> TrialScheduler:
    from orchestrator.plan import budget, disk
    from orchestrator.search.scheduler import TrialScheduler

    root = config.paths.root
    return TrialScheduler(
        ledger,
        plan,
        is_loadable=_checkpoint_check(config.paths),
        has_room=lambda variant: config.force or disk.has_room(root, plan, facts, variant),
        fits_budget=budget.budget_from_options(config, ledger, plan, facts, measured_s),
        retry_failed=config.retry_failed,
        from_scratch=config.from_scratch,
    )


def _start_trials(
    config: SweepConfig,
    scheduler: TrialScheduler,
    manifest: Manifest,
    errors: list[BaseException],
    is_local: bool,
) -> threading.Thread:
    """Start the thread that runs the trials; what ends it early is added to `errors`."""
    from orchestrator.execution import tune_adapter

    options = read_header(scheduler.ledger).options

    def trials() -> None:
        try:
            tune_adapter.run(
                scheduler,
                paths=config.paths,
                dataset=DataLocation(config.data.folder / manifest.name, config.data.address),
                options=tune_adapter.ExecutionOptions(
                    max_concurrent=config.max_concurrent,
                    gpus_per_trial=options.get("gpus_per_trial"),
                    hang_timeout_s=config.hang_timeout_s,
                    keep_all=options.get("keep") == "all",
                ),
                is_local=is_local,
                clock=Clock(),
            )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=trials, name="trials", daemon=True)
    thread.start()
    return thread


def _watch(
    console: Console,
    scheduler: TrialScheduler,
    views: MlflowThread,
    runner: threading.Thread,
    durable: LedgerBackup | None,
    interrupted: threading.Event,
) -> None:
    """Show how the trials are doing until they are over or the user has had enough."""
    from orchestrator.sweep.display import Display

    with Display(console, scheduler.ledger, scheduler.plan) as display:
        while runner.is_alive() and not interrupted.is_set():
            runner.join(timeout=0.5)
            display.show()
            views.tell(console)
            if durable:
                durable.tell(lambda text: console.print(text, soft_wrap=True, style="yellow"))
                if durable.lost:
                    return
    if interrupted.is_set():
        console.print(
            "Interrupted: saving what is known. Nothing is lost. Once more does not wait for "
            "MLflow, a third time ends at once."
        )


def _hand_over(
    console: Console, paths: SweepPaths, ledger: Ledger, manifest: Manifest
) -> list[Output]:
    """Write the sweep's report and its best model; what cannot be is said."""
    from orchestrator.sweep import outputs

    console.print("Writing the report and the best model.")
    return outputs.make(
        ledger, paths, manifest, lambda text: console.print(text, soft_wrap=True, style="yellow")
    )


def _finish(
    console: Console,
    config: SweepConfig,
    views: MlflowThread,
    durable: LedgerBackup | None,
    outcome: str,
    interruption: signals.Interruption,
) -> str:
    """Bring the storage and the views up to date, and return the outcome that is true then."""
    if durable is None:
        views.finish(console, outcome, interruption)
        return outcome
    # Whoever stops a sweep waits half a minute, not longer.
    in_haste = interruption.wanted
    is_stored = durable.flush(lambda: 8 if in_haste.is_set() else 120)
    views.finish(console, outcome, interruption)
    if is_stored:  # what the views have noted
        is_stored = durable.flush(lambda: 3 if in_haste.is_set() else 60)
    if is_stored:
        return outcome
    from orchestrator.sweep.summary import resume_command

    console.print(
        f"The copy of the ledger in {durable.storage.shown} could not be brought up to date. "
        f"This machine has everything in {config.paths.root}; when the storage is back, give "
        f"here: {resume_command()}",
        soft_wrap=True,
        style="red",
    )
    return "failed" if outcome == "complete" else outcome


def _checkpoint_check(paths: SweepPaths) -> Any:
    def is_whole(path: str) -> bool:
        return checkpoints.local_checkpoint(paths, path) is not None

    return is_whole


def _outcome(scheduler: TrialScheduler, interrupted: bool) -> str:
    ledger, plan = scheduler.ledger, scheduler.plan
    if interrupted:
        return "interrupted"
    if scheduler.halted() or scheduler.has_work():
        return "failed"
    trials = [trial for trial in ledger.trials() if trial.variant in plan.variants]
    if any(trial.status == "failed" for trial in trials):
        return "failed"
    ended = collections.Counter(trial.variant for trial in trials if trial.stage == "search")
    has_all = all(ended[variant] >= plan.trials for variant in plan.variants)
    if scheduler.left_out():  # the budget's affair, as the user asked
        return "complete"
    return "complete" if has_all else "failed"
