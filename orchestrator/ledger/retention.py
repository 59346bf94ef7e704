"""Deletes checkpoints that are no longer needed, and finds those of the best epochs."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ranking import best_row, top_k
from orchestrator.ledger.records import Trial
from orchestrator.storage import sweeps
from orchestrator.storage.paths import SweepPaths
from orchestrator.storage.store import Storage


def best_checkpoint(ledger: Ledger, paths: SweepPaths, trial: Trial) -> Path | None:
    """Return the checkpoint folder of a trial's best epoch, None if there is none."""
    name = _best_name(ledger, paths, trial)
    if name is None:
        return None
    folder = paths.root / name
    if not folder.is_dir() and paths.remote:
        return sweeps.local_checkpoint(paths, name)
    return folder if folder.is_dir() else None


def best_weights(ledger: Ledger, paths: SweepPaths, trial: Trial) -> Path | None:
    """Return the weights file of a trial's best epoch: the averaged weights if there are any."""
    folder = best_checkpoint(ledger, paths, trial)
    if folder is None:
        return None
    files = (folder / "average.safetensors", folder / "model.safetensors")
    return next((file for file in files if file.is_file()), None)


def collect(
    ledger: Ledger, paths: SweepPaths, done: set[str], copied_seq: int | None = None
) -> None:
    """Delete the checkpoints that are no longer needed, here and in the storage.

    The best trials of each variant keep the checkpoint of their best epoch, and with `--keep last`
    every trial keeps that of its last epoch. Failed and running trials keep those from which they
    may resume: the best and the last two epochs of ended attempts, and every checkpoint of the
    latest attempt. So does what the ledger's backup refers to, up to the change `copied_seq`; None:
    there is no backup. Each call adds to `done` what needs no further look.
    """
    header = ledger.header()
    keep_option = header.options.get("keep")
    if keep_option == "all":
        return
    storage = sweeps.storage_of(paths)
    trials = [
        trial
        for trial in ledger.trials()
        if trial.status in ("complete", "stopped", "diverged")
        and (copied_seq is None or (trial.ended_seq or 0) <= copied_seq)
    ]
    best = top_k(trials, header.num_best, header.plan.space.mode)
    for trial in trials:
        if trial.signature in done:
            continue
        keep = {_best_name(ledger, paths, trial)} if trial.signature in best else set()
        if keep_option == "last":
            keep |= {row.checkpoint for row in ledger.epochs(trial.signature)[-1:]}
        _delete_local(paths, trial.signature, "attempt_*", keep)
        if storage is not None:
            _collect_stored(storage, trial.signature, keep, done)
        if trial.signature not in best:
            done.add(trial.signature)
    _collect_dead_attempts(ledger, paths)
    if storage is not None and copied_seq is not None:
        _collect_outdated(storage, ledger, {t.signature for t in trials}, done, copied_seq)


def _best_name(ledger: Ledger, paths: SweepPaths, trial: Trial) -> str | None:
    """Return the checkpoint of a trial's best epoch, relative to the sweep's folder.

    If the checkpoint of the row is gone, that of an attempt which repeated the epoch is as good.
    """
    rows = ledger.epochs(trial.signature)
    name = next((row.checkpoint for row in rows if row.epoch == trial.best_epoch), None)
    if name is None or paths.remote or (paths.root / name).is_dir():
        return name
    again = sorted(paths.trial(trial.signature).glob(f"attempt_*/{Path(name).name}"))
    return str(again[-1].relative_to(paths.root)) if again else name


def _collect_dead_attempts(ledger: Ledger, paths: SweepPaths) -> None:
    """Delete checkpoints of earlier attempts from which no unended trial will resume."""
    for trial in ledger.trials():
        if trial.status not in ("running", "failed"):
            continue
        attempts = ledger.attempts(trial.signature)
        if len(attempts) < 2:
            continue
        rows = [row for row in ledger.epochs(trial.signature) if row.checkpoint]
        best = best_row(rows, trial.config["select_by"])
        keep = {row.checkpoint for row in (*rows[-2:], *([best] if best else ()))}
        keep.add(attempts[-1].resumed_from)
        for attempt in attempts[:-1]:
            _delete_local(paths, trial.signature, f"attempt_{attempt.attempt}", keep)


def _delete_local(
    paths: SweepPaths, signature: str, attempts: str, keep: Collection[str | None]
) -> None:
    """Delete the checkpoints of some attempts of a trial on this machine, except those to keep."""
    # A name with a leading dot is a checkpoint that a killed worker was writing.
    for folder in paths.trial(signature).glob(f"{attempts}/*epoch_*"):
        if str(folder.relative_to(paths.root)) not in keep:
            shutil.rmtree(folder, ignore_errors=True)


def _collect_stored(
    storage: Storage, signature: str, keep: set[str | None], done: set[str]
) -> None:
    """Delete an ended trial's checkpoints from the storage, except those to keep."""
    mark = f"{signature} {sorted(map(str, keep))}"
    if mark in done:
        return
    home = f"trials/{signature}"
    files = storage.files(home, recursive=True)
    folders = {f"{home}/{file.rpartition('/')[0]}" for file in files if "/epoch_" in f"/{file}"}
    for folder in sorted(folders - keep):
        storage.delete_folder(folder)
    done.add(mark)


def _collect_outdated(
    storage: Storage, ledger: Ledger, ended: set[str], done: set[str], copied_seq: int
) -> None:
    """Delete stored checkpoints of unended trials, except each one's best and last two epochs.

    The last two are those that the ledger's backup knows: a new machine resumes from them.
    """
    for trial in ledger.trials():
        if trial.signature in ended:
            continue
        rows = [r for r in ledger.epochs(trial.signature) if r.seq <= copied_seq and r.checkpoint]
        best = best_row(rows, trial.config["select_by"])
        for row in rows[:-2]:
            if row is not best and row.checkpoint and row.checkpoint not in done:
                storage.delete_folder(row.checkpoint)
                done.add(row.checkpoint)
