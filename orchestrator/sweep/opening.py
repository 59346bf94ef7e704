"""Creates a new sweep's ledger, or opens the one to resume."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator.command import say
from orchestrator.errors import SweepExistsError, UsageError
from orchestrator.ledger.header import read_header
from orchestrator.plan import resume
from orchestrator.plan.options import SweepConfig
from orchestrator.redaction import redacted
from orchestrator.storage import sweeps
from orchestrator.storage.paths import SweepPaths

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.plan.plan import Plan, VariantCost
    from trainables.data.dataset import Manifest


def open_sweep(config: SweepConfig) -> tuple[Ledger, Plan, dict[str, VariantCost], Manifest]:
    """Resolve what is to be done, and create the sweep's ledger or open the one to go on with."""
    from orchestrator.plan import resolve
    from orchestrator.plan.options import given_options

    space = resolve.load_space(config.space)
    ledger, kept = _open_if_there(config)
    header = None if ledger is None else read_header(ledger)
    if header is not None and header.plan.space.name != space.name:
        raise UsageError(
            f"The sweep {config.name!r} searches the space {header.plan.space.name!r}, not "
            f"{space.name!r}. Give the new one another --name."
        )
    manifest = _prepared(config, config.dataset or kept.get("dataset") or space.dataset)
    plan, facts = resolve.make_plan(config, space, manifest, kept)
    if ledger is None or header is None:
        ledger = _create(config, plan, facts, manifest)
    else:
        resume.check_same(ledger, plan, say, force=config.force)
        resume.add_variants(ledger, plan, facts)
        for line in resume.changes(header.versions):
            print(line, flush=True)
        ledger.put("options", {**kept, **given_options(config)})
    # By variant, the most trials that any command asked for: what `--verify` counts against.
    asked = {} if header is None else header.asked
    most = {variant: max(plan.trials, asked.get(variant, 0)) for variant in plan.variants}
    ledger.put("asked", {**asked, **most})
    return ledger, plan, facts, manifest


def check_room(
    config: SweepConfig, plan: Plan, facts: dict[str, VariantCost], keep: str | None
) -> None:
    """Refuse to start if the disk is too small for the checkpoints that the sweep will keep."""
    from orchestrator.plan import disk

    concurrent = config.max_concurrent or os.cpu_count() or 1
    needed = disk.forecast_bytes(plan, facts, concurrent, keep)
    disk.check_room(config.paths.root, needed, disk.used_bytes(config.paths.root))


def tracking_uri(config: SweepConfig, ledger: Ledger) -> str:
    """Return where MLflow is: as said now, as said before, or in the storage."""
    default = config.paths.default_tracking_uri
    uri = config.tracking_uri or read_header(ledger).tracking_uri or default
    # The default is where the storage is, wherever that is moved; and a URI with a password in it
    # must be given again.
    if config.tracking_uri is not None and redacted(uri) == uri:
        ledger.put("tracking_uri", None if uri == default else uri)
    return uri


def _open_if_there(config: SweepConfig) -> tuple[Ledger | None, Mapping[str, Any]]:
    from orchestrator.ledger.database import LedgerError
    from orchestrator.ledger.ledger import open_ledger

    if not config.paths.ledger.exists():
        return None, {}
    try:
        ledger = open_ledger(config.paths.ledger)
        ledger.database.check_schema()
    except LedgerError as error:
        raise UsageError(str(error)) from error
    return ledger, read_header(ledger).options


def _create(
    config: SweepConfig, plan: Plan, facts: dict[str, VariantCost], manifest: Manifest
) -> Ledger:
    import uuid

    from orchestrator.ledger.ledger import create_ledger
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


def remove_traces(paths: SweepPaths) -> None:
    """Remove what a sweep that never began has left: its log, its lock, its empty folder."""
    if paths.ledger.exists():
        return
    for file in (paths.log, paths.lock):
        file.unlink(missing_ok=True)
    for folder in (paths.root, paths.local_root):
        with contextlib.suppress(OSError):  # something else lies there
            folder.rmdir()


def check_existence(config: SweepConfig) -> None:
    """Refuse to start a sweep that is there, and to go on with one that is not.

    Raises:
        UsageError: so it is; it lists the sweeps there are.
    """
    paths = config.paths
    exists, storage = sweeps.has_sweep(paths), redacted(str(config.storage))
    if exists and not config.resume:
        raise SweepExistsError(
            f"A sweep named {config.name!r} exists in {storage}. Go on with it by adding "
            "--resume, or start another one with --name."
        )
    if config.resume and not exists:
        sweeps.find_sweep(
            str(config.storage), config.name, way_out="Leave out --resume to start it."
        )
