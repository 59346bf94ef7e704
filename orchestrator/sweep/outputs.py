"""Writes a sweep's report and its best model, from its ledger and checkpoints.

An output that cannot be written costs a printed line, never the sweep.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from orchestrator.ledger import ranking
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Trial
from orchestrator.plan import disk
from orchestrator.predict import find
from orchestrator.predict.mlflow_model import export_model
from orchestrator.redaction import redacted
from orchestrator.storage.paths import MODEL, REPORT, SweepPaths
from orchestrator.tracking.artifacts import Output
from trainables import files
from trainables.data.dataset import Manifest


def make(
    ledger: Ledger, paths: SweepPaths, manifest: Manifest, say: Callable[[str], None]
) -> list[Output]:
    """Bring the sweep's report and its best model up to date, and return those that exist.

    The ledger stores what each folder was written from. `say` prints what cannot be written.
    """
    made: list[Output] = []
    known, best = ledger.header().products, _best(ledger)
    of_model = f"{best.signature} epoch {(best.best_epoch or 0) + 1}" if best else ""
    outputs = ((REPORT, str(ledger.seq), _write_report), (MODEL, of_model, _write_model))
    for name, mark, write in outputs:
        folder = paths.root / name
        if mark and not (known.get(name) == mark and folder.is_dir()):
            try:
                write(ledger, paths, manifest, folder)
            except Exception as error:
                text = str(error) or repr(error)
                say(redacted(f"The sweep's {name} could not be written to {folder}: {text}"))
                continue
            known = {**known, name: mark}
            ledger.put("products", known)
        if mark:
            made.append(Output(name, folder, mark))
    return made


def _best(ledger: Ledger) -> Trial | None:
    return ranking.best_trial(ledger.trials(), ledger.header().plan.space.mode)


def _write_report(ledger: Ledger, paths: SweepPaths, manifest: Manifest, folder: Path) -> None:
    from orchestrator.report.render import write_report  # imports plotly, only needed here

    if ledger.header().forecast_whole and not paths.remote:  # the report compares them
        ledger.put("disk_used_bytes", disk.used_bytes(paths.root))
    write_report(ledger, folder, paths.name, storage=paths.storage)


def _write_model(ledger: Ledger, paths: SweepPaths, manifest: Manifest, folder: Path) -> None:
    for leftover in paths.root.glob(f".*{folder.name}.new*"):  # of a driver that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with files.temporary(folder, "new") as new:
        export_best(ledger, paths, manifest, new)
        files.put_in_place(new, folder, durable=False)


def export_best(ledger: Ledger, paths: SweepPaths, manifest: Manifest, target: Path) -> bool:
    """Export the best model of a sweep; return whether there is one.

    Raises:
        UsageError: its checkpoint is missing or damaged.
        FileExistsError: the target exists.
    """
    trial = _best(ledger)
    if trial is not None:
        export_model(find.model_of_trial(ledger, paths, trial, manifest), target)
    return trial is not None
