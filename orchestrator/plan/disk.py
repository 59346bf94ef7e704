"""How much disk space a sweep's checkpoints need, and whether it is there."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.plan.plan import Costs, Plan
from trainables import limits

# Kept free for the ledger, logs, MLflow and Ray.
RESERVE_BYTES = 64 * 2**20


def forecast_bytes(plan: Plan, costs: Costs, concurrent: int | None, keep: str | None) -> int:
    """Return the largest size that a sweep's checkpoints can have.

    Each of the `concurrent` trials (None: as many as this process has CPUs) has its last two
    checkpoints, its best one, and the one that is being written. `keep` is the option `--keep`.
    """
    sizes = {name: _size(plan, costs, name) for name in plan.variants}
    trials = plan.trials + plan.final_seeds
    num_best = plan.space.keep_best
    if keep and keep.startswith("best-"):
        num_best = int(keep.removeprefix("best-"))
    num_best = min(num_best, plan.trials) + min(num_best, plan.final_seeds)
    kept = sum(size * num_best for size in sizes.values())
    if keep == "last":
        kept += sum(size * trials for size in sizes.values())
    if keep == "all":
        kept = sum(size * trials * plan.epochs(name) for name, size in sizes.items())
    # MLflow has a copy of the best weights.
    copies = sum(4 * costs[name].parameters * num_best for name in plan.variants)
    # The exported best model is one more copy, and MLflow has another.
    copies += 2 * 4 * max(costs[name].parameters for name in plan.variants)
    running = min(concurrent or limits.num_cpus(), trials * len(sizes))
    return kept + copies + 4 * running * max(sizes.values())


def check_room(folder: Path, needed_bytes: int, used_bytes: int = 0) -> None:
    """Raise a `UsageError` if a sweep's checkpoints do not fit on the disk of its folder.

    `used_bytes` is the part of the forecast `needed_bytes` that the folder holds already.
    """
    free = free_bytes(folder)
    if free + used_bytes < needed_bytes + RESERVE_BYTES:
        raise UsageError(
            f"The checkpoints of this sweep take up to {gib(needed_bytes)} in {folder}, where "
            f"{gib(free)} are free. Free some space, choose another --storage, keep fewer with "
            "--keep best-1, or start anyway with --force."
        )


def has_room(folder: Path, plan: Plan, costs: Costs, variant: str) -> bool:
    """Return whether one more trial of a variant can write its checkpoints."""
    return free_bytes(folder) >= 2 * _size(plan, costs, variant) + RESERVE_BYTES


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk of a folder, which need not exist yet."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def used_bytes(folder: Path) -> int:
    """Return the size of all files below a folder, of which some may be deleted meanwhile."""
    used = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            used += path.stat().st_size if path.is_file() else 0
    return used


def gib(size: int) -> str:
    """Return a size as text, in GiB."""
    return f"{size / 2**30:,.2f} GiB"


def _size(plan: Plan, costs: Costs, name: str) -> int:
    """Return the size of one checkpoint: float32 weights, two moments, and the average, if any.

    Adam, AdamW, RAdam, LAMB and RMSProp with momentum keep two moments; SGD keeps one.
    """
    values = {**plan.space.fixed_for(name), **plan.space.params_for(name)}
    return 4 * costs[name].parameters * (4 if values.get("ema_decay") else 3)
