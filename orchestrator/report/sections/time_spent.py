"""Time: what the devices' time was spent on, and the forecast beside the measured values."""

from __future__ import annotations

import collections
import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

import plotly.graph_objects as go

from orchestrator.ledger.records import Attempt
from orchestrator.report.document.blocks import Column, Figure, Section, Table, counted
from orchestrator.report.document.plots import figure
from orchestrator.report.facts import Record, SweepData

# While a driver runs, no gap between attempts is this long: a longer one means there was no driver.
_PAUSE_S = 60.0
_IDLE = "idle"
# Activity, meaning, colour.
_ACTIVITIES = (
    ("start", "before the first epoch: starting the process, loading images and model", "#a6761d"),
    ("data", "preparing training batches: gathering, augmenting, normalizing", "#117733"),
    ("train", "the rest of an epoch, without validation", "#0072b2"),
    ("validate", "validation after each epoch", "#56b4e9"),
    ("checkpoint", "writing checkpoints", "#009e73"),
    ("report", "between epochs: reporting to the driver and waiting for its decision", "#e69f00"),
    ("test", "after the last epoch of a complete or stopped attempt: test, cleanup", "#cc79a7"),
    ("unfinished", "after the last epoch of failed, diverged and lost attempts", "#d55e00"),
    (_IDLE, "slots times wall time, minus all of the above", "#cccccc"),
)
_Spent = Mapping[str, float]


def time_spent(sweep: SweepData) -> Section:
    """Return the time spent on each activity, by variant and in total, and the forecast's error."""
    spans = [span for record in sweep.records for span in record.spans_s]
    if not spans:
        return Section.of("time", "Time")
    # At equal times, ends are counted before starts.
    changes = sorted([(end, -1) for _, end in spans] + [(start, 1) for start, _ in spans])
    slots = max(1, *itertools.accumulate(step for _, step in changes))
    paused_s = sum(gap for gap in _gaps(spans) if gap >= _PAUSE_S)
    wall_s = max(end for _, end in spans) - min(start for start, _ in spans) - paused_s
    by_variant = {variant: _spent_by(sweep.of(variant)) for variant in sweep.variants}
    total = _summed(by_variant.values())
    total[_IDLE] = max(0.0, slots * wall_s - sum(total.values()))
    intro = (
        f"At most {counted(slots, 'attempt')} ran at a time; this is the number of slots below. "
        f"Wall time is {wall_s:,.1f} s: the time in which at least one attempt ran, and gaps of "
        f"less than {_PAUSE_S:.0f} s. Longer gaps are pauses between commands ({paused_s:,.1f} s "
        "in total) and do not count."
    )
    shown = _activities(total), _figure(by_variant, total), _table(by_variant, total)
    forecasts = *_forecast(sweep), *_whole_forecast(sweep, wall_s)
    return Section.of("time", "Time", intro, *shown, *forecasts)


def _activities(total: _Spent) -> Table:
    whole_s = max(sum(total.values()), 1e-9)
    return Table(
        name="time_by_activity",
        title="Time by activity",
        columns=(
            *(Column("activity", "activity"), Column("time_s", "time", "seconds")),
            *(Column("share", "share", "percent"), Column("meaning", "meaning")),
        ),
        rows=[[name, total[name], total[name] / whole_s, each] for name, each, _ in _ACTIVITIES],
    )


def _table(by_variant: Mapping[str, _Spent], total: _Spent) -> Table:
    names = [name for name, _, _ in _ACTIVITIES]
    return Table(
        name="time",
        title="Time by variant and activity",
        columns=(
            Column("variant", "variant"),
            *Column.of("seconds", **{f"{name}_s": name for name in names}, sum_s="sum"),
        ),
        rows=[
            [label, *(spent.get(name) for name in names), sum(spent.values())]
            for label, spent in [*by_variant.items(), ("all", total)]
        ],
    )


def _figure(by_variant: Mapping[str, _Spent], total: _Spent) -> Figure:
    drawn = go.Figure()
    bars: dict[str, _Spent] = {_IDLE: {_IDLE: total[_IDLE]}}
    bars |= reversed(list(by_variant.items()))  # the first variant is the top bar
    for name, meaning, colour in _ACTIVITIES:
        drawn.add_bar(
            x=[round(spent.get(name, 0.0), 2) for spent in bars.values()],
            y=list(bars),
            orientation="h",
            name=name,
            marker={"color": colour},
            hovertemplate=f"{name}: %{{x:,.1f}} s<br>{meaning}<extra></extra>",
        )
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    drawn.update_layout(barmode="stack", legend=legend)
    drawn.update_xaxes(title_text="seconds, summed over slots")
    return figure("time", "Time by variant", drawn, height_px=200 + 34 * len(by_variant))


