"""Accuracy against cost: Pareto fronts over parameters, operations, inference and device time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from orchestrator.report.document.blocks import Column, Figure, Section, Table
from orchestrator.report.document.plots import colours, figure, log_ticks
from orchestrator.report.facts import SweepData, estimated, mean
from orchestrator.report.sections import pairs
from orchestrator.report.sections.leaderboard import SHARED
from orchestrator.report.statistics import front, wilson


def fronts(sweep: SweepData) -> Section:
    """Return Pareto fronts of test top-1 over each cost, from scratch and pretrained separately."""
    points = {name: point for name in sweep.variants if (point := _point(sweep, name))}
    pretrained = [point["is_pretrained"] for point in points.values()]
    if max(pretrained.count(True), pretrained.count(False)) < 2:
        return Section.of("fronts", "Accuracy and cost")
    intro = (
        "Each point is one variant: its mean test top-1 over seeds, with the 95 % interval over "
        "test images. A variant is on the front if no other has at least its "
        "accuracy at a lower cost, or a higher accuracy at the same cost. Whether a difference is "
        f'significant is shown in "{pairs.TITLE}". Variants trained from scratch and pretrained '
        "variants have separate fronts."
    )
    drawn = (_front_figure(sweep, points, cost, form) for cost, form in _COSTS)
    return Section.of("fronts", "Accuracy and cost", intro, *drawn, SHARED, _fronts_table(points))


# With d3's number format: "s" has prefixes for thousands and millions, "g" has none.
_COSTS = (
    (Column("parameters", "parameters", "count"), "s"),
    (Column("multiply_accumulates", "multiply-accumulates", "mega"), "s"),
    (Column("inference_ms", "inference", "ms"), "g"),
    (Column("device_s", "device time per seed", "seconds"), "g"),
)


def _point(sweep: SweepData, variant: str) -> dict[str, Any] | None:
    evaluated = sweep.evaluated(variant)
    if not evaluated:
        return None
    some = evaluated[0].evaluation
    top1 = estimated(evaluated, "top1").mean or 0.0
    return {
        "top1": top1,
        "interval": wilson(top1, int(some["images"])),
        "is_pretrained": evaluated[0].is_pretrained,
        "parameters": some["parameters"],
        "multiply_accumulates": some["multiply_accumulates"],
        "inference_ms": estimated(evaluated, "inference_ms").mean,
        "device_s": mean([record.device_s for record in evaluated]),
    }


def _front(points: Mapping[str, dict[str, Any]], cost: str) -> dict[bool, list[str]]:
    """Return the variants on the front of a cost, cheapest first; keys: whether pretrained."""
    found = {}
    for is_pretrained in (False, True):
        names = [n for n, point in points.items() if point["is_pretrained"] == is_pretrained]
        kept = front([points[n][cost] for n in names], [points[n]["top1"] for n in names])
        found[is_pretrained] = [names[index] for index in kept]
    return found


def _front_figure(
    sweep: SweepData, points: Mapping[str, dict[str, Any]], shown: Column, form: str
) -> Figure:
    cost, colour, drawn = shown.key, colours(sweep.variants), go.Figure()
    title = shown.heading if form == "g" else shown.title
    for names in _front(points, cost).values():
        drawn.add_scatter(
            x=[points[name][cost] for name in names],
            y=[100 * points[name]["top1"] for name in names],
            mode="lines",
            line={"color": "#999", "width": 1, "shape": "hv"},
            hoverinfo="skip",
            showlegend=False,
        )
    for name, point in points.items():
        low, high = (100 * abs(end - point["top1"]) for end in point["interval"])
        drawn.add_scatter(
            x=[point[cost]],
            y=[100 * point["top1"]],
            error_y={"array": [high], "arrayminus": [low], "thickness": 1},
            mode="markers",
            marker={
                "color": colour[name],
                "size": 9,
                "symbol": "diamond" if point["is_pretrained"] else "circle",
            },
            name=name + (" (pretrained)" if point["is_pretrained"] else ""),
            hovertemplate=f"{name}<br>{title}: %{{x:.4{form}}}"
            "<br>test top-1: %{y:.1f} %<extra></extra>",
        )
    costs = [point[cost] for point in points.values()]
    is_wide = min(costs) > 0 and max(costs) > 3 * min(costs)
    axis = {"type": "log", "tickvals": log_ticks(costs)} if is_wide else {"rangemode": "tozero"}
    title += " (log scale)" if is_wide else ""
    drawn.update_xaxes(title_text=title, tickformat=f"~{form}", **axis)
    drawn.update_yaxes(title_text="test top-1, %")
    heading = f"Test top-1 against {shown.title}"
    return figure(f"fronts-{cost}", heading, drawn, height_px=330, is_half=True)


def _fronts_table(points: Mapping[str, dict[str, Any]]) -> Table:
    costs = [column for column, _ in _COSTS]
    on = {c.key: {n for names in _front(points, c.key).values() for n in names} for c in costs}
    return Table(
        name="fronts",
        title="Variants on the Pareto fronts",
        columns=(
            Column("variant", "variant"),
            Column("test_top1", "test top-1", "percent"),
            *(each for c in costs for each in (c, Column(f"{c.key}_front", "on the front"))),
        ),
        rows=[
            [name, point["top1"], *(v for c in costs for v in (point[c.key], name in on[c.key]))]
            for name, point in points.items()
        ],
    )
