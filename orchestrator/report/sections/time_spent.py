"""How the sweep went: what failed and why, and where its time went."""

from __future__ import annotations

import collections
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from orchestrator.ledger.records import Attempt
from orchestrator.report.document.blocks import Block, Column, Section, Table, text
from orchestrator.report.document.plots import figure
from orchestrator.report.facts import Record, SweepData

# Nothing runs for longer than this only when no driver does.
_PAUSE_S = 60.0


_PARTS = (
    ("start", "from an attempt's start to its first epoch: process, images, model, checkpoint"),
    ("data", "preparing the batches of training: gathering, augmenting, normalising"),
    ("train", "the rest of an epoch without its validation"),
    ("validate", "validation after each epoch"),
    ("checkpoint", "writing checkpoints"),
    ("report", "between one epoch and the next: telling the driver, waiting for its answer"),
    ("test", "after the last epoch of an attempt that ended well: the test split, cleaning up"),
    ("unfinished", "after the last epoch of one that did not: training that was never reported"),
    ("idle", "slots times wall time, less all of the above"),
)
_TINTS = (
    "#a6761d",
    "#117733",
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#e69f00",
    "#cc79a7",
    "#d55e00",
    "#cccccc",
)


def time_ledger(facts: SweepData) -> Section:
    """Return where the slots' time went, by variant and in all."""
    title = "Where the time went"
    spans = [record.span_s(attempt) for record in facts.records for attempt in record.attempts]
    if not spans:
        only = text("No attempt has started yet.")
        return Section(name="time", title=title, blocks=(only,))
    spent: dict[str, collections.Counter[str]] = {v: collections.Counter() for v in facts.variants}
    for record in facts.records:
        for attempt in record.attempts:
            spent[record.trial.variant].update(_spent(record, attempt))
    slots, wall_s = _slots(spans), _wall_s(spans)
    total: collections.Counter[str] = collections.Counter()
    for each in spent.values():
        total.update(each)
    total["idle"] = max(0.0, slots * wall_s - sum(total.values()))  # type: ignore[assignment]
    names = [name for name, _ in _PARTS]
    table = Table(
        name="time",
        title="Seconds by what they went into",
        columns=(
            Column("variant", "variant"),
            *(Column(f"{name}_s", name, "seconds") for name in names),
            Column("sum_s", "sum", "seconds"),
        ),
        rows=[
            *(
                [v, *(each[n] for n in names[:-1]), None, sum(each.values())]
                for v, each in spent.items()
            ),
            ["all", *(total[n] for n in names), sum(total.values())],
            [
                "share",
                *(f"{100 * total[n] / max(sum(total.values()), 1e-9):.1f} %" for n in names),
                "",
            ],
        ],
    )
    drawn = go.Figure()
    for (name, meaning), tint in zip(_PARTS, _TINTS, strict=True):
        shown = (
            [*reversed(facts.variants), "all"] if name == "idle" else [*reversed(facts.variants)]
        )
        values = [total[name] if v == "all" else spent[v][name] for v in shown]
        drawn.add_bar(
            x=[round(value, 2) for value in values],
            y=["idle" if v == "all" else v for v in shown],
            orientation="h",
            name=name,
            marker={"color": tint},
            hovertemplate=f"{name}: %{{x:,.1f}} s<br>{meaning}<extra></extra>",
        )
    drawn.update_layout(
        barmode="stack", legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"}
    )
    drawn.update_xaxes(title_text="seconds of slots")
    blocks: tuple[Block, ...] = (
        text(*(f"{name.capitalize()}: {meaning}." for name, meaning in _PARTS)),
        text(
            f"At most {slots} {'attempt' if slots == 1 else 'attempts'} ran at a time, which is "
            f"taken for the number of slots. Wall time is {wall_s:,.1f} s: the time in which an "
            f"attempt was open, and gaps of less than {_PAUSE_S:.0f} s; longer ones are pauses "
            f"between commands ({_paused_s(spans):,.1f} s in all) and count as nothing."
        ),
        figure("time", "Seconds by variant", drawn, height_px=200 + 34 * len(facts.variants)),
        table,
        *_forecast(facts),
        *_forecast_whole(facts, wall_s),
    )
    return Section(name="time", title=title, blocks=blocks)


