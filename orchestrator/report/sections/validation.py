"""Validation accuracy against test accuracy of every evaluated trial."""

from __future__ import annotations

import math
from statistics import fmean

import plotly.graph_objects as go

from orchestrator.report.document.blocks import Section, counted
from orchestrator.report.document.plots import add_diagonal, colours, figure
from orchestrator.report.facts import SweepData
from orchestrator.report.statistics import correlation

_TITLE = "Validation and test accuracy"


def validation(sweep: SweepData) -> Section:
    """Return validation top-1 against test top-1 of every evaluated trial, with correlations."""
    points: dict[str, list[tuple[float, float, str]]] = {}
    for record in sweep.records:
        if not record.evaluation:
            continue
        val = 100 * record.at(record.kept_epoch, "val_top1")
        if not math.isnan(val):
            point = val, 100 * float(record.evaluation["top1"]), record.name
            points.setdefault(record.trial.variant, []).append(point)
    every = [(val, test) for own in points.values() for val, test, _ in own]
    if len(every) < 2:  # the leaderboard has the values of a single one
        return Section.of("validation", _TITLE)
    means = [(fmean(p[0] for p in own), fmean(p[1] for p in own)) for own in points.values()]
    over = ("trials (seeds of a variant are dependent)", every, "trial")
    correlations = filter(None, (_correlation(*over), _correlation("variants", means, "variant")))
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
    drawn.update_xaxes(title_text="validation top-1, %")
    drawn.update_yaxes(title_text="test top-1, %")
    title, note = "Test top-1 against validation top-1", "Both with the weights of the same epoch."
    shown = figure("validation", title, drawn, height_px=460, note=note)
    return Section.of("validation", _TITLE, *correlations, shown)


def _correlation(over: str, points: list[tuple[float, float]], unit: str) -> str | None:
    """Return the correlation in a sentence, None if it has no meaning."""
    x, y = [x for x, _ in points], [y for _, y in points]
    if (found := correlation(x, y)) is None:
        return None
    form = "Correlation over {}: Pearson's r = {:.2f}, Spearman's ρ = {:.2f}, n = {}."  # noqa: RUF001
    return form.format(over, *found, counted(len(x), unit))
