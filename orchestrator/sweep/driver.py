"""Runs one sweep command from its start to its end."""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from orchestrator.clock import Clock
from orchestrator.command import COMPLETE, FAILED, INTERRUPTED, console_on, say, warn
from orchestrator.errors import OrchestratorError
from orchestrator.execution import cluster as clusters
from orchestrator.execution import tune_adapter
from orchestrator.ledger import backup
from orchestrator.ledger.database import LedgerError
from orchestrator.plan import budget, disk
from orchestrator.plan.options import SweepConfig
from orchestrator.redaction import redacted
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.storage import locks, sweeps
from orchestrator.storage.paths import DataLocation
from orchestrator.storage.tracking_uri import sqlite_file
from orchestrator.sweep import measure, opening, outputs, ray_start, signals, summary
from orchestrator.sweep.cleanup_thread import CleanupThread
from orchestrator.sweep.context import SweepContext
from orchestrator.sweep.display import Display
from orchestrator.sweep.mlflow_thread import MlflowThread
from orchestrator.tracking.tracker import Tracker


def sweep(config: SweepConfig) -> int:
    """Run a sweep, or resume one, and return the exit status."""
    clock = Clock()
    opening.check_name(config)
    with (
        contextlib.ExitStack() as until_end,
        locks.driver_lock(config.paths),
        _no_empty_sweep(config),
        backup.open_backup(config.paths, warn, clock) as ledger_backup,
    ):
        opening.check_name(config)  # again: another driver may have created it meanwhile
        if ledger_backup:
            ledger_backup.fetch()
        say(f"Sweep {config.name!r}: preparing.")
        opened = opening.open_sweep(config, clock)
        ledger = opened[0]
        try:
            if ledger_backup:
                ledger_backup.start(ledger)
            log = None if config.verbose else config.paths.log
            with _redirected_output(log) as console:
                return _run(SweepContext(config, clock, *opened, ledger_backup, console, until_end))
        except BaseException:
            with contextlib.suppress(OrchestratorError, OSError):  # the first error is the cause
                if not config.resume and not ledger.attempts():
                    opening.discard_sweep(config.paths, ledger, ledger_backup)
            raise
        finally:
            if ledger_backup:
                ledger_backup.stop()
            ledger.close()


@contextlib.contextmanager
def _no_empty_sweep(config: SweepConfig) -> Iterator[None]:
    """Remove the folder of a sweep that ends with an error before its ledger exists."""
    try:
        yield
    except BaseException:
        opening.remove_empty_sweep(config.paths)
        raise


@contextlib.contextmanager
def _redirected_output(log_path: Path | None) -> Iterator[Console]:
    """Yield a console on the user's terminal, while all other output goes to the log file.

    Without a log file all output stays on the terminal.
    """
    # Names that the terminal's encoding lacks, or that are not text, are printed with escapes.
    encoding, errors = sys.stdout.encoding, "backslashreplace"
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding=encoding, errors=errors)
    if log_path is None:
        yield console_on(out)
        return
    log_path.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(1), os.dup(2)
    with log_path.open("a") as log:
        sys.stdout.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield console_on(out)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # the log's disk is full
                    stream.flush()
            for number, saved in enumerate(kept, start=1):
                os.dup2(saved, number)
                os.close(saved)


def _run(context: SweepContext) -> int:
    """Run what is left of the sweep, write its outputs, print how it ended."""
    config, plan, ledger, paths = context.config, context.plan, context.ledger, context.paths
    limits = budget.budget_from_options(config, ledger, plan, context.clock.now_s())
    scheduler = _new_scheduler(context, limits, {})
    epoch_s: dict[str, float] = {}
    if config.measure and scheduler.has_work():
        epoch_s = measure.measure(config, plan, context.costs, context.console, ledger)
    if scheduler.has_work() and not config.force:
        keep, most = context.options.get("keep"), config.max_concurrent
        needed = disk.forecast_bytes(plan, context.costs, most, keep)
        disk.check_room(paths.root, needed, disk.used_bytes(paths.root))
    uri = opening.choose_tracking_uri(config, ledger)
    tracker = Tracker(ledger, paths, uri, context.copied_seq, context.clock)
    tracker.register_as = opening.choose_registered_name(ledger, uri)
    mlflow, cleanup = MlflowThread(tracker), CleanupThread(ledger, paths, context.copied_seq)
    error: BaseException | None = None
    context.interruption.last_line = f"\n{_resume_line(context)}\n"
    context.interruption.output = context.console.file
    context.until_end.enter_context(signals.signals_set(context.interruption))
    if scheduler.has_work():
        cluster = ray_start.connect(context)
        if cluster.is_local and epoch_s and limits:  # trials train where epochs were measured
            scheduler = _new_scheduler(context, limits, epoch_s)
        trials = _TrialsThread(context, scheduler, is_local=cluster.is_local)
        watch = clusters.Watch(cluster, context.clock)
        error = _run_trials(context, trials, mlflow, cleanup, watch)
    else:
        context.console.print(
            "No remaining trial fits the budget."
            if scheduler.left_out()
            else "Every trial of this sweep has ended already."
        )
        mlflow.thread.start()
        cleanup.thread.start()
    with clusters.leaving(is_lost=context.interruption.ray_lost.is_set()):
        is_interrupted = context.interruption.wanted.is_set() or error is not None
        if is_interrupted and not (config.resume or ledger.attempts()):
            cleanup.stop()
            raise error or KeyboardInterrupt  # `sweep` leaves no trace of it
        if context.backup and context.backup.lease.lost:
            context.fail(context.backup.lease.lost)
            return FAILED
        if not ledger.database.is_in_place():
            return _end_without_ledger(context, mlflow, cleanup)
        outcome = _outcome(context, scheduler, is_interrupted)
        if outcome != "interrupted":
            context.console.print("Writing the report and the best model.")
            tracker.outputs = outputs.make(ledger, paths, context.manifest, context.warn)
    outcome = _finish(context, mlflow, cleanup, outcome)
    summary.print_end(context, scheduler, tracker)
    return _exit_status(context, scheduler, outcome, error)


