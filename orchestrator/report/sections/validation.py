"""Validation accuracy against test accuracy of every evaluated trial."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from orchestrator.report.document.blocks import Section, counted, text
from orchestrator.report.document.plots import add_diagonal, colours, figure
from orchestrator.report.facts import Record, SweepData, mean
from orchestrator.report.statistics import correlation

_TITLE = "Validation and test accuracy"


def validation(sweep: SweepData) -> Section:
    """Return validation top-1 against test top-1 of every evaluated trial, with correlations."""
    evaluated = [record for record in sweep.records if record.evaluation is not None]
    points = [(record, 100 * record.at(record.kept_epoch, "val_top1")) for record in evaluated]
    points = [(record, value) for record, value in points if not math.isnan(value)]
    if not points:
        if not evaluated:
            return Section.not_evaluated("validation", _TITLE)
        only = text("The evaluated trials had no validation split.")
        return Section("validation", _TITLE, (only,))
    colour = colours(sweep.variants)
    drawn = go.Figure()
    for variant in sweep.variants:
        if own := [(r, value) for r, value in points if r.trial.variant == variant]:
            drawn.add_scatter(
                x=[value for _, value in own],
                y=[_test(r) for r, _ in own],
                text=[r.name for r, _ in own],
                mode="markers",
                marker={"color": colour[variant], "size": 9},
                name=variant,
                hovertemplate="%{text}<br>validation %{x:.1f} %, test %{y:.1f} %<extra></extra>",
            )
    both = [value for r, value in points for value in (value, _test(r))]
    add_diagonal(drawn, [min(both) - 1, max(both) + 1], "equal")
    drawn.update_xaxes(title_text="validation top-1 at the evaluated epoch, %")
    drawn.update_yaxes(title_text="test top-1, %")
    blocks = (
        text(*_correlations(sweep, points)),
        figure("validation", "Test top-1 against validation top-1", drawn, height_px=460),
    )
    return Section("validation", _TITLE, blocks)


def _test(record: Record) -> float:
    return 100 * float(record.evaluation["top1"]) if record.evaluation else math.nan


def _correlations(sweep: SweepData, points: list[tuple[Record, float]]) -> list[str]:
    means = []
    for variant in sweep.variants:
        own = [(value, _test(r)) for r, value in points if r.trial.variant == variant]
        val, test = mean([v for v, _ in own]), mean([t for _, t in own])
        if val is not None and test is not None:
            means.append((val, test))
    over_trials = "Over trials (the seeds of a variant are not independent)"
    return [
        _correlation(over_trials, [(value, _test(r)) for r, value in points], "trial"),
        _correlation("Over the means of variants", means, "variant"),
    ]


def _correlation(over: str, points: list[tuple[float, float]], unit: str) -> str:
    x, y = [x for x, _ in points], [y for _, y in points]
    found, n = correlation(x, y), f"n = {counted(len(x), unit)}"
    if found is None:
        return f"{over}: no correlation, because there are too few values or all are equal ({n})."
    pearson, spearman = found
    return f"{over}: Pearson's r = {pearson:.2f}, Spearman's ρ = {spearman:.2f}, {n}."  # noqa: RUF001
