"""Learning curves of every trial, and the table of all trials."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from orchestrator.ledger.records import ENDED, TrialStatus
from orchestrator.report.document.blocks import Block, Column, Figure, Section, Table, Text, counted
from orchestrator.report.document.plots import colours, faint, figure
from orchestrator.report.facts import Record, SweepData
from orchestrator.report.sections.leaderboard import metric_kind
from trainables.metrics import is_fraction

# Line style, opacity and end marker of a curve, by the trial's status.
_LOOKS: dict[TrialStatus, tuple[str, float, str | None]] = {
    "complete": ("solid", 0.75, None),
    "running": ("solid", 0.75, "circle-open"),
    "stopped": ("dot", 0.5, "line-ew-open"),
    "diverged": ("dash", 0.9, "x"),
    "failed": ("dash", 0.9, "square-open"),
}
_USE = "Click a variant in the legend to hide or show it; double-click it to hide all others."
# Curves with more points than this in total are thinned out, which is not visible.
_MOST_POINTS = 60_000


def curves(sweep: SweepData) -> Section:
    """Return the curves of all trials, of the best of each variant, and the table of trials."""
    shown = [record for record in sweep.records if record.rows]
    blocks = _figures(sweep, shown) if shown else []
    trials = [_trials(sweep)] if sweep.records else []
    return Section.of("curves", "Learning curves", *blocks, *trials)


def _figures(sweep: SweepData, shown: Sequence[Record]) -> list[Block | str]:
    blocks: list[Block | str] = [
        "Each line is one trial. Solid: complete, or still running if it ends in a circle. "
        "Dotted, ending in a dash: stopped early. Dashed, ending in a cross: diverged. "
        "Dashed, ending in a square: failed. Thick: trained again with another seed. Non-finite "
        "values are not drawn.",
        Text((_USE,), is_of_page=True),
    ]
    for metric in dict.fromkeys((sweep.metric, "val_loss", "train_loss")):
        # Without a validation split, `val_` metrics are 0.
        if found := [r for r in shown if r.has_validation or not metric.startswith("val_")]:
            blocks.append(_all_trials(sweep, found, metric))
    if without := sum(not record.has_validation for record in shown):
        blocks.append(f"Trained without a validation split: {counted(without, 'trial')}.")
    if any(r.trial.config.get(name) for r in shown for name in ("mixup_alpha", "cutmix_alpha")):
        blocks.append(
            "In trials with mixup or CutMix, a prediction for a training image counts as correct "
            "if it is either of the two mixed classes. Their training top-1 is therefore not "
            "comparable with that of other trials."
        )
    # The best trial of each variant: among its seeds, otherwise in its search.
    best = [sweep.best(sweep.seeds(v)) or sweep.best(sweep.of(v, "search")) for v in sweep.variants]
    if any(best):
        blocks += _train_and_validation(sweep, list(filter(None, best)))
    if silent := len(sweep.records) - len(shown):
        blocks.append(f"Without a finished epoch: {counted(silent, 'trial')}.")
    return blocks


def _all_trials(sweep: SweepData, shown: Sequence[Record], metric: str) -> Figure:
    drawn, colour = go.Figure(), colours(sweep.variants)
    scale = 100 if is_fraction(metric) else 1
    most = max(2, _MOST_POINTS // len(shown))
    width = 1.0 if len(shown) < 100 else 0.5
    groups: dict[tuple[str, str, TrialStatus], list[Record]] = collections.defaultdict(list)
    for r in shown:
        groups[r.trial.stage, r.trial.variant, r.trial.status].append(r)
    # Curves of final trials are drawn on top.
    for stage, variant, status in itertools.product(("search", "final"), sweep.variants, _LOOKS):
        records, (dash, opacity, mark) = groups[stage, variant, status], _LOOKS[status]
        if not records:
            continue
        x, y, numbers = _joined(records, metric, scale, most)
        of, final, times = ("final ", ", final", 2) if stage == "final" else ("#", "", 1)
        drawn.add_scatter(
            x=x,
            y=y,
            customdata=numbers,
            mode="lines" if mark else _mode(records),
            marker={"size": 5},
            name=f"{status}{final}: {len(records)}",
            line={"color": faint(colour[variant], opacity), "dash": dash, "width": times * width},
            hovertemplate=f"{variant} {of}%{{customdata}} ({status})"
            f"<br>epoch %{{x}}: {_READOUTS[scale]}<extra></extra>",
            legendgroup=variant,
            showlegend=False,
        )
        if mark:
            look = {"symbol": mark, "size": 7 * width, "color": colour[variant]}
            _add_ends(drawn, records, metric, scale, look, variant)
    for variant in dict.fromkeys(record.trial.variant for record in shown):
        look = {"color": colour[variant], "width": 2}
        drawn.add_scatter(x=[None], y=[None], mode="lines", line=look, name=variant)
        drawn.data[-1].update(legendgroup=variant, showlegend=True)
    _number_epochs(drawn, shown)
    drawn.update_yaxes(title_text=f"{metric}, %" if scale == 100 else metric)
    drawn.update_layout(hovermode="closest")
    return figure(f"curves-{metric}", f"{metric} of all trials", drawn, height_px=480)


_READOUTS = {100: "%{y:.1f} %", 1: "%{y:.4g}"}  # by the factor of the values


def _number_epochs(drawn: go.Figure, records: Sequence[Record]) -> None:
    """Label the axis of epochs; few epochs would have labels between them."""
    most = max(len(record.rows) for record in records)
    drawn.update_xaxes(title_text="epoch", dtick=1 if most <= 10 else None)


def _mode(records: Sequence[Record]) -> str:
    """Return plotly's mode; a curve of a single epoch is only visible with markers."""
    return "lines+markers" if any(len(record.rows) == 1 for record in records) else "lines"