def _new_scheduler(
    context: SweepContext, limits: budget.Budget | None, epoch_s: Mapping[str, float]
) -> TrialScheduler:
    """Return a scheduler with the ledger's state.

    `epoch_s` are measured seconds of an epoch, by variant, on machines like those of the trials.
    """
    config, plan, costs, paths = context.config, context.plan, context.costs, context.paths
    operations = {name: cost.multiply_accumulates for name, cost in costs.items()}
    return TrialScheduler(
        context.ledger,
        plan,
        is_loadable=lambda path: sweeps.local_checkpoint(paths, path) is not None,
        has_room=lambda variant: config.force or disk.has_room(paths.root, plan, costs, variant),
        fits_budget=(
            budget.allowance(limits, context.ledger, plan, operations, epoch_s, context.clock)
            if limits
            else lambda variant, epochs: True
        ),
        retry_failed=config.retry_failed,
        from_scratch=config.from_scratch,
        clock=context.clock,
    )


class _TrialsThread(threading.Thread):
    """Runs the trials on Ray; `error` is what ended them early, None if nothing did.

    It must not use Ray while another thread leaves the cluster: Ray would end this process with
    status 1. Tune cannot be told to stop, so `stop` blocks its loop for good.
    """

    def __init__(self, context: SweepContext, scheduler: TrialScheduler, *, is_local: bool) -> None:
        super().__init__(name="trials", daemon=True)
        self._context, self.scheduler, self._is_local = context, scheduler, is_local
        self.error: BaseException | None = None
        self._is_stopping, self._has_stopped = threading.Event(), threading.Event()

    def stop(self) -> None:
        """Wait, 5 s at most, until the trials' loop no longer uses Ray."""
        self._is_stopping.set()
        self._has_stopped.wait(timeout=5)

    def _block_if_stopping(self) -> None:
        if self._is_stopping.is_set():
            self._has_stopped.set()
            threading.Event().wait()

    def run(self) -> None:
        context, config, options = self._context, self._context.config, self._context.options
        dataset = DataLocation(config.data.folder / context.manifest.name, config.data.address)
        try:
            tune_adapter.run(
                self.scheduler,
                paths=config.paths,
                dataset=dataset,
                options=tune_adapter.ExecutionOptions(
                    max_concurrent=config.max_concurrent,
                    gpus_per_trial=options.get("gpus_per_trial"),
                    hang_timeout_s=config.hang_timeout_s,
                    keep_all=options.get("keep") == "all",
                ),
                is_local=self._is_local,
                clock=context.clock,
                block_if_stopping=self._block_if_stopping,
            )
            has_ended = self.scheduler.halted() or not self.scheduler.has_work()
            if not (has_ended or context.interruption.wanted.is_set()):
                raise OrchestratorError(
                    "Ray Tune ended without a message although trials are left."
                )
        except BaseException as error:
            self.error = error
        finally:
            self._has_stopped.set()


def _run_trials(
    context: SweepContext,
    trials: _TrialsThread,
    mlflow: MlflowThread,
    cleanup: CleanupThread,
    watch: clusters.Watch,
) -> BaseException | None:
    """Run the trials until they end or the user interrupts; return what ended them early."""
    for thread in (trials, mlflow.thread, cleanup.thread):
        thread.start()
    lost = _watch(context, trials, mlflow, watch)
    try:
        trials.scheduler.interrupt()  # changes nothing when all trials have ended
    except LedgerError as error:  # `--resume` closes the attempts that stay open
        return trials.error or error
    finally:
        trials.stop()
    return OrchestratorError(lost) if lost else trials.error


