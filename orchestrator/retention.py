"""Which weights stay: the best trials of each variant for good, everything else while it runs."""

from __future__ import annotations

import collections
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.ledger import Ledger, Trial
from orchestrator.paths import SweepPaths


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


def num_best(ledger: Ledger) -> int:
    """Return how many trials of each variant keep their best weights."""
    option = ledger.get("options").get("keep") or ""
    return (
        int(option.removeprefix("best-"))
        if option.startswith("best-")
        else (int(ledger.get("keep_best")))
    )


def best_checkpoint(ledger: Ledger, paths: SweepPaths, trial: Trial) -> Path | None:
    """Return the checkpoint folder of a trial's best epoch, None where there is none."""
    for row in ledger.epochs(trial.signature):
        if row.epoch == trial.best_epoch and row.checkpoint:
            folder = paths.root / row.checkpoint
            return folder if folder.is_dir() else None
    return None


def best_weights(ledger: Ledger, paths: SweepPaths, trial: Trial) -> Path | None:
    """Return the weights file of a trial's best epoch: the averaged ones where there are any."""
    folder = best_checkpoint(ledger, paths, trial)
    if folder is None:
        return None
    files = (folder / "average.safetensors", folder / "model.safetensors")
    return next((file for file in files if file.is_file()), None)


def collect(ledger: Ledger, paths: SweepPaths, done: set[str]) -> None:
    """Delete the checkpoints that nobody will ask for again.

    Of the best trials of each variant the best epoch's stays, with `--keep last` the last epoch's
    of every trial as well; failed and running trials keep what they may go on from.

    Args:
        ledger: the sweep's.
        paths: its folder.
        done: signatures that are known to be clean; grows, so that each is looked at once.
    """
    keep_option = ledger.get("options").get("keep")
    if keep_option == "all":
        return
    trials = [
        trial for trial in ledger.trials() if trial.status in ("complete", "stopped", "diverged")
    ]
    best = best_signatures(trials, num_best(ledger), ledger.get("plan")["space"]["mode"])
    for trial in trials:
        if trial.signature in done:
            continue
        keep = {best_checkpoint(ledger, paths, trial) if trial.signature in best else None}
        if keep_option == "last":
            rows = ledger.epochs(trial.signature)
            keep |= {paths.root / row.checkpoint for row in rows[-1:] if row.checkpoint}
        for folder in paths.trial(trial.signature).glob("attempt_*/epoch_*"):
            if folder not in keep:
                shutil.rmtree(folder, ignore_errors=True)
        if trial.signature not in best:
            done.add(trial.signature)
