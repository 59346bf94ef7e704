"""`python -m orchestrator.sweep SPACE`: parse, plan, run, print; the only place that does.

Exit status: 0 all trials ended well, 1 some failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import collections
import os
import sys
import threading
import time
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator import command, process
from orchestrator.command import COMPLETE, FAILED, INTERRUPTED, WRONG_USAGE, _say, _warn
from orchestrator.errors import (
    OrchestratorError,
    UsageError,
)
from orchestrator.ledger import backup
from orchestrator.plan import resume
from orchestrator.plan.options import SweepConfig, parse_args
from orchestrator.redaction import redacted
from orchestrator.storage import checkpoints, locks
from orchestrator.storage.paths import DataLocation, SweepPaths
from orchestrator.storage.store import StorageError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.execution.cluster import Cluster
    from orchestrator.ledger.backup import LedgerBackup
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.plan.plan import Plan, VariantCost
    from orchestrator.search.scheduler import TrialScheduler
    from orchestrator.tracking.artifacts import Product
    from orchestrator.views import Views
    from trainables.data.dataset import Manifest


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = None
    try:
        config = parse_args(sys.argv[1:] if argv is None else argv)
        process.take_term_as_interrupt()
        if config.verify:
            return verify(config)
        return dry_run(config) if config.dry_run else sweep(config)
    except (OrchestratorError, StorageError) as error:
        if config is not None and config.verbose:
            traceback.print_exception(error)
        else:
            print(f"{error}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        print("Interrupted before the sweep had started.", file=sys.stderr)
        return INTERRUPTED


def dry_run(config: SweepConfig) -> int:
    """Print the plan; write, download and start nothing."""
    from orchestrator import measuring, summary
    from orchestrator.plan import disk, resolve

    space = resolve.load_space(config.space)
    manifest = _manifest_or_expected(config, config.dataset or space.dataset)
    plan, facts = resolve.make_plan(config, space, manifest, {})
    console = command.console_on(sys.stdout)
    summary.print_plan(console, plan, facts)
    concurrent = config.max_concurrent or os.cpu_count() or 1
    needed = disk.forecast_bytes(plan, facts, concurrent, config.keep)
    free = disk.free_bytes(config.paths.root)
    console.print(
        f"Checkpoints take up to {disk.gib(needed)} with {concurrent} trials at a time; "
        f"{disk.gib(free)} are free."
    )
    if config.measure:
        measuring.measure(config, plan, facts, console)
    return COMPLETE


def verify(config: SweepConfig) -> int:
    """Check what a sweep has left; start and write nothing."""
    from orchestrator.verify.check import verify

    return verify(config)


def sweep(config: SweepConfig) -> int:
    """Run or continue a sweep."""
    resume.check_existence(config)
    with locks.driver_lock(config.paths), backup.open_backup(config.paths, say=_warn) as durable:
        resume.check_existence(config)  # again: another driver may have begun it meanwhile
        if durable:
            durable.fetch()
        is_new = not config.resume
        print(f"Sweep {config.name!r}: preparing.", flush=True)
        try:
            ledger, plan, facts, manifest = _open(config)
        except BaseException:
            process.remove_traces(config.paths)
            raise
        try:
            if durable:
                durable.begin(ledger)
            with process.terminal(None if config.verbose else config.paths.log) as console:
                return _run(config, console, ledger, plan, facts, manifest, durable)
        except (UsageError, KeyboardInterrupt):
            is_new = is_new and not ledger.attempts()
            if durable and is_new:
                durable.forget()
            ledger.close()
            if is_new:  # it never began, so its name is free again
                config.paths.ledger.unlink()
                process.remove_traces(config.paths)
            raise
        finally:
            if durable:
                durable.end()
            ledger.close()


def _open(config: SweepConfig) -> tuple[Ledger, Plan, dict[str, VariantCost], Manifest]:
    """Resolve what is to be done, and create the sweep's ledger or open the one to go on with."""
    from orchestrator.plan import resolve, resume
    from orchestrator.plan.options import given_options

    space = resolve.load_space(config.space)
    ledger, kept = _open_if_there(config)
    if ledger is not None and ledger.get("plan")["space"]["name"] != space.name:
        raise UsageError(
            f"The sweep {config.name!r} searches the space "
            f"{ledger.get('plan')['space']['name']!r}, not {space.name!r}. Give the new one "
            "another --name."
        )
    manifest = _prepared(config, config.dataset or kept.get("dataset") or space.dataset)
    plan, facts = resolve.make_plan(config, space, manifest, kept)
    if ledger is None:
        ledger = _create(config, plan, facts, manifest)
    else:
        resume.check_same(ledger, plan, _say, force=config.force)
        resume.add_variants(ledger, plan, facts)
        for line in resume.changes(ledger.get("versions", {})):
            print(line, flush=True)
        ledger.put("options", {**kept, **given_options(config)})
    # By variant, the most trials that any command asked for: what `--verify` counts against.
    asked: dict[str, int] = ledger.get("asked", {})
    most = {variant: max(plan.trials, asked.get(variant, 0)) for variant in plan.variants}
    ledger.put("asked", {**asked, **most})
    return ledger, plan, facts, manifest


