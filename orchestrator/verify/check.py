"""Runs all checks of a sweep and prints them: `python -m orchestrator.sweep NAME --verify`.

It starts and writes nothing. It works on a copy of the ledger, so a running sweep can be checked
too. If the storage is a URL, that copy comes from there, so any machine can check the sweep.
"""

from __future__ import annotations

import sys
from typing import Any

from orchestrator import command
from orchestrator.ledger.database import LedgerError
from orchestrator.ledger.snapshot import newest_copy
from orchestrator.plan.options import SweepConfig
from orchestrator.redaction import redacted
from orchestrator.storage import lease, sweeps
from orchestrator.storage.paths import SweepPaths
from orchestrator.verify import decision_checks, ledger_checks
from orchestrator.verify.mlflow_checks import check_tracking
from orchestrator.verify.snapshot import Result, Snapshot, is_open, read_snapshot, trials_left


def verify(config: SweepConfig) -> int:
    """Check a sweep, print a table and the problems; return 0 if there are none, else 1.

    Raises:
        SweepNotFoundError: there is no such sweep.
    """
    paths = sweeps.find_sweep(str(config.storage), config.name, config.space)
    driver = lease.driver_of(paths)
    try:
        with newest_copy(paths) as ledger:
            ledger.database.check_schema()
            snapshot = read_snapshot(paths, ledger, driver)
            uri = config.tracking_uri or snapshot.header.tracking_uri
            results = check(snapshot, uri or paths.default_tracking_uri)
            state = _state(snapshot)
    except LedgerError as error:  # here, or in the storage
        command.say(f"ledger: {error}")
        return command.FAILED
    command.console_on(sys.stdout).print(_table(paths, results))
    found = [problem for result in results for problem in result.problems]
    for line in [*(f"Not checked: {result.note}" for result in results if result.note), *found]:
        command.say(redacted(line))
    for line in state:
        command.say(line)
    return command.FAILED if found else command.COMPLETE


def _state(snapshot: Snapshot) -> list[str]:
    """Return sentences on who runs the sweep, and how many of its trials have ended."""
    lines = []
    if snapshot.driver is not None:
        lines.append(f"The sweep is being run by {snapshot.driver}.")
    elif any(map(is_open, snapshot.attempts.values())):
        lines.append(
            "The sweep's driver was killed. Resume it with --resume, which closes open attempts, "
            "then check again."
        )
    left = trials_left(snapshot)
    unfinished = "1 trial has" if left == 1 else f"{left} trials have"
    lines.append(f"{unfinished} not ended yet." if left else "All requested trials have ended.")
    return lines


def check(snapshot: Snapshot, tracking_uri: str) -> list[Result]:
    """Return the results of all checks."""
    return [*check_ledger(snapshot), check_tracking(snapshot, tracking_uri)]


def check_ledger(snapshot: Snapshot) -> list[Result]:
    """Return the results of the checks that do not need MLflow."""
    return [
        Result("ledger", "the file is intact", 1, []),  # otherwise there is no snapshot
        ledger_checks.check_trials(snapshot),
        ledger_checks.check_attempts(snapshot),
        ledger_checks.check_epochs(snapshot),
        ledger_checks.check_evaluations(snapshot),
        ledger_checks.check_checkpoints(snapshot),
        decision_checks.check_suggestions(snapshot),
        decision_checks.check_early_stopping(snapshot),
        decision_checks.check_finals(snapshot),
    ]


def _table(paths: SweepPaths, results: list[Result]) -> Any:
    from rich.table import Table

    table = Table("area", "check", title=f"Checks of the sweep {paths.name!r}")
    for title in ("checked", "problems"):
        table.add_column(title, justify="right")
    for result in results:
        row = (result.area, result.what, f"{result.checked:,}", str(len(result.problems)))
        table.add_row(*row, style="red" if result.problems else None)
    return table
