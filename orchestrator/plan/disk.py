"""How much room a sweep's checkpoints take, and whether the disk has it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan, VariantCost

# Left free for the ledger, logs, MLflow and Ray.
RESERVE_BYTES = 64 * 2**20


def checkpoint_bytes(parameters: int, *, averaged: bool) -> int:
    """Return the size of one checkpoint: float32 weights, up to two moments, and the average.

    Two moments have Adam, AdamW, RAdam, LAMB and RMSProp with momentum; SGD has one.
    """
    return 4 * parameters * (4 if averaged else 3)


def forecast_bytes(
    plan: Plan, facts: Mapping[str, VariantCost], concurrent: int, keep: str | None
) -> int:
    """Return what a sweep's checkpoints take at most.

    Args:
        plan: the sweep.
        facts: of its variants.
        concurrent: trials at a time; each holds its last two checkpoints, its best, and the one
            that is being written.
        keep: the option `--keep`; None: the best ones, as many as the space says.
    """
    sizes = {name: _size(plan, facts, name) for name in plan.variants}
    epochs = {name: plan.epochs(name) for name in plan.variants}
    trials = plan.trials + plan.final_seeds
    num_best = plan.space.keep_best
    if keep and keep.startswith("best-"):
        num_best = int(keep.removeprefix("best-"))
    num_best = min(num_best, plan.trials) + min(num_best, plan.final_seeds)
    kept = sum(size * num_best for size in sizes.values())
    if keep == "last":
        kept += sum(size * trials for size in sizes.values())
    if keep == "all":
        kept = sum(size * trials * epochs[name] for name, size in sizes.items())
    # MLflow has the best weights once more.
    copies = sum(4 * facts[name].parameters * num_best for name in plan.variants)
    # The best model of all is there once more, and once in MLflow.
    copies += 2 * 4 * max(facts[name].parameters for name in plan.variants)
    running = 4 * min(concurrent, trials * len(sizes)) * max(sizes.values())
    return kept + copies + running


def check_room(folder: Path, needed_bytes: int, used_bytes: int = 0) -> None:
    """Refuse to start what the disk has no room for.

    Args:
        folder: where the sweep will write; it need not exist yet.
        needed_bytes: the forecast.
        used_bytes: what of it lies there already.

    Raises:
        UsageError: saying how much there is and how much is needed.
    """
    free = free_bytes(folder)
    if free + used_bytes < needed_bytes + RESERVE_BYTES:
        raise UsageError(
            f"The checkpoints of this sweep take up to {gib(needed_bytes)} in {folder}, where "
            f"{gib(free)} are free. Free some space, choose another --storage, keep fewer with "
            "--keep best-1, or start all the same with --force."
        )


def has_room(folder: Path, plan: Plan, facts: Mapping[str, VariantCost], variant: str) -> bool:
    """Return whether one more trial of a variant can write its checkpoints."""
    return free_bytes(folder) >= 2 * _size(plan, facts, variant) + RESERVE_BYTES


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that a folder lies on, or would lie on."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def used_bytes(folder: Path) -> int:
    """Return the size of all files below a folder; some may go meanwhile."""
    used = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            used += path.stat().st_size if path.is_file() else 0
    return used


def gib(size: int) -> str:
    """Return a size as people read it."""
    return f"{size / 2**30:,.2f} GiB"


def _size(plan: Plan, facts: Mapping[str, VariantCost], name: str) -> int:
    values = {**plan.space.fixed_for(name), **plan.space.params_for(name)}
    return checkpoint_bytes(facts[name].parameters, averaged=bool(values.get("ema_decay")))