def _check_room(
    config: SweepConfig, plan: Plan, facts: dict[str, VariantCost], keep: str | None
) -> None:
    from orchestrator.plan import disk

    concurrent = config.max_concurrent or os.cpu_count() or 1
    needed = disk.forecast_bytes(plan, facts, concurrent, keep)
    disk.check_room(config.paths.root, needed, disk.used_bytes(config.paths.root))


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
    from orchestrator import measuring, summary
    from orchestrator.execution import cluster
    from orchestrator.ledger.ledger import LedgerError
    from orchestrator.tracking.tracker import Tracker
    from orchestrator.views import Views

    measured_s: dict[str, float] = {}  # of an epoch, by variant, where trials train as here
    conductor = _conductor(config, ledger, plan, facts, measured_s)
    here_s: dict[str, float] = {}
    if config.measure and conductor.has_work():
        here_s = measuring.measure(config, plan, facts, console, ledger)
    if conductor.has_work() and not config.force:
        _check_room(config, plan, facts, ledger.get("options").get("keep"))
    up_to = None if durable is None else lambda: durable.up_to
    tracker = Tracker(ledger, config.paths, _tracking_uri(config, ledger), up_to)
    interruption = process.Interruption()
    interrupted = interruption.wanted
    errors: list[BaseException] = []
    with process.signals_set(interruption):
        views = Views(tracker, config.paths)
        if conductor.has_work():
            ray_cluster = cluster.connect(
                config.address, needs_state_api=plan.overrides.get("workers", 1) > 1
            )
            process.handle_signals(interruption)  # again: Ray installs its own
            if ray_cluster.is_local:
                measured_s.update(here_s)
            console.print(ray_cluster.describe())
            _check_cluster(console, config, conductor, ray_cluster)
            runner = _start_trials(config, conductor, manifest, errors, ray_cluster.is_local)
            views.start()
            _watch(console, conductor, views, runner, durable, interrupted)
            try:
                conductor.interrupt()  # nothing, after an end of its own
            except LedgerError as error:  # `--resume` closes what is open then
                errors.append(error)
        else:
            views.start()
            console.print("Every trial of this sweep has ended already.")
        with cluster.leaving():
            if durable and durable.lost:
                console.print(durable.lost, soft_wrap=True, style="red")
                return FAILED
            outcome = _outcome(conductor, interrupted.is_set() or bool(errors))
            if outcome != "interrupted":
                tracker.products = _hand_over(console, config.paths, ledger, manifest)
        outcome = _finish(console, config, views, durable, outcome, interruption)
    summary.print_end(console, config, plan, conductor, tracker)
    if conductor.halted():
        errors.append(
            OrchestratorError(
                f"{redacted(str(config.storage))} cannot take more: {conductor.halted()} Free some "
                "space or make it writable."
            )
        )
    if errors and not interrupted.is_set():
        summary.print_stopped(console, config, errors[0])
        return FAILED
    return {"complete": COMPLETE, "failed": FAILED}.get(outcome, INTERRUPTED)


def _check_cluster(
    console: Console, config: SweepConfig, conductor: TrialScheduler, cluster: Cluster
) -> None:
    """See that trials can run on the cluster, and be found again; else leave it.

    Raises:
        UsageError: of some variant not even one trial fits.
    """
    from orchestrator.execution.cluster import disconnect
    from orchestrator.plan import machines

    try:
        share = conductor.ledger.get("options").get("gpus_per_trial")
        machines.check_fit(conductor.plan, cluster.machines, share)
    except UsageError:
        disconnect()
        raise
    if cluster.may_have_many_nodes and not config.paths.durable:
        console.print(
            f"{config.paths.root} lies on this machine, but trials will run on others as well: "
            "unless all of them see this folder, a trial that moves starts anew, and its "
            "weights stay where it ran. Give a --storage that all can reach, as s3://bucket/x.",
            soft_wrap=True,
            style="yellow",
        )


def _conductor(
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
        is_whole=_checkpoint_check(config.paths),
        has_room=lambda variant: config.force or disk.has_room(root, plan, facts, variant),
        is_allowed=budget.budget_from_options(config, ledger, plan, facts, measured_s),
        retry_failed=config.retry_failed,
        from_scratch=config.from_scratch,
    )


def _start_trials(
    config: SweepConfig,
    conductor: TrialScheduler,
    manifest: Manifest,
    errors: list[BaseException],
    is_local: bool,
) -> threading.Thread:
    """Start the thread that runs the trials; what ends it early is added to `errors`."""
    from orchestrator.execution import tune_adapter

    options = conductor.ledger.get("options")

    def trials() -> None:
        try:
            tune_adapter.run(
                conductor,
                paths=config.paths,
                dataset=DataLocation(config.data.folder / manifest.name, config.data.address),
                max_concurrent=config.max_concurrent,
                gpus_per_trial=options.get("gpus_per_trial"),
                hang_timeout_s=config.hang_timeout_s,
                keep_all=options.get("keep") == "all",
                is_local=is_local,
            )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=trials, name="trials", daemon=True)
    thread.start()
    return thread


