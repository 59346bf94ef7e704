"""`python -m orchestrator.sweep NAME --verify`: does what a sweep has left hold together?

It reads the ledger, the checkpoints and MLflow, starts nothing and writes nothing. The letters are
those of the promises: A every planned trial ends exactly once, C MLflow is equal to the ledger, D
checkpoints can be loaded, E every decision follows from the results it was made from. It works on
a copy of the ledger, so a sweep that is under way can be checked as well; of a sweep whose storage
is an address on the copy there, so that any machine can check it.
"""

from __future__ import annotations

import sys
from typing import Any

from orchestrator import command
from orchestrator.ledger.database import LedgerError
from orchestrator.ledger.snapshot import newest_copy
from orchestrator.plan.options import SweepConfig
from orchestrator.redaction import redacted
from orchestrator.storage import lease, locks, sweeps
from orchestrator.storage.paths import SweepPaths
from orchestrator.verify.decision_checks import (
    check_early_stopping,
    check_finals,
    check_suggestions,
)
from orchestrator.verify.facts import Result, Snapshot, is_open, read, trials_left
from orchestrator.verify.ledger_checks import (
    check_attempts,
    check_checkpoints,
    check_epochs,
    check_evaluations,
    check_trials,
)
from orchestrator.verify.mlflow_checks import check_tracking

HOLDS, BROKEN = 0, 1


def verify(config: SweepConfig) -> int:
    """Check a sweep, print the table and the breaches; return 0 when all holds, else 1.

    Raises:
        SweepNotFoundError: there is no such sweep.
    """
    paths = sweeps.find_sweep(str(config.storage), config.name, config.space)
    console = command.console_on(sys.stdout)
    driver = _driver(paths)
    try:
        with newest_copy(paths) as ledger:
            ledger.database.check_schema()
            facts = read(paths, ledger, driver)
            uri = config.tracking_uri or facts.header.tracking_uri
            results = check(facts, uri or paths.default_tracking_uri)
            died = driver is None and any(is_open(own) for own in facts.attempts.values())
            left = trials_left(facts)
    except LedgerError as error:  # here, or in the storage
        console.print(f"A: {error}", soft_wrap=True, highlight=False, markup=False)
        return BROKEN
    console.print(_table(paths, results))
    found = [breach for result in results for breach in result.breaches]
    for line in [*(f"Not checked: {result.note}" for result in results if result.note), *found]:
        console.print(redacted(str(line)), soft_wrap=True, highlight=False, markup=False)
    if driver is not None:
        console.print(f"It is being run by {driver}.", soft_wrap=True)
    elif died:
        console.print("Its driver died; --resume closes what was left open, then check again.")
    console.print(
        f"Not finished: {left} trials left." if left else "Every planned trial has ended."
    )
    return BROKEN if found else HOLDS


def check(facts: Snapshot, tracking_uri: str) -> list[Result]:
    """Return what every check finds."""
    return [*check_ledger(facts), check_tracking(facts, tracking_uri)]


def check_ledger(facts: Snapshot) -> list[Result]:
    """Return what the checks find that need no MLflow."""
    return [
        Result("A", "the ledger's file is intact", 1, []),  # else there would be no facts
        check_trials(facts),
        check_attempts(facts),
        check_epochs(facts),
        check_evaluations(facts),
        check_checkpoints(facts),
        check_suggestions(facts),
        check_early_stopping(facts),
        check_finals(facts),
    ]


def _driver(paths: SweepPaths) -> str | None:
    """Return who runs a sweep: on this machine by its lock, on any other by its lease."""
    here = locks.driver_of(paths)
    storage = sweeps.storage_of(paths)
    return lease.holder(storage) if here is None and storage is not None else here


def _table(paths: SweepPaths, results: list[Result]) -> Any:
    from rich.table import Table

    table = Table(title=f"Checks of the sweep {paths.name!r}")
    table.add_column("promise")
    table.add_column("what must hold")
    table.add_column("checked", justify="right")
    table.add_column("breaches", justify="right")
    for result in results:
        row = (result.promise, result.what, f"{result.checked:,}", str(len(result.breaches)))
        table.add_row(*row, style="red" if result.breaches else None)
    return table
