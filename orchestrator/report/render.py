"""Writes a sweep's report: one HTML page that needs no network, Markdown, and one CSV per table.

Everything is read from the ledger; the sweep may be running.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from orchestrator.clock import Clock
from orchestrator.errors import UsageError
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.document import blocks, markdown
from orchestrator.report.document.blocks import Section
from orchestrator.report.facts import SweepData, read_sweep
from orchestrator.report.sections.calibration import calibration
from orchestrator.report.sections.classes import classes
from orchestrator.report.sections.curves import curves
from orchestrator.report.sections.failures import failures
from orchestrator.report.sections.fronts import fronts
from orchestrator.report.sections.leaderboard import leaderboard
from orchestrator.report.sections.overview import overview
from orchestrator.report.sections.pairs import pairs
from orchestrator.report.sections.pictures import pictures
from orchestrator.report.sections.published import published
from orchestrator.report.sections.result import result
from orchestrator.report.sections.search import search
from orchestrator.report.sections.time_spent import time_spent
from orchestrator.report.sections.validation import validation
from orchestrator.storage.paths import REPORT_PAGE
from trainables import files


def write_report(
    ledger: Ledger, folder: Path, name: str = "", *, storage: str = "", clock: Clock | None = None
) -> Path:
    """Write a sweep's report and return the path of its page.

    The folder appears whole and in one step; an existing one is replaced. The name is by default
    that of the sweep's space, the time printed in the report that of the machine. `storage` is the
    sweep's, for the commands that the report prints.

    Raises:
        UsageError: the folder cannot be written.
    """
    sweep = read_sweep(ledger, name, storage)
    sections, images = _sections(sweep, (clock or Clock()).now_s())
    title = f"Sweep {sweep.name!r} on {sweep.plan.dataset}"
    tables = [table for section in sections for table in blocks.tables_of(section.blocks)]
    contents = {f"{table.name}.csv": blocks.to_csv(table) for table in tables}
    contents[REPORT_PAGE] = _to_html(title, sections, images)
    contents["report.md"] = markdown.to_markdown(title, sections)
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
    return folder / REPORT_PAGE


def _sections(sweep: SweepData, written_s: float) -> tuple[list[Section], dict[str, str]]:
    """Return the report's sections in order, and the images that the page contains once.

    A section that has nothing to say about this sweep is left out.
    """
    makers = (result, leaderboard, pairs, published, curves, search)
    more = (fronts, validation, classes, calibration)
    with_images, images = pictures(sweep)
    sections = [*(make(sweep) for make in (*makers, *more)), *with_images]
    sections += [failures(sweep), time_spent(sweep), overview(sweep, written_s)]
    return [section for section in sections if section.blocks], images


def _to_html(title: str, sections: Sequence[Section], images: Mapping[str, str]) -> str:
    """Return the page as HTML; `images` are the data URIs that pictures refer to by key."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(blocks.__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["printed_table"] = blocks.printed_table
    # The template does not escape the script and the figures: neither contains "</script".
    script = get_plotlyjs().replace("</script", "<\\/script")
    page = environment.get_template("page.html")
    return page.render(title=title, sections=sections, images=images, plotly=script)
