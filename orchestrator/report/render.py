"""Writes a sweep's report: one HTML page, Markdown, and a CSV file per table.

It reads the ledger only, and writes `<storage>/NAME/report/` in one step: `report.html`, which
needs no network, `report.md` and one CSV file per table. The sweep may be running.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from trainables import files

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.report.document.blocks import Section
    from orchestrator.report.facts import SweepData


def write_report(ledger: Ledger, folder: Path, name: str = "") -> Path:
    """Write a sweep's report and return the page's path.

    The folder appears in one step, whole; one that is there already is replaced.

    Args:
        ledger: the sweep's; it is read only.
        folder: where the report is to be.
        name: the sweep's, by default its space's.

    Raises:
        UsageError: the folder cannot be written.
    """
    from orchestrator.report.document.blocks import tables_of, to_csv, to_markdown
    from orchestrator.report.document.page import to_html
    from orchestrator.report.facts import read_facts

    facts, written_s = read_facts(ledger, name), time.time()
    sections, held = _sections(facts, written_s)
    title = f"Sweep {facts.name!r} on {facts.plan['dataset']}"
    contents = {
        "report.html": to_html(title, sections, held),
        "report.md": to_markdown(title, sections),
        **{
            f"{table.name}.csv": to_csv(table)
            for section in sections
            for table in tables_of(section.blocks)
        },
    }
    try:
        with files.temporary(folder) as new:
            new.mkdir()
            for file, content in contents.items():
                (new / file).write_text(content, encoding="utf-8")
            files.put_in_place(new, folder, durable=False)
    except OSError as error:
        raise UsageError(
            f"The report cannot be written to {folder}: {error}. Free some space there, or make "
            "it writable."
        ) from error
    return folder / "report.html"


def _sections(facts: SweepData, written_s: float) -> tuple[list[Section], dict[str, str]]:
    """Return the report's sections in order, and the images that the page holds once."""
    from orchestrator.report.sections.classes import calibration, classes
    from orchestrator.report.sections.curves import curves
    from orchestrator.report.sections.failures import failed
    from orchestrator.report.sections.fronts import fronts, validation_and_test
    from orchestrator.report.sections.leaderboard import leaderboard
    from orchestrator.report.sections.overview import head
    from orchestrator.report.sections.pairs import pairs
    from orchestrator.report.sections.pictures import images
    from orchestrator.report.sections.published import published
    from orchestrator.report.sections.search import search
    from orchestrator.report.sections.time_spent import time_ledger

    makers: tuple[Callable[[SweepData], Section], ...] = (
        *(leaderboard, pairs, published, curves, search),
        *(fronts, validation_and_test, classes, calibration),
    )
    pictures, held = images(facts)
    sections = [head(facts, written_s), *(make(facts) for make in makers), *pictures]
    return [*sections, failed(facts), time_ledger(facts)], held
