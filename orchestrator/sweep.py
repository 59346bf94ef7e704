"""`python -m orchestrator.sweep SPACE`: parse, plan, run, print; the only place that does.

Exit status: 0 all trials ended well, 1 some failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
import time
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator import process
from orchestrator.config import SweepConfig, parse_args
from orchestrator.errors import (
    OrchestratorError,
    SweepExistsError,
    SweepNotFoundError,
    UsageError,
)
from orchestrator.paths import SweepPaths, sweep_names
from trainables.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.conductor import Conductor, Plan
    from orchestrator.ledger import Ledger
    from orchestrator.planning import VariantFacts
    from orchestrator.tracking import Tracker
    from trainables.data import Manifest

COMPLETE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = None
    try:
        config = parse_args(sys.argv[1:] if argv is None else argv)
        return dry_run(config) if config.dry_run else sweep(config)
    except OrchestratorError as error:
        if config is not None and config.verbose:
            raise
        print(f"{error}", file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        print("Interrupted before the sweep had started.", file=sys.stderr)
        return INTERRUPTED


def dry_run(config: SweepConfig) -> int:
    """Print the plan; write, download and start nothing."""
    from orchestrator import planning

    space = planning.load_space(config.space)
    manifest = _manifest_or_expected(config, config.dataset or space.dataset)
    plan, facts = planning.make_plan(config, space, manifest, {})
    _print_plan(process.console_on(sys.stdout), plan, facts)
    return COMPLETE


def sweep(config: SweepConfig) -> int:
    """Run or continue a sweep."""
    _check_existence(config)
    with process.locked(config.paths):
        _check_existence(config)  # again: another driver may have begun it meanwhile
        is_new = not config.resume
        print(f"Sweep {config.name!r}: preparing.", flush=True)
        try:
            ledger, plan, manifest = _open(config)
        except BaseException:
            process.remove_traces(config.paths)
            raise
        try:
            with process.terminal(None if config.verbose else config.paths.log) as console:
                return _run(config, console, ledger, plan, manifest)
        except UsageError:
            is_new = is_new and not ledger.attempts()
            ledger.close()
            if is_new:  # it never began, so its name is free again
                config.paths.ledger.unlink()
                process.remove_traces(config.paths)
            raise
        finally:
            ledger.close()


def _open(config: SweepConfig) -> tuple[Ledger, Plan, Manifest]:
    """Resolve what is to be done, and create the sweep's ledger or open the one to go on with."""
    from orchestrator import planning, versions

    space = planning.load_space(config.space)
    ledger, kept = _open_if_there(config)
    if ledger is not None and ledger.get("plan")["space"]["name"] != space.name:
        raise UsageError(
            f"The sweep {config.name!r} searches the space "
            f"{ledger.get('plan')['space']['name']!r}, not {space.name!r}. Give the new one "
            "another --name."
        )
    manifest = _prepared(config, config.dataset or kept.get("dataset") or space.dataset)
    plan, facts = planning.make_plan(config, space, manifest, kept)
    if ledger is None:
        ledger = _create(config, plan, facts)
    else:
        _check_same(ledger, plan)
        for line in versions.changes(ledger.get("versions", {})):
            print(line, flush=True)
        ledger.put("options", {**kept, **planning.given_options(config)})
    return ledger, plan, manifest


