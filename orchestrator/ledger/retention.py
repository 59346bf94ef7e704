"""Which weights stay: the best trials of each variant for good, everything else while it runs."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from orchestrator.ledger.header import read_header
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ranking import best_row, top_k
from orchestrator.ledger.records import Trial
from orchestrator.storage import checkpoints, sweeps
from orchestrator.storage.paths import SweepPaths
from orchestrator.storage.store import Storage


def best_checkpoint(ledger: Ledger, paths: SweepPaths, trial: Trial) -> Path | None:
    """Return the checkpoint folder of a trial's best epoch, None where there is none."""
    name = _best_name(ledger, paths, trial)
    if name is None:
        return None
    folder = paths.root / name
    if not folder.is_dir() and paths.remote:
        return checkpoints.local_checkpoint(paths, name)
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

    Of the best trials of each variant the best epoch's stays, with `--keep last` the last epoch's
    of every trial as well; failed and running trials keep what they may go on from: the best epoch
    and the last two of attempts that are over, and all that the latest attempt has left.

    Args:
        ledger: the sweep's.
        paths: its folder.
        done: what is known to be clean; grows, so that each is looked at once.
        up_to: number of the last change in the ledger's durable copy. What that copy points to
            stays. None: there is no copy.
    """
    header = read_header(ledger)
    keep_option = header.options.get("keep")
    if keep_option == "all":
        return
    storage = sweeps.storage_of(paths)
    trials = _ended(ledger, up_to)
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
    if storage is not None and up_to is not None:
        goes_on = {trial.signature for trial in ledger.trials()} - {t.signature for t in trials}
        _collect_outdated(storage, ledger, sorted(goes_on), done, up_to)


def _ended(ledger: Ledger, up_to: int | None) -> list[Trial]:
    """Return the trials that have ended well by some change, and will not go on."""
    return [
        trial
        for trial in ledger.trials()
        if trial.status in ("complete", "stopped", "diverged")
        and (up_to is None or (trial.ended_seq or 0) <= up_to)
    ]


def _best_name(ledger: Ledger, paths: SweepPaths, trial: Trial) -> str | None:
    """Return the checkpoint of a trial's best epoch, relative to the sweep's folder.

    Where the one of its row is gone, an attempt that trained the epoch again has one as good.
    """
    rows = ledger.epochs(trial.signature)
    name = next((row.checkpoint for row in rows if row.epoch == trial.best_epoch), None)
    if name is None or paths.remote or (paths.root / name).is_dir():
        return name
    again = sorted(paths.trial(trial.signature).glob(f"attempt_*/{Path(name).name}"))
    return str(again[-1].relative_to(paths.root)) if again else name


def _collect_dead_attempts(ledger: Ledger, paths: SweepPaths) -> None:
    """Delete what earlier attempts of trials that may go on left, and nothing will go on from."""
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
    """Delete the checkpoints of some of a trial's attempts on this machine, but for some."""
    # With a dot begins what a worker that was killed had half written.
    for folder in paths.trial(signature).glob(f"{attempts}/*epoch_*"):
        if str(folder.relative_to(paths.root)) not in keep:
            shutil.rmtree(folder, ignore_errors=True)


def _collect_stored(
    storage: Storage, signature: str, keep: set[str | None], done: set[str]
) -> None:
    """Delete an ended trial's checkpoints from the storage, but for some."""
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
    storage: Storage, ledger: Ledger, signatures: Sequence[str], done: set[str], up_to: int
) -> None:
    """Delete what trials that go on have stored, but for each one's last two and best epochs.

    The last two are those of the ledger's copy: a new machine goes on from there.
    """
    for signature in signatures:
        stored = [r for r in ledger.epochs(signature) if r.seq <= up_to and r.checkpoint]
        best = best_row(stored, ledger.trial(signature).config["select_by"])
        for row in stored[:-2]:
            if row is not best and row.checkpoint and row.checkpoint not in done:
                storage.delete_folder(row.checkpoint)
                done.add(row.checkpoint)