def _forecast(sweep: SweepData) -> tuple[Table, ...]:
    """Return the forecast per variant beside the measured values, if there is one."""
    forecast: Mapping[str, Mapping[str, float]] = sweep.header.forecast
    rows = []
    for variant in sweep.variants:
        epochs = [row.metrics for record in sweep.of(variant) for row in record.rows]
        if variant not in forecast or not epochs:
            continue
        forecast_s, forecast_gib = (forecast[variant][name] for name in ("epoch_s", "peak_gib"))
        measured_s = statistics.median(each["epoch_s"] + each["checkpoint_s"] for each in epochs)
        peak_gib = max(each["device_peak_gib"] for each in epochs)
        ratio = measured_s / forecast_s
        rows.append([variant, forecast_s, measured_s, ratio, forecast_gib, peak_gib, len(epochs)])
    table = Table(
        name="forecast",
        title="Forecast and measured, per variant",
        columns=(
            Column("variant", "variant"),
            *Column.of("seconds", forecast_epoch_s="epoch, forecast"),
            *Column.of("seconds", epoch_s="epoch, measured median"),
            *Column.of("number", measured_over_forecast="measured / forecast"),
            *Column.of("number", forecast_peak_gib="memory, forecast, GiB"),
            *Column.of("number", peak_gib="memory, measured peak, GiB"),
            Column("epochs", "epochs", "count"),
        ),
        rows=rows,
        note="The forecast comes from a few training steps with the batch size of one suggestion, "
        "alone on the machine. Trials had their own batch sizes and may have shared the device.",
    )
    return (table,) if rows else ()


def _whole_forecast(sweep: SweepData, wall_s: float) -> tuple[Table, ...]:
    """Return the forecast of the whole sweep beside the measured values, if there is one."""
    forecast = sweep.header.forecast_whole
    if forecast is None:
        return ()
    devices: Mapping[str, float] = forecast["devices"]
    used_s = (
        devices.get(record.trial.variant, 1.0) * (end - start)
        for record in sweep.records
        for start, end in record.spans_s
    )
    epochs = sum(len(record.rows) for record in sweep.records)
    rows: list[tuple[str, float, float]] = [
        ("wall time, h", forecast["wall_s"] / 3600, wall_s / 3600),
        ("device time, h", forecast["device_s"] / 3600, sum(used_s) / 3600),
        ("epochs", forecast["epochs"], epochs),
    ]
    if used_bytes := sweep.header.disk_used_bytes:
        rows.append(("files on disk, GiB", forecast["disk_bytes"] / 2**30, used_bytes / 2**30))
    table = Table(
        name="forecast_whole",
        title="Forecast and measured, whole sweep",
        columns=(
            Column("quantity", "quantity"),
            *Column.of("number", forecast="forecast", measured="measured"),
            *Column.of("number", measured_over_forecast="measured / forecast"),
        ),
        rows=[[*row, row[2] / row[1] if row[1] else None] for row in rows],
        note="The forecast was made before the sweep started, for "
        f"{counted(forecast['concurrent'], 'trial')} at a time, without early stopping, and "
        "without the trials' startup and test evaluation. Its disk figure is the largest size that "
        "checkpoints and MLflow's copies reach during the sweep; the measured one is the size of "
        "the sweep's folder when the sweep last wrote this report. Work that later commands added "
        "counts in the measured values only.",
    )
    return (table,)


def _spent_by(records: Sequence[Record]) -> dict[str, float]:
    """Return the seconds that some trials spent on each activity but idling."""
    spent = _summed(_spent(record, each) for record in records for each in record.attempts)
    return {name: spent[name] for name, _, _ in _ACTIVITIES if name != _IDLE}


def _summed(parts: Iterable[_Spent]) -> collections.defaultdict[str, float]:
    total: collections.defaultdict[str, float] = collections.defaultdict(float)
    for part in parts:
        for name, seconds in part.items():
            total[name] += seconds
    return total


def _spent(record: Record, attempt: Attempt) -> _Spent:
    """Return the seconds of one attempt by activity; they add up to its duration."""
    before_s, end = attempt.span_s(record.rows)
    rows = [row for row in record.rows if row.attempt == attempt.attempt]
    spent: collections.defaultdict[str, float] = collections.defaultdict(float)
    for index, row in enumerate(rows):
        names = ("data_s", "val_s", "checkpoint_s", "epoch_s")
        # A duration that was not measured is NaN or negative.
        data_s, validate_s, checkpoint_s, epoch_s = (
            value if (value := row.metrics[name]) >= 0 else 0.0 for name in names
        )
        spent["data"] += data_s
        spent["train"] += max(epoch_s - data_s - validate_s, 0.0)
        spent["validate"] += validate_s
        spent["checkpoint"] += checkpoint_s
        rest_s = row.arrived_s - before_s - max(epoch_s, data_s + validate_s) - checkpoint_s
        spent["report" if index else "start"] += max(rest_s, 0.0)
        before_s = row.arrived_s
    ended_well = attempt.outcome in ("complete", "stopped")
    spent["test" if ended_well else "unfinished"] += max(end - before_s, 0.0)
    return spent


def _gaps(spans: Sequence[tuple[float, float]]) -> Iterator[float]:
    """Yield the seconds of each gap in which no attempt ran."""
    covered = min(start for start, _ in spans)
    for start, end in sorted(spans):
        if start > covered:
            yield start - covered
        covered = max(covered, end)