def _watch(
    context: SweepContext, trials: threading.Thread, mlflow: MlflowThread, watch: clusters.Watch
) -> str | None:
    """Show the progress of the trials until they end, are interrupted, or must be.

    They must be if the lease is lost, the ledger's file moved or deleted, or if Ray has ended: then
    return a sentence about that.
    """
    interrupted, ledger_backup = context.interruption.wanted, context.backup
    with Display(context.console, context.ledger, context.plan, context.clock) as display:
        while trials.is_alive() and not (interrupted.is_set() or watch.lost()):
            trials.join(timeout=0.5)
            if not context.ledger.database.is_in_place():
                return None
            display.show()
            mlflow.report(context.console)
            if ledger_backup:
                ledger_backup.tell(context.warn)
                if ledger_backup.lease.lost:
                    return None
    if interrupted.is_set() and context.ledger.attempts():
        context.console.print(
            "Interrupted: saving results. Nothing is lost. A second signal skips the wait for "
            "MLflow, a third one ends the command at once.",
            soft_wrap=True,
        )
    if lost := watch.lost():  # also where the trials' thread failed for this reason
        context.interruption.ray_lost.set()
    return lost


def _resume_line(context: SweepContext) -> str:
    return f"To resume, run: {summary.resume_command(context.config)}"


def _finish(
    context: SweepContext, mlflow: MlflowThread, cleanup: CleanupThread, outcome: str
) -> str:
    """Bring the sweep's storage and MLflow up to date, and return the outcome after that."""
    ledger_backup, interruption = context.backup, context.interruption
    # An interrupted sweep ends within half a minute.
    is_stored = not ledger_backup or ledger_backup.flush(
        lambda: 8 if interruption.must_hurry else 120
    )
    limit = signals.EndLimit(interruption, context.clock)
    cleanup.stop()
    mlflow.finish(context.console, outcome, limit)
    limit.wait_for(cleanup.thread)
    if ledger_backup and is_stored:  # for what the MLflow thread noted in the ledger
        is_stored = ledger_backup.flush(lambda: 3 if interruption.must_hurry else 60)
    if is_stored or not ledger_backup:
        return outcome
    context.fail(
        f"The copy of the ledger in {ledger_backup.storage.shown} could not be brought up to date. "
        f"This machine has everything in {context.paths.root}. When the storage is available "
        f"again, run this command here: {summary.resume_command(context.config)}"
    )
    return "failed" if outcome == "complete" else outcome


def _end_without_ledger(context: SweepContext, mlflow: MlflowThread, cleanup: CleanupThread) -> int:
    """End a sweep whose ledger was moved or deleted while it ran; return the exit status."""
    paths, database = context.paths, context.ledger.database
    cleanup.stop()
    place = database.rescue()
    where, storage = f"Its ledger is now {place}.", None
    if place == database.path:
        store = sqlite_file(mlflow.tracker.uri)
        if store is None or store.exists():
            _finish(context, mlflow, cleanup, "interrupted")
        where = f"The ledger was written to {place} again; other deleted files are lost."
    elif (place.parent.name, place.name) == (paths.name, database.path.name):
        storage = place.parent.parent
    else:
        where += f" Move it back to {database.path}."
    context.fail(
        "The sweep stopped, because its ledger was moved, replaced or deleted while it ran. "
        f"{where} Continue with: {summary.resume_command(context.config, storage)}"
    )
    return FAILED


def _outcome(context: SweepContext, scheduler: TrialScheduler, is_interrupted: bool) -> str:
    """Return whether the sweep is "complete", "failed" or "interrupted"."""
    plan = context.plan
    if is_interrupted:
        return "interrupted"
    if scheduler.halted() or scheduler.has_work():
        return "failed"
    trials = [trial for trial in context.ledger.trials() if trial.variant in plan.variants]
    if any(trial.status == "failed" for trial in trials):
        return "failed"
    if scheduler.left_out():  # by the budget that the user chose
        return "complete"
    ended = collections.Counter(trial.variant for trial in trials if trial.stage == "search")
    has_all = all(ended[variant] >= plan.trials for variant in plan.variants)
    return "complete" if has_all else "failed"


def _exit_status(
    context: SweepContext, scheduler: TrialScheduler, outcome: str, error: BaseException | None
) -> int:
    """Return the command's exit status, after printing what ended the trials early."""
    if scheduler.halted():
        storage = redacted(str(context.config.storage))
        error = error or OrchestratorError(
            f"{storage} cannot be written to: {scheduler.halted()} Free some space or make it "
            "writable."
        )
    if error is not None and not context.interruption.wanted.is_set():
        summary.print_stopped(context, error)
        return FAILED
    if outcome == "interrupted":
        context.console.print(_resume_line(context), soft_wrap=True)
    return {"complete": COMPLETE, "failed": FAILED}.get(outcome, INTERRUPTED)