def _forecast(facts: SweepData) -> tuple[Table, ...]:
    """Return what `--measure` forecast beside what came; nothing where it was not asked for."""
    forecast: Mapping[str, Mapping[str, float]] = facts.said.get("forecast") or {}
    rows = []
    for variant in facts.variants:
        spans = [
            (row.metrics["epoch_s"] + row.metrics["checkpoint_s"], row.metrics["device_peak_gib"])
            for record in facts.of(variant)
            for row in record.rows
        ]
        if variant not in forecast or not spans:
            continue
        said, came_s = forecast[variant]["epoch_s"], statistics.median(span for span, _ in spans)
        peak = max(peak for _, peak in spans)
        rows.append(
            [variant, said, came_s, came_s / said, forecast[variant]["peak_gib"], peak, len(spans)]
        )
    if not rows:
        return ()
    return (
        Table(
            name="forecast",
            title="Forecast against truth",
            columns=(
                Column("variant", "variant"),
                Column("forecast_epoch_s", "epoch as forecast", "seconds"),
                Column("epoch_s", "epoch, median", "seconds"),
                Column("truth_over_forecast", "truth / forecast", "number"),
                Column("forecast_peak_gib", "memory as forecast, GiB", "number"),
                Column("peak_gib", "memory, most, GiB", "number"),
                Column("epochs", "epochs", "count"),
            ),
            rows=rows,
            note="The forecast is of a few steps with one suggestion's batch size, alone on the "
            "machine; trials had their own batch sizes and neighbours.",
        ),
    )


def _forecast_whole(facts: SweepData, wall_s: float) -> tuple[Table, ...]:
    """Return what `--measure` forecast of the whole sweep beside what it took."""
    forecast: Mapping[str, Any] | None = facts.said.get("forecast_whole")
    if forecast is None:
        return ()
    devices: Mapping[str, float] = forecast["devices"]
    device_s = epochs = 0.0
    for record in facts.records:
        epochs += len(record.rows)
        for attempt in record.attempts:
            start, end = record.span_s(attempt)
            device_s += devices.get(record.trial.variant, 1.0) * (end - start)
    rows: list[tuple[str, float, float]] = [
        ("wall time, h", forecast["wall_s"] / 3600, wall_s / 3600),
        ("device time, h", forecast["device_s"] / 3600, device_s / 3600),
        ("epochs", forecast["epochs"], epochs),
    ]
    if used_bytes := facts.said.get("disk_used_bytes"):
        rows.append(("files on disk, GiB", forecast["disk_bytes"] / 2**30, used_bytes / 2**30))
    return (
        Table(
            name="forecast_whole",
            title="The whole sweep: forecast against truth",
            columns=(
                Column("what", "what"),
                Column("forecast", "forecast", "number"),
                Column("truth", "truth", "number"),
                Column("truth_over_forecast", "truth / forecast", "number"),
            ),
            rows=[[what, said, came, came / said if said else None] for what, said, came in rows],
            note=f"The forecast was made before the sweep began, for {forecast['concurrent']} "
            "trials at a time and as if none were stopped early, without their starts and final "
            "tests; of the disk it is the most that checkpoints take meanwhile, with MLflow's "
            "copies, the truth the sweep's folder when this was written. What later commands "
            "added counts in the truth alone.",
        ),
    )


def _spent(record: Record, attempt: Attempt) -> dict[str, float]:
    """Return the seconds of one attempt by what they went into; they add up to its whole span."""
    start, end = record.span_s(attempt)
    rows = [row for row in record.rows if row.attempt == attempt.attempt]
    ended_well = attempt.outcome in ("complete", "stopped")
    last_part = "test" if ended_well else "unfinished"
    spent: collections.Counter[str] = collections.Counter()
    before = start
    for index, row in enumerate(rows):
        names = ("data_s", "val_s", "checkpoint_s", "epoch_s")
        data_s, validate_s, checkpoint_s, epoch_s = (_seconds(row.metrics[n]) for n in names)
        spent["data"] += data_s  # type: ignore[assignment]
        spent["train"] += max(epoch_s - data_s - validate_s, 0.0)  # type: ignore[assignment]
        spent["validate"] += validate_s  # type: ignore[assignment]
        spent["checkpoint"] += checkpoint_s  # type: ignore[assignment]
        left = row.arrived_s - before - max(epoch_s, data_s + validate_s) - checkpoint_s
        spent["report" if index else "start"] += max(left, 0.0)  # type: ignore[assignment]
        before = row.arrived_s
    spent[last_part] += max(end - before, 0.0)  # type: ignore[assignment]
    return dict(spent)


def _seconds(value: float | None) -> float:
    return value if value is not None and value >= 0 else 0.0  # NaN is not


def _slots(spans: Sequence[tuple[float, float]]) -> int:
    """Return how many attempts were open at once, at most."""
    # At one moment an end comes before a start.
    changes = sorted([(end, -1) for _, end in spans] + [(start, 1) for start, _ in spans])
    return max(1, *itertools.accumulate(step for _, step in changes))


def _gaps(spans: Sequence[tuple[float, float]]) -> Iterator[float]:
    """Yield the seconds of each gap in which no attempt was open."""
    covered = min(start for start, _ in spans)
    for start, end in sorted(spans):
        if start > covered:
            yield start - covered
        covered = max(covered, end)


def _wall_s(spans: Sequence[tuple[float, float]]) -> float:
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    return whole - _paused_s(spans)


def _paused_s(spans: Sequence[tuple[float, float]]) -> float:
    return sum(gap for gap in _gaps(spans) if gap >= _PAUSE_S)