def _run(
    config: SweepConfig, console: Console, ledger: Ledger, plan: Plan, manifest: Manifest
) -> int:
    """Start Ray and the background threads, wait for the end, say how it was."""
    from orchestrator import launch
    from orchestrator.conductor import Conductor
    from orchestrator.display import Display
    from orchestrator.tracking import Tracker

    conductor = Conductor(ledger, plan, is_whole=_checkpoint_check(config.paths))
    uri = config.tracking_uri or ledger.get("tracking_uri") or config.paths.default_tracking_uri
    if redacted(uri) == uri:  # one with a password in it must be given again
        ledger.put("tracking_uri", uri)
    tracker = Tracker(ledger, config.paths, uri)
    interrupted = threading.Event()
    options = ledger.get("options")
    errors: list[BaseException] = []

    def trials() -> None:
        try:
            launch.run(
                conductor,
                cluster,
                sweep_dir=config.paths.root,
                dataset_dir=config.data_dir / manifest.name,
                max_concurrent=config.max_concurrent,
                gpus_per_trial=options.get("gpus_per_trial"),
            )
        except BaseException as error:
            errors.append(error)

    with process.signals_set(interrupted):
        views = _Views(tracker, config.paths)
        if conductor.has_work():
            cluster = launch.connect(
                config.address, needs_state_api=plan.overrides.get("workers", 1) > 1
            )
            process.handle_signals(interrupted)  # again: Ray installs its own
            console.print(cluster.describe())
            runner = threading.Thread(target=trials, name="trials", daemon=True)
            runner.start()
            views.start()
            with Display(console, ledger, plan) as display:
                while runner.is_alive() and not interrupted.is_set():
                    runner.join(timeout=0.5)
                    display.show()
            if interrupted.is_set():
                console.print("Interrupted: saving what is known. Nothing is lost.")
            conductor.interrupt()  # nothing, after an end of its own
            launch.disconnect()
        else:
            views.start()
            console.print("Every trial of this sweep has ended already.")
        outcome = _outcome(ledger, plan, interrupted.is_set() or bool(errors))
        # Whoever stops a sweep waits half a minute, not longer.
        views.finish(console, outcome, limit_s=15 if interrupted.is_set() else 300)
    _print_end(console, config, plan, conductor, tracker)
    if errors and not interrupted.is_set():
        if isinstance(errors[0], UsageError):
            raise errors[0]
        traceback.print_exception(errors[0])  # into the log
        console.print(
            f"The sweep stopped: {errors[0]!r}. What was done is stored; go on with "
            f"{_command(config)}. Details: {config.paths.log}",
            soft_wrap=True,
            style="red",
        )
        return FAILED
    return {"complete": COMPLETE, "failed": FAILED}.get(outcome, INTERRUPTED)


class _Views:
    """The background thread that brings MLflow and the disk in line with the ledger."""

    def __init__(self, tracker: Tracker, paths: SweepPaths) -> None:
        self.tracker, self.paths = tracker, paths
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="views", daemon=True)
        self._clean: set[str] = set()
        self._outcome: str | None = None
        self._has_all = False
        self._warned = False

    def start(self) -> None:
        self._thread.start()

    def finish(self, console: Console, outcome: str, limit_s: float) -> None:
        """Write the rest, for `limit_s` seconds at most: `--resume` writes what is missing."""
        self._outcome = outcome
        self._stop.set()
        self._thread.join(timeout=limit_s)
        if not self._has_all:
            console.print(
                f"MLflow at {redacted(self.tracker.uri)} did not take everything; the ledger has "
                "it. The same command with --resume writes the rest.",
                style="yellow",
            )

    def _sync(self) -> bool:
        """Bring both up to date once; return whether MLflow took everything."""
        from orchestrator import retention

        try:
            retention.collect(self.tracker.ledger, self.paths, self._clean)
            self.tracker.sync()
        except Exception as error:
            if not self._warned:
                self._warned = True
                print(redacted(f"MLflow is not reachable for now: {error!r}"), file=sys.stderr)
            return False
        return True

    def _loop(self) -> None:
        pause_s = 1.0
        while not self._stop.wait(pause_s):
            pause_s = 1.0 if self._sync() else min(2 * pause_s, 30.0)
        if self._sync() and self._outcome is not None:
            with contextlib.suppress(Exception):
                self.tracker.finish(self._outcome, {"trials": len(self.tracker.ledger.trials())})
                self._has_all = True


def _open_if_there(config: SweepConfig) -> tuple[Ledger | None, dict[str, Any]]:
    from orchestrator.ledger import LedgerError, open_ledger

    if not config.paths.ledger.exists():
        return None, {}
    try:
        ledger = open_ledger(config.paths.ledger)
    except LedgerError as error:
        raise UsageError(str(error)) from error
    return ledger, ledger.get("options")


def _create(config: SweepConfig, plan: Plan, facts: dict[str, VariantFacts]) -> Ledger:
    import uuid

    from orchestrator import planning, versions
    from orchestrator.ledger import create_ledger

    return create_ledger(
        config.paths.ledger,
        {
            "sweep_id": uuid.uuid4().hex[:12],
            "created_s": time.time(),
            "space": config.space,
            "plan": plan.identity(),
            "keep_best": plan.space.keep_best,
            "options": planning.given_options(config),
            "dataset": plan.dataset,
            "variants": {name: asdict(values) for name, values in facts.items()},
            "versions": versions.installed(),
        },
    )


def _check_existence(config: SweepConfig) -> None:
    exists = config.paths.ledger.exists()
    if exists and not config.resume:
        raise SweepExistsError(
            f"A sweep named {config.name!r} exists in {config.storage}. Go on with it by adding "
            "--resume, or start another one with --name."
        )
    if config.resume and not exists:
        known = ", ".join(sweep_names(config.storage)) or "none"
        raise SweepNotFoundError(
            f"There is no sweep named {config.name!r} in {config.storage}. Existing: {known}. "
            "Leave out --resume to start it."
        )


