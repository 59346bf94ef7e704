"""Which weights stay: the best trials of each variant for good, everything else while it runs."""

from __future__ import annotations

import collections
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator import durability
from orchestrator.ledger import EpochRow, Ledger, Trial
from orchestrator.paths import SweepPaths
from search_spaces.space import is_better
from trainables.storage import Storage


def best_signatures(trials: Sequence[Trial], keep: int, mode: str) -> set[str]:
    """Return the signatures of the best `keep` ended trials of every variant."""
    by_variant = collections.defaultdict(list)
    for trial in trials:
        if trial.status in ("complete", "stopped") and trial.best_value is not None:
            by_variant[trial.variant].append(trial)
    sign = -1 if mode == "max" else 1
    best = set()
    for own in by_variant.values():
        # Ties go to the earlier trial, so that the choice does not depend on when it is made.
        own.sort(key=lambda trial: (sign * (trial.best_value or 0.0), trial.number))
        best |= {trial.signature for trial in own[:keep]}
    return best


def best_checkpoint(ledger: Ledger, paths: SweepPaths, trial: Trial) -> Path | None:
    """Return the checkpoint folder of a trial's best epoch, None where there is none."""
    name = _best_name(ledger, trial)
    if name is None:
        return None
    folder = paths.root / name
    if not folder.is_dir() and paths.durable:
        return durability.local_checkpoint(paths, name)
    return folder if folder.is_dir() else None


def best_weights(ledger: Ledger, paths: SweepPaths, trial: Trial) -> Path | None:
    """Return the weights file of a trial's best epoch: the averaged ones where there are any."""
    folder = best_checkpoint(ledger, paths, trial)
    if folder is None:
        return None
    files = (folder / "average.safetensors", folder / "model.safetensors")
    return next((file for file in files if file.is_file()), None)


def collect(ledger: Ledger, paths: SweepPaths, done: set[str], up_to: int | None = None) -> None:
    """Delete the checkpoints that nobody will ask for again, here and in the storage.

    Of the best trials of each variant the best epoch's stays; failed and running trials keep what
    they may go on from.

    Args:
        ledger: the sweep's.
        paths: its folder.
        done: what is known to be clean; grows, so that each is looked at once.
        up_to: number of the last change in the ledger's durable copy. What that copy points to
            stays. None: there is no copy.
    """
    storage = durability.storage_of(paths)
    trials = [
        trial
        for trial in ledger.trials()
        if trial.status in ("complete", "stopped", "diverged")
        and (up_to is None or (trial.ended_seq or 0) <= up_to)
    ]
    best = best_signatures(trials, ledger.get("keep_best"), ledger.get("plan")["space"]["mode"])
    for trial in trials:
        if trial.signature in done:
            continue
        keep = _best_name(ledger, trial) if trial.signature in best else None
        for folder in paths.trial(trial.signature).glob("attempt_*/epoch_*"):
            if keep is None or folder != paths.root / keep:
                shutil.rmtree(folder, ignore_errors=True)
        if storage is not None and f"{trial.signature} {keep}" not in done:
            _collect_stored(storage, trial.signature, keep)
            done.add(f"{trial.signature} {keep}")
        if trial.signature not in best:
            done.add(trial.signature)
    if storage is not None and up_to is not None:
        ended = {trial.signature for trial in trials}
        for trial in ledger.trials():
            if trial.signature not in ended:
                _collect_outdated(storage, ledger, trial, done, up_to)


def _best_name(ledger: Ledger, trial: Trial) -> str | None:
    """Return the checkpoint of a trial's best epoch, relative to the sweep's folder."""
    rows = ledger.epochs(trial.signature)
    return next((row.checkpoint for row in rows if row.epoch == trial.best_epoch), None)


def _collect_stored(storage: Storage, signature: str, keep: str | None) -> None:
    """Delete an ended trial's checkpoints from the storage, but for one."""
    home = f"trials/{signature}"
    files = storage.files(home, recursive=True)
    folders = {f"{home}/{file.rpartition('/')[0]}" for file in files if "/epoch_" in f"/{file}"}
    for folder in sorted(folders - {keep}):
        storage.delete_folder(folder)


def _collect_outdated(
    storage: Storage, ledger: Ledger, trial: Trial, done: set[str], up_to: int
) -> None:
    """Delete what a trial that goes on has stored, but for its last two and its best epoch's.

    The last two are those of the ledger's copy: a new machine goes on from there.
    """
    judge = trial.config["select_by"]
    mode = "min" if judge == "val_loss" else "max"
    rows = [row for row in ledger.epochs(trial.signature) if row.seq <= up_to and row.checkpoint]
    best: EpochRow | None = None
    for row in rows:
        value = best.metrics[judge] if best else math.nan
        if best is None or is_better(row.metrics[judge], value, mode):
            best = row
    for row in rows[:-2]:
        if row is not best and row.checkpoint and row.checkpoint not in done:
            storage.delete_folder(row.checkpoint)
            done.add(row.checkpoint)
