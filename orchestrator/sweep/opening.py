"""Creates a new sweep's ledger, or opens the one to resume."""

from __future__ import annotations

import contextlib
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.clock import Clock
from orchestrator.command import say
from orchestrator.data import prepare
from orchestrator.errors import SweepExistsError, UsageError
from orchestrator.ledger import database
from orchestrator.ledger.backup import LedgerBackup
from orchestrator.ledger.database import LedgerError
from orchestrator.ledger.ledger import Ledger, check_belongs, create_ledger, open_ledger
from orchestrator.ledger.snapshot import ledger_copy
from orchestrator.plan import resolve, resume
from orchestrator.plan.options import SweepConfig, given_options
from orchestrator.plan.plan import Costs, Plan
from orchestrator.redaction import redacted
from orchestrator.storage import lease, sweeps, tracking_uri
from orchestrator.storage.paths import SweepPaths
from orchestrator.tracking import best_model
from search_spaces.space import SearchSpace
from trainables.data.dataset import DatasetError, Manifest, load_manifest


def check_name(config: SweepConfig) -> None:
    """Raise a `UsageError` if a new sweep's name is taken, or if none exists to resume."""
    exists, storage = sweeps.has_sweep(config.paths), str(config.storage)
    if exists and not config.resume:
        raise SweepExistsError(
            f"A sweep named {config.name!r} exists in {redacted(storage)}. Add --resume to "
            "continue it, or start another one with --name."
        )
    if config.resume and not exists:
        sweeps.find_sweep(storage, config.name, way_out="Leave out --resume to start it.")


def open_sweep(config: SweepConfig, clock: Clock) -> tuple[Ledger, Plan, Costs, Manifest]:
    """Return the sweep's ledger, created or opened, its plan, its variants' costs and its dataset.

    Raises:
        UsageError: the sweep cannot be planned, or not resumed like this.
    """
    space = resolve.load_space(config.space)
    ledger = _open_existing(config, clock)
    options = kept_options(config, space, ledger)
    manifest = _prepare_dataset(config, config.dataset or options.get("dataset") or space.dataset)
    plan, costs = resolve.make_plan(config, space, manifest, options)
    for line in resolve.remarks(space, plan, manifest):
        say(line)
    if ledger is None:
        ledger = _create_ledger(config, plan, costs, manifest, clock)
    else:
        resume_with(config, ledger, plan, costs)
    return ledger, plan, costs, manifest


def kept_options(config: SweepConfig, space: SearchSpace, ledger: Ledger | None) -> dict[str, Any]:
    """Return the options of the sweep to resume, none for a new one.

    Raises:
        UsageError: the sweep searches another space.
    """
    if ledger is None:
        return {}
    header = ledger.header()
    if header.plan.space.name != space.name:
        raise UsageError(
            f"The sweep {config.name!r} searches the space {header.plan.space.name!r}, not "
            f"{space.name!r}. Give the new one another --name."
        )
    return dict(header.options)


def resume_with(config: SweepConfig, ledger: Ledger, plan: Plan, costs: Costs) -> None:
    """Store this command's plan and options in the ledger of the sweep that it resumes.

    Raises:
        UsageError: the plan differs from the sweep's, and the command has no `--force`.
    """
    header = ledger.header()
    resume.check_same(ledger, plan, say, force=config.force)
    resume.add_variants(ledger, plan, costs)
    for line in resume.changes(header.versions):
        say(line)
    ledger.put("options", {**header.options, **given_options(config)})
    asked = header.asked
    most = {variant: max(plan.trials, asked.get(variant, 0)) for variant in plan.variants}
    ledger.put("asked", {**asked, **most})


@contextlib.contextmanager
def copy_to_resume(config: SweepConfig) -> Iterator[Ledger | None]:
    """Yield a copy of the ledger of the sweep to resume, None for a new sweep; delete it after.

    Raises:
        UsageError: there is no such sweep, it is running, or it cannot be resumed.
    """
    if not config.resume:
        yield None
        return
    check_name(config)
    if driver := lease.driver_of(config.paths):
        raise UsageError(
            f"The sweep {config.name!r} is already being run by {driver}. Wait for it, or stop "
            "that process."
        )
    with ledger_copy(config.paths) as ledger:
        ledger.database.check_schema()
        yield ledger