def _watch(
    console: Console,
    conductor: TrialScheduler,
    views: Views,
    runner: threading.Thread,
    durable: LedgerBackup | None,
    interrupted: threading.Event,
) -> None:
    """Show how the trials are doing until they are over or the user has had enough."""
    from orchestrator.display import Display

    with Display(console, conductor.ledger, conductor.plan) as display:
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
) -> list[Product]:
    """Write the sweep's report and its best model; what cannot be is said."""
    from orchestrator import products

    console.print("Writing the report and the best model.")
    return products.make(
        ledger, paths, manifest, lambda text: console.print(text, soft_wrap=True, style="yellow")
    )


def _finish(
    console: Console,
    config: SweepConfig,
    views: Views,
    durable: LedgerBackup | None,
    outcome: str,
    interruption: process.Interruption,
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
    from orchestrator.summary import resume_command

    console.print(
        f"The copy of the ledger in {durable.storage.shown} could not be brought up to date. "
        f"This machine has everything in {config.paths.root}; when the storage is back, give "
        f"here: {resume_command()}",
        soft_wrap=True,
        style="red",
    )
    return "failed" if outcome == "complete" else outcome


def _tracking_uri(config: SweepConfig, ledger: Ledger) -> str:
    """Return where MLflow is: as said now, as said before, or in the storage."""
    default = config.paths.default_tracking_uri
    uri = config.tracking_uri or ledger.get("tracking_uri") or default
    # The default is where the storage is, wherever that is moved; and a URI with a password in it
    # must be given again.
    if config.tracking_uri is not None and redacted(uri) == uri:
        ledger.put("tracking_uri", None if uri == default else uri)
    return uri


def _open_if_there(config: SweepConfig) -> tuple[Ledger | None, dict[str, Any]]:
    from orchestrator.ledger.ledger import LedgerError, open_ledger

    if not config.paths.ledger.exists():
        return None, {}
    try:
        ledger = open_ledger(config.paths.ledger)
    except LedgerError as error:
        raise UsageError(str(error)) from error
    return ledger, ledger.get("options")


def _create(
    config: SweepConfig, plan: Plan, facts: dict[str, VariantCost], manifest: Manifest
) -> Ledger:
    import uuid

    from orchestrator.ledger.ledger import create_ledger
    from orchestrator.plan import resume
    from orchestrator.plan.options import given_options

    return create_ledger(
        config.paths.ledger,
        {
            "sweep_id": uuid.uuid4().hex[:12],
            "created_s": time.time(),
            "space": config.space,
            "plan": plan.identity(),
            "keep_best": plan.space.keep_best,
            "options": given_options(config),
            "dataset": plan.dataset,
            "manifest": asdict(manifest),  # what prediction needs of the dataset
            "space_own": {
                "trials": plan.space.trials,
                "final_seeds": plan.space.final_seeds,
                "dataset": plan.space.dataset,
            },
            "published": plan.space.published_to_dict(),
            "variants": {name: asdict(values) for name, values in facts.items()},
            "versions": resume.installed(),
        },
    )


def _prepared(config: SweepConfig, dataset: str) -> Manifest:
    from orchestrator.data import prepare
    from trainables.data.dataset import DatasetError, load_manifest

    try:
        folder = prepare.ensure_prepared(dataset, config.data.folder, config.data.address)
        return load_manifest(folder)
    except DatasetError as error:
        raise UsageError(str(error)) from error


def _manifest_or_expected(config: SweepConfig, dataset: str) -> Manifest:
    """Return the prepared dataset's manifest, or what a known one would be."""
    from orchestrator.data import known
    from trainables.data.dataset import load_manifest

    if (config.data.folder / dataset / "manifest.json").is_file():
        return load_manifest(config.data.folder / dataset)
    return known.expected_manifest(dataset)


def _checkpoint_check(paths: SweepPaths) -> Any:
    def is_whole(path: str) -> bool:
        return checkpoints.local_checkpoint(paths, path) is not None

    return is_whole


def _outcome(conductor: TrialScheduler, interrupted: bool) -> str:
    ledger, plan = conductor.ledger, conductor.plan
    if interrupted:
        return "interrupted"
    if conductor.halted() or conductor.has_work():
        return "failed"
    trials = [trial for trial in ledger.trials() if trial.variant in plan.variants]
    if any(trial.status == "failed" for trial in trials):
        return "failed"
    ended = collections.Counter(trial.variant for trial in trials if trial.stage == "search")
    has_all = all(ended[variant] >= plan.trials for variant in plan.variants)
    if conductor.left_out():  # the budget's affair, as the user asked
        return "complete"
    return "complete" if has_all else "failed"


if __name__ == "__main__":
    command.exit_fast(main)
