"""Validation accuracy against test accuracy of every evaluated trial."""

from __future__ import annotations

import math
from statistics import fmean

import plotly.graph_objects as go

from orchestrator.report.document.blocks import NOT_EVALUATED, Section, Text, counted
from orchestrator.report.document.plots import add_diagonal, colours, figure
from orchestrator.report.facts import SweepData
from orchestrator.report.statistics import correlation

_TITLE = "Validation and test accuracy"


def validation(sweep: SweepData) -> Section:
    """Return validation top-1 against test top-1 of every evaluated trial, with correlations."""
    evaluated = [record for record in sweep.records if record.evaluation]
    if not evaluated:
        return Section.of("validation", _TITLE, NOT_EVALUATED)
    points: dict[str, list[tuple[float, float, str]]] = {}
    for record in evaluated:
        val = 100 * record.at(record.kept_epoch, "val_top1")
        if not math.isnan(val):
            point = val, 100 * float(record.evaluation["top1"]), record.name
            points.setdefault(record.trial.variant, []).append(point)
    if not points:
        return Section.of("validation", _TITLE, "The evaluated trials had no validation split.")
    every = [(val, test) for own in points.values() for val, test, _ in own]
    means = [(fmean(p[0] for p in own), fmean(p[1] for p in own)) for own in points.values()]
    correlations = (
        _correlation("Correlation over trials (seeds of a variant are dependent)", every, "trial"),
        _correlation("Correlation over the means of variants", means, "variant"),
    )
    drawn, colour = go.Figure(), colours(sweep.variants)
    for variant in filter(points.get, sweep.variants):
        x, y, names = zip(*points[variant], strict=True)
        drawn.add_scatter(
            x=x,
            y=y,
            text=names,
            mode="markers",
            marker={"color": colour[variant], "size": 9},
            name=variant,
            hovertemplate="%{text}<br>validation %{x:.1f} %, test %{y:.1f} %<extra></extra>",
        )
    add_diagonal(drawn, [min(map(min, every)) - 1, max(map(max, every)) + 1], "equal")
    drawn.update_xaxes(title_text="validation top-1 at the evaluated epoch, %")
    drawn.update_yaxes(title_text="test top-1, %")
    shown = figure("validation", "Test top-1 against validation top-1", drawn, height_px=460)
    return Section.of("validation", _TITLE, Text(correlations), shown)


def _correlation(over: str, points: list[tuple[float, float]], unit: str) -> str:
    x, y = [x for x, _ in points], [y for _, y in points]
    found, n = correlation(x, y), f"n = {counted(len(x), unit)}"
    if found is None:
        return f"{over}: undefined, because there are too few values or all are equal ({n})."
    pearson, spearman = found
    return f"{over}: Pearson's r = {pearson:.2f}, Spearman's ρ = {spearman:.2f}, {n}."  # noqa: RUF001
