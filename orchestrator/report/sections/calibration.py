"""Calibration: how often predictions are correct, by the model's confidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import plotly.graph_objects as go

from orchestrator.report.document.blocks import Column, Figure, Section, Table
from orchestrator.report.document.plots import add_diagonal, colours, figure
from orchestrator.report.facts import Record, SweepData

_RANGE = (-2, 102)  # percent; markers at 0 % and 100 % are not clipped


def calibration(sweep: SweepData) -> Section:
    """Return accuracy against confidence of each variant, as a figure and as a table."""
    bins = {v: values for v in sweep.variants if (values := _bins(sweep.evaluated(v))).size}
    intro = (
        "Predictions on the test split in 15 bins of equal width by confidence, all seeds of a "
        "variant together. Below the dotted line a model is overconfident. The expected "
        "calibration error (ECE) of the leaderboard is the mean distance from that line, weighted "
        "by the number of predictions, computed for each seed and averaged. A bin with few "
        "predictions says little: its accuracy varies by chance."
    )
    blocks = (intro, _figure(sweep, bins), _counts(sweep, bins), _table(bins)) if bins else ()
    return Section.of("calibration", "Calibration", *blocks)


def _figure(sweep: SweepData, bins: Mapping[str, np.ndarray]) -> Figure:
    drawn, colour = go.Figure(), colours(sweep.variants)
    add_diagonal(drawn, [0, 100], "perfect calibration")
    for variant, values in bins.items():
        _, _, count, confidence, accuracy = values.T
        drawn.add_scatter(
            x=np.round(100 * confidence, 2),
            y=np.round(100 * accuracy, 2),
            customdata=count.astype(int),
            mode="lines+markers",
            line={"color": colour[variant], "width": 2},
            name=variant,
            hovertemplate=f"{variant}<br>confidence %{{x:.1f}} %, accuracy %{{y:.1f}} %"
            "<br>%{customdata} predictions<extra></extra>",
        )
    drawn.update_xaxes(title_text="mean confidence, %", range=_RANGE)
    drawn.update_yaxes(title_text="accuracy, %", range=_RANGE)
    title = "Accuracy against confidence"
    return figure("calibration", title, drawn, height_px=400, is_half=True)


def _counts(sweep: SweepData, bins: Mapping[str, np.ndarray]) -> Figure:
    drawn, colour = go.Figure(), colours(sweep.variants)
    for variant, values in bins.items():
        low, high, count, _, _ = values.T
        drawn.add_bar(
            x=np.round(50 * (low + high), 2).tolist(),
            y=count.astype(int).tolist(),
            marker={"color": colour[variant]},
            name=variant,
            hovertemplate=f"{variant}<br>confidence about %{{x:.1f}} %"
            "<br>%{y} predictions<extra></extra>",
        )
    drawn.update_xaxes(title_text="confidence, %", range=_RANGE)
    drawn.update_yaxes(title_text="predictions")
    title = "Predictions in each bin"
    return figure("calibration-counts", title, drawn, height_px=400, is_half=True)


def _table(bins: Mapping[str, np.ndarray]) -> Table:
    return Table(
        name="calibration",
        title="Calibration by bin",
        columns=(
            *Column.of(variant="variant"),
            *(Column("from", "confidence from", "percent"), Column("to", "to", "percent")),
            *Column.of("count", predictions="predictions"),
            *Column.of("percent", confidence="mean confidence", accuracy="accuracy"),
        ),
        rows=[
            [variant, low, high, int(count), confidence, accuracy]
            for variant, values in bins.items()
            for low, high, count, confidence, accuracy in values.tolist()
        ],
        is_folded=True,
    )


def _bins(records: Iterable[Record]) -> np.ndarray:
    """Return the bins with predictions, summed over seeds; none without an evaluation.

    (bins, 5): lower and upper end, predictions, mean confidence, accuracy.
    """
    found = [record.evaluation["calibration"] for record in records]
    if not found:
        return np.empty((0, 5))
    counts = np.array([each["count"] for each in found], float)
    count = counts.sum(axis=0)
    confidence, accuracy = (
        (counts * [each[key] for each in found]).sum(axis=0) / np.maximum(count, 1)
        for key in ("confidence", "accuracy")
    )
    ends = np.arange(len(count) + 1) / len(count)
    values = np.column_stack([ends[:-1], ends[1:], count, confidence, accuracy])
    kept: np.ndarray = values[count > 0]
    return kept
