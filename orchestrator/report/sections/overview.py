"""The report's last section: what was run, on which data, with which versions and deviations."""

from __future__ import annotations

import collections
import datetime

from orchestrator.report.deviations import deviations
from orchestrator.report.document.blocks import Block, Column, Section, Table, Text
from orchestrator.report.facts import SweepData

TITLE = "About this sweep"


def overview(sweep: SweepData, written_s: float) -> Section:
    """Return the facts of the sweep, written at a Unix time, and its deviations from the recipe."""
    names, rows = Column.of(fact="fact", value="value"), _rows(sweep, written_s)
    blocks: list[Block | str] = [Table(name="sweep", title="The sweep", columns=names, rows=rows)]
    if lines := deviations(sweep):
        blocks.append(Text(("Deviations from the space's recipe:",), is_warning=True))
        blocks.append(Text(lines))
    else:
        blocks.append("There are no deviations from the space's recipe.")
    return Section.of("sweep", TITLE, *blocks)


def _rows(sweep: SweepData, written_s: float) -> list[tuple[str, str]]:
    header, plan = sweep.header, sweep.plan
    spans = [span for record in sweep.records for span in record.spans_s]
    devices = sorted({str(r.evaluation["device"]) for r in sweep.records if r.evaluation})
    status = collections.Counter(record.trial.status for record in sweep.records)
    direction = "maximized" if plan.space.mode == "max" else "minimized"
    images = {split: f"{count:,} {split}" for split, count in sweep.images.items()}
    if (count := sweep.validation_images) and "train" in images:
        images["train"] += f" ({count:,} of them validation)"
    rows = [
        ("name", sweep.name),
        ("search space", header.space or plan.space.name),
        ("published source", str(header.published.get("source", ""))),
        ("sweep id", header.sweep_id),
        ("created", _time(header.created_s or None)),
        ("first attempt started", _time(min((start for start, _ in spans), default=None))),
        ("last attempt ended", _time(max((end for _, end in spans), default=None))),
        ("report written", _time(written_s)),
        ("dataset", plan.dataset),
        ("dataset fingerprint", plan.fingerprint),
        ("images", ", ".join(images[split] for split in sorted(images, reverse=True))),
        ("classes", str(len(sweep.class_names) or "")),
        ("variants", ", ".join(sweep.variants)),
        ("search metric", f"{sweep.metric} on the validation split, {direction}"),
        ("trials", ", ".join(f"{n} {each}" for each, n in sorted(status.items())) or "none"),
        ("sweep seed", str(plan.seed)),
        ("device of the test evaluation", "; ".join(devices)),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(header.versions.items()))),
    ]
    return [(fact, value) for fact, value in rows if value]


def _time(unix_s: float | None) -> str:
    if unix_s is None:
        return ""
    return f"{datetime.datetime.fromtimestamp(unix_s, datetime.UTC):%Y-%m-%d %H:%M:%S UTC}"