def _joined(
    records: Sequence[Record], metric: str, scale: float, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lines of several trials as one, with gaps between them: (points,) each.

    A trace for each of a thousand trials would take the browser many seconds.
    """
    points: list[tuple[float, float, int]] = []
    for record in records:
        rows, number = record.rows, record.trial.number
        kept = sorted({*range(0, len(rows), math.ceil(len(rows) / most)), len(rows) - 1})
        points += [(rows[i].epoch + 1, scale * rows[i].metrics[metric], number) for i in kept]
        points.append((math.nan, math.nan, number))
    x, y, numbers = zip(*points, strict=True)
    return np.array(x, np.float32), np.array(y, np.float32), np.array(numbers, np.int32)


def _add_ends(
    drawn: go.Figure, records: Sequence[Record], metric: str, scale: float, look: Any, variant: str
) -> None:
    """Mark the last finite value of each trial."""
    finite = [[row for row in r.rows if math.isfinite(row.metrics[metric])] for r in records]
    last = [rows[-1] for rows in finite if rows]
    drawn.add_scatter(
        x=np.array([row.epoch + 1 for row in last], np.float32),
        y=np.array([scale * row.metrics[metric] for row in last], np.float32),
        mode="markers",
        marker=look,
        hoverinfo="skip",
        showlegend=False,
        legendgroup=variant,
    )


def _train_and_validation(sweep: SweepData, best: Sequence[Record]) -> list[Block | str]:
    colour = colours(sweep.variants)
    blocks: list[Block | str] = []
    for metric, title, scale in (("top1", "top-1", 100), ("loss", "loss", 1)):
        drawn = go.Figure()
        for record in best:
            parts = (("train", "training", "dash"), ("val", "validation", "solid"))
            for part, meaning, dash in parts if record.has_validation else parts[:1]:
                drawn.add_scatter(
                    x=[row.epoch + 1 for row in record.rows],
                    y=[round(scale * row.metrics[f"{part}_{metric}"], 4) for row in record.rows],
                    mode=_mode([record]),
                    name=f"{record.name}, {meaning}",
                    line={"color": colour[record.trial.variant], "dash": dash, "width": 2},
                    hovertemplate=f"epoch %{{x}}: {_READOUTS[scale]}"
                    "<extra>%{fullData.name}</extra>",
                )
        _number_epochs(drawn, best)
        drawn.update_yaxes(title_text="top-1, %" if scale == 100 else title)
        heading = f"Best trial of each variant: {title}"
        blocks.append(figure(f"curves-best-{metric}", heading, drawn, height_px=360, is_half=True))
    return [
        *blocks,
        "Training metrics are measured on augmented images during the epoch, while the weights "
        "still change.",
    ]


def _trials(sweep: SweepData) -> Table:
    params = sorted({name for record in sweep.records for name in record.trial.params})
    kind = metric_kind(sweep.metric)
    rows = []
    for record in sweep.records:
        trial = record.trial
        micro = {a.micro_batch_size for a in record.attempts} - {0}
        searched = map(trial.params.get, params)
        rows.append(
            [
                *(trial.variant, trial.stage, trial.number, trial.signature),
                *(trial.status, len(record.rows)),
                None if trial.best_epoch is None else trial.best_epoch + 1,
                *(trial.best_value, record.evaluation.get("top1")),
                *(len(record.attempts), min(micro, default=None), record.device_s),
                *(str(value) if isinstance(value, bool) else value for value in searched),
            ]
        )
    return Table(
        name="trials",
        title=f"All trials ({sum(r.trial.status in ENDED for r in sweep.records):,} have ended)",
        columns=(
            *Column.of(variant="variant", stage="stage"),
            *(Column("number", "trial", "count"), Column("signature", "signature")),
            Column("status", "status"),
            *Column.of("count", epochs="epochs", best_epoch="best epoch"),
            Column(f"best_{sweep.metric}", f"best {sweep.metric}", kind),
            Column("test_top1", "test top-1", "percent"),
            *Column.of("count", attempts="attempts", micro_batch_size="micro-batch size"),
            Column("device_s", "device time", "seconds"),
            *Column.of("number", **{name: name for name in params}),
        ),
        rows=rows,
        is_folded=True,
    )