def _check_same(ledger: Ledger, plan: Plan) -> None:
    """Refuse to continue a sweep as another one; other variants or more trials are no change."""
    from orchestrator.planning import difference

    old, new = ledger.get("plan"), plan.identity()
    lines = difference(_comparable(old, new), _comparable(new, old))
    if lines:
        raise UsageError(
            "This sweep was started with other values, so its trials cannot be mixed:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nGive it another --name, or the values it was started with."
        )


def _comparable(plan: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's identity, of the variants that both have."""
    shared = set(plan["side_px"]) & set(other["side_px"])
    space = {name: value for name, value in plan["space"].items() if name != "variants"}
    for part in ("fixed", "params"):
        space[part] = {name: space[part][name] for name in sorted(shared) if name in space[part]}
    return {
        **plan,
        "space": space,
        "side_px": {name: plan["side_px"][name] for name in sorted(shared)},
    }


def _prepared(config: SweepConfig, dataset: str) -> Manifest:
    from orchestrator import data
    from trainables.data import DatasetError, load_manifest

    try:
        return load_manifest(data.ensure_prepared(dataset, config.data_dir))
    except DatasetError as error:
        raise UsageError(str(error)) from error


def _manifest_or_expected(config: SweepConfig, dataset: str) -> Manifest:
    """Return the prepared dataset's manifest, or what a known one would be."""
    from orchestrator import planning
    from trainables.data import load_manifest

    if (config.data_dir / dataset / "manifest.json").is_file():
        return load_manifest(config.data_dir / dataset)
    return planning.expected_manifest(dataset)


def _checkpoint_check(paths: SweepPaths) -> Any:
    def is_whole(path: str) -> bool:
        from trainables import checkpoint

        return checkpoint.newest_valid([paths.root / path]) is not None

    return is_whole


def _outcome(ledger: Ledger, plan: Plan, interrupted: bool) -> str:
    if interrupted:
        return "interrupted"
    trials = [trial for trial in ledger.trials() if trial.variant in plan.variants]
    if any(trial.status == "failed" for trial in trials):
        return "failed"
    ended = collections.Counter(trial.variant for trial in trials)
    has_all = all(ended[variant] >= plan.trials for variant in plan.variants)
    return "complete" if has_all else "failed"


def _print_plan(console: Console, plan: Plan, facts: dict[str, VariantFacts]) -> None:
    from rich.table import Table

    table = Table(title=f"Plan of {plan.space.name!r} on {plan.dataset}, seed {plan.seed}")
    table.add_column("variant", no_wrap=True)
    for name in ("side px", "trials", "epochs", "parameters", "MMACs", "MFLOPs", "per trial"):
        table.add_column(name, justify="right", no_wrap=True)
    for variant in plan.variants:
        fixed, own = plan.space.fixed_for(variant), facts[variant]
        mega = own.multiply_accumulates / 1e6
        table.add_row(
            variant,
            str(own.side_px),
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
    console.print("Operations are per image, forward. A GPU is used where the cluster has one.")


def _print_end(
    console: Console, config: SweepConfig, plan: Plan, conductor: Conductor, tracker: Tracker
) -> None:
    from orchestrator import display, tracking

    ledger, uri = conductor.ledger, tracker.uri
    trials = [trial for trial in ledger.trials() if trial.variant in plan.variants]
    console.print(display.leaderboard(plan, trials))
    lines = display.failures(trials, ledger.attempts())
    if lines:
        console.print("These trials did not end well:", style="bold")
        for line in lines:
            console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"Failed ones are tried again by: {_command(config)}", soft_wrap=True)
    for variant in conductor.given_up():
        console.print(f"{variant} was stopped: the same error came from several trials.")
    console.print(f"Ledger: {config.paths.ledger}", soft_wrap=True, highlight=False)
    command = tracking.ui_command(redacted(uri))
    if command:
        console.print(f"MLflow: {command}", soft_wrap=True, highlight=False, markup=False)
    if tracker.experiment:
        space = plan.space
        page = tracking.page_address(redacted(uri), tracker.experiment, space.metric, space.mode)
        console.print(f"then open {page}", soft_wrap=True, highlight=False, markup=False)


def _command(config: SweepConfig) -> str:
    import shlex

    words = [word for word in sys.argv[1:] if word != "--resume"]
    return shlex.join(["python", "-m", "orchestrator.sweep", *words, "--resume"])


if __name__ == "__main__":
    sys.exit(main())
