"""Accuracy against what it costs, and validation against test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from orchestrator.report.document.blocks import Block, Column, Figure, Section, Table, text
from orchestrator.report.document.plots import colours, figure
from orchestrator.report.facts import Record, SweepData, estimated, mean
from orchestrator.report.sections import pairs
from orchestrator.report.sections.leaderboard import SHARED
from orchestrator.report.statistics import correlation, front


def fronts(facts: SweepData) -> Section:
    """Return Pareto fronts over parameters, operations, inference time and device-seconds."""
    points = {name: point for name in facts.variants if (point := _point(facts, name))}
    if not points:
        only = text("No variant has been evaluated on the test split yet.")
        return Section(name="fronts", title="Accuracy and cost", blocks=(only,))
    blocks: list[Block] = [
        text(
            "One point is one variant: mean test top-1 over its seeds, with the standard "
            "deviation where there are two or more. On a front is whatever no other variant beats "
            "at the same cost or less; whether a difference is more than chance says the section "
            f'"{pairs.TITLE}". From-scratch and pretrained variants have fronts of their own.'
        ),
        _fronts_figure(facts, points),
        _fronts_table(facts, points),
    ]
    return Section(name="fronts", title="Accuracy and cost", blocks=tuple(blocks))


_COSTS: tuple[tuple[str, str], ...] = (
    ("parameters", "parameters"),
    ("multiply_accumulates", "multiply-accumulates per image"),
    ("inference_ms", "inference, ms per image, batch 1"),
    ("device_s", "device-seconds of one training"),
)


def _point(facts: SweepData, variant: str) -> dict[str, Any] | None:
    evaluated = facts.evaluated(variant)
    if not evaluated:
        return None
    top1, some = estimated(evaluated, "top1"), evaluated[0].evaluation or {}
    return {
        "top1": top1.mean,
        "sd": top1.sd,
        "is_pretrained": evaluated[0].is_pretrained,
        "parameters": some["parameters"],
        "multiply_accumulates": some["multiply_accumulates"],
        "inference_ms": estimated(evaluated, "inference_ms").mean,
        "device_s": mean([record.device_s for record in evaluated]),
    }


def _front(points: Mapping[str, dict[str, Any]], cost: str) -> dict[bool, list[str]]:
    """Return the variants on the front of a cost, cheapest first, by whether pretrained."""
    found = {}
    for is_pretrained in (False, True):
        names = [n for n, point in points.items() if point["is_pretrained"] == is_pretrained]
        kept = front([points[n][cost] for n in names], [points[n]["top1"] for n in names])
        found[is_pretrained] = [names[index] for index in kept]
    return found


def _fronts_figure(facts: SweepData, points: Mapping[str, dict[str, Any]]) -> Figure:
    colour = colours(facts.variants)
    drawn = make_subplots(rows=2, cols=2, vertical_spacing=0.16, horizontal_spacing=0.09)
    for index, (cost, title) in enumerate(_COSTS):
        row, column = index // 2 + 1, index % 2 + 1
        for names in _front(points, cost).values():
            drawn.add_scatter(
                x=[points[name][cost] for name in names],
                y=[100 * points[name]["top1"] for name in names],
                mode="lines",
                line={"color": "#999", "width": 1, "shape": "hv"},
                hoverinfo="skip",
                showlegend=False,
                row=row,
                col=column,
            )
        for name, point in points.items():
            drawn.add_scatter(
                x=[point[cost]],
                y=[100 * point["top1"]],
                error_y={"array": [100 * (point["sd"] or 0)], "visible": point["sd"] is not None},
                mode="markers",
                marker={
                    "color": colour[name],
                    "size": 9,
                    "symbol": "diamond" if point["is_pretrained"] else "circle",
                },
                name=name + (" (pretrained)" if point["is_pretrained"] else ""),
                legendgroup=name,
                showlegend=index == 0,
                hovertemplate=f"{name}<br>%{{x:.4s}}: %{{y:.1f}} %<extra></extra>",
                row=row,
                col=column,
            )
        costs = [point[cost] for point in points.values()]
        is_wide = min(costs) > 0 and max(costs) > 3 * min(costs)
        axis = {"type": "log", "tickvals": _ticks(costs)} if is_wide else {"rangemode": "tozero"}
        drawn.update_xaxes(
            title_text=title + (", logarithmic" if is_wide else ""),
            tickformat="~s",
            row=row,
            col=column,
            **axis,
        )
    drawn.update_yaxes(title_text="test top-1, %")
    return figure("fronts", "Pareto fronts", drawn, height_px=720, note=SHARED)


def _ticks(costs: Sequence[float]) -> list[float]:
    """Return the round values around costs: 1, 2 and 5 times powers of ten, all above 0."""
    low, high = math.floor(math.log10(min(costs))), math.ceil(math.log10(max(costs)))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    return [step * 10.0**power for power in range(low, high + 1) for step in steps]


def _fronts_table(facts: SweepData, points: Mapping[str, dict[str, Any]]) -> Table:
    on = {cost: {n for names in _front(points, cost).values() for n in names} for cost, _ in _COSTS}
    return Table(
        name="fronts",
        title="On which fronts each variant is",
        columns=(
            Column("variant", "variant"),
            Column("test_top1", "test top-1", "percent"),
            Column("parameters", "parameters", "count"),
            Column("parameters_front", "on the front"),
            Column("multiply_accumulates", "multiply-accumulates", "mega"),
            Column("multiply_accumulates_front", "on the front"),
            Column("inference_ms", "inference", "ms"),
            Column("inference_ms_front", "on the front"),
            Column("device_s", "device-seconds", "seconds"),
            Column("device_s_front", "on the front"),
        ),
        rows=[
            [
                name,
                point["top1"],
                *(v for cost, _ in _COSTS for v in (point[cost], name in on[cost])),
            ]
            for name, point in points.items()
        ],
    )


def validation_and_test(facts: SweepData) -> Section:
    """Return validation top-1 against test top-1 of everything that was evaluated."""
    evaluated = [record for record in facts.records if record.evaluation is not None]
    points = [(record, 100 * record.at(record.kept_epoch, "val_top1")) for record in evaluated]
    points = [(record, value) for record, value in points if not math.isnan(value)]
    title = "Validation and test"
    if not points:
        only = text(
            "Those that the test split has evaluated had no validation split."
            if evaluated
            else "No trial has been evaluated on the test split yet."
        )
        return Section(name="validation", title=title, blocks=(only,))
    colour = colours(facts.variants)
    drawn = go.Figure()
    for variant in facts.variants:
        own = [(r, value) for r, value in points if r.trial.variant == variant]
        if own:
            drawn.add_scatter(
                x=[value for _, value in own],
                y=[_test(r) for r, _ in own],
                text=[r.name for r, _ in own],
                mode="markers",
                marker={"color": colour[variant], "size": 9},
                name=variant,
                hovertemplate="%{text}<br>validation %{x:.1f} %, test %{y:.1f} %<extra></extra>",
            )
    every = [value for r, value in points for value in (value, _test(r))]
    ends = [min(every) - 1, max(every) + 1]
    drawn.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": "#999", "width": 1, "dash": "dot"},
        name="equal",
        hoverinfo="skip",
    )
    drawn.update_xaxes(title_text="validation top-1 at the epoch evaluated, %")
    drawn.update_yaxes(title_text="test top-1, %")
    blocks: tuple[Block, ...] = (
        text(*_correlations(facts, points)),
        figure("validation", "Validation against test top-1", drawn, height_px=460),
    )
    return Section(name="validation", title=title, blocks=blocks)


def _test(record: Record) -> float:
    return 100 * float(record.evaluation["top1"]) if record.evaluation else math.nan


def _correlations(facts: SweepData, points: list[tuple[Record, float]]) -> list[str]:
    lines = [
        _said(
            "Over trials (seeds of one variant are no independent points)",
            [value for _, value in points],
            [_test(r) for r, _ in points],
            "trials",
        )
    ]

    def means(variant: str, value: Callable[[Record, float], float]) -> float | None:
        return mean([value(r, v) for r, v in points if r.trial.variant == variant])

    val = [means(variant, lambda _, v: v) for variant in facts.variants]
    test = [means(variant, lambda r, _: _test(r)) for variant in facts.variants]
    both = [(v, t) for v, t in zip(val, test, strict=True) if v is not None and t is not None]
    lines.append(
        _said("Over variants' means", [v for v, _ in both], [t for _, t in both], "variants")
    )
    return lines


def _said(what: str, x: list[float], y: list[float], unit: str) -> str:
    found = correlation(x, y)
    if found is None:
        return f"{what}: {len(x)} {unit} are too few for a correlation, or all alike."
    return (
        f"{what}: Pearson's r = {found[0]:.2f}, Spearman's = {found[1]:.2f}, n = {len(x)} {unit}."
    )