def choose_tracking_uri(config: SweepConfig, ledger: Ledger) -> str:
    """Return MLflow's URI: from this command, an earlier one, or the default; remember it."""
    default = config.paths.default_tracking_uri
    uri = tracking_uri.absolute(config.tracking_uri or ledger.header().tracking_uri or default)
    if (problem := tracking_uri.problem(uri)) is not None:  # of an earlier version's ledger
        raise UsageError(problem)
    # The default moves with the storage. A URI with a password is not stored.
    if config.tracking_uri is not None and redacted(uri) == uri:
        ledger.put("tracking_uri", None if uri == default else uri)
    return uri


def choose_registered_name(ledger: Ledger, uri: str) -> str | None:
    """Return the name to register the best model under; raise a `UsageError` if MLflow refuses."""
    name: str | None = ledger.header().options.get("register")
    if name is not None and (problem := best_model.refusal(uri, name)) is not None:
        raise UsageError(
            f"The best model could not be registered as {name!r} at {redacted(uri)}. {problem}"
        )
    return name


def discard_sweep(paths: SweepPaths, ledger: Ledger, ledger_backup: LedgerBackup | None) -> None:
    """Delete a sweep in which no trial has started, so that its name is free again."""
    if ledger_backup:
        ledger_backup.discard()
    ledger.close()
    delete_sweep(paths)


def delete_sweep(paths: SweepPaths) -> None:
    """Delete the files on this machine of a sweep in which no trial has started."""
    database.delete(paths.ledger)
    remove_empty_sweep(paths)


def remove_empty_sweep(paths: SweepPaths) -> None:
    """Remove the log, the lock and the folder of a sweep that has no ledger."""
    if paths.ledger.exists():
        return
    for file in (paths.log, paths.lock):
        file.unlink(missing_ok=True)
    for folder in (paths.root, paths.local_root):
        with contextlib.suppress(OSError):  # it holds other files
            folder.rmdir()


def _open_existing(config: SweepConfig, clock: Clock) -> Ledger | None:
    """Return the sweep's ledger, None if it is new."""
    if not config.paths.ledger.exists():
        return None
    try:
        ledger = open_ledger(config.paths.ledger, clock=clock)
        ledger.database.check_schema()
        check_belongs(ledger, config.paths)
    except LedgerError as error:
        raise UsageError(str(error)) from error
    return ledger


def _create_ledger(
    config: SweepConfig, plan: Plan, costs: Costs, manifest: Manifest, clock: Clock
) -> Ledger:
    space = plan.space
    return create_ledger(
        config.paths.ledger,
        {
            "sweep_id": uuid.uuid4().hex[:12],
            "name": config.name,
            "created_s": clock.now_s(),
            "space": config.space,
            "folder": str(Path.cwd()),
            "git_commit": _git_commit(),
            "data_dir": redacted(config.data.address or str(config.data.folder.absolute())),
            "plan": plan.identity(),
            "keep_best": space.keep_best,
            "options": given_options(config),
            # The most trials that any command asked for, by variant; `--verify` checks it.
            "asked": dict.fromkeys(plan.variants, plan.trials),
            "dataset": plan.dataset,
            "manifest": asdict(manifest),  # prediction needs it
            "space_own": {n: getattr(space, n) for n in ("trials", "final_seeds", "dataset")},
            "published": space.published_to_dict(),
            "variants": {name: asdict(values) for name, values in costs.items()},
            "versions": resume.installed(),
        },
        clock,
    )


def _git_commit() -> str:
    """Return the commit that is checked out in the working directory, "" without a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    commit = found.stdout.strip()
    return commit if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) else ""


def _prepare_dataset(config: SweepConfig, dataset: str) -> Manifest:
    try:
        folder = prepare.ensure_prepared(dataset, config.data.folder, config.data.address)
        return load_manifest(folder)
    except DatasetError as error:
        raise UsageError(str(error)) from error
