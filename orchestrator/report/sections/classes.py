"""What is mistaken for what: confusion matrices, figures per class, calibration."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from orchestrator.report.document.blocks import Block, Column, Figure, Section, Table, Tabs, text
from orchestrator.report.document.plots import colours, figure
from orchestrator.report.facts import Record, SweepData
from orchestrator.report.statistics import class_order, most_confused, row_shares

_MOST_PAIRS = 25
_WHOLE = 10_000  # of a share in the matrix
# Right ones lie below zero, in blue; mistaken ones above, in red, where small shares are seen too.
_SCALE = (
    (0.0, "#08519c"),
    (0.25, "#6baed6"),
    (0.4999, "#deebf7"),
    (0.5, "#ffffff"),
    (0.5001, "#fff1e6"),
    (0.51, "#fdd0a2"),
    (0.55, "#fd8d3c"),
    (0.65, "#d94801"),
    (1.0, "#7f0000"),
)


def classes(facts: SweepData) -> Section:
    """Return confusion matrices in one order for all variants, and the table of each class."""
    evaluated = {variant: facts.evaluated(variant) for variant in facts.variants}
    evaluated = {variant: records for variant, records in evaluated.items() if records}
    title = "Classes"
    if not evaluated:
        only = text("No trial has been evaluated on the test split yet.")
        return Section(name="classes", title=title, blocks=(only,))
    counts = {variant: _confusion(records) for variant, records in evaluated.items()}
    order = class_order(np.sum(list(counts.values()), axis=0))
    tabs = []
    for variant, confusion in counts.items():
        blocks: tuple[Block, ...] = (
            _matrix(facts, variant, confusion, order, len(evaluated[variant])),
            _pairs(facts, variant, confusion),
            _per_class(facts, variant, evaluated[variant]),
        )
        tabs.append((variant, blocks))
    intro = text(
        "Counts are summed over the seeds of a variant, and figures per class are their means. "
        "Classes are ordered by similarity: those that are mistaken for one another stand "
        "together (average-linkage clustering of the symmetrised confusion of all variants), in "
        "the same order for every variant. Drag over a part of the matrix to enlarge it, double "
        "click to see the whole again. A click on a heading of the table sorts it.",
    )
    return Section(
        name="classes", title=title, blocks=(intro, Tabs(name="classes", tabs=tuple(tabs)))
    )


def _confusion(records: Sequence[Record]) -> np.ndarray:
    """Return the counts of all seeds together. (k, k)."""
    found: np.ndarray = np.sum(
        [np.asarray(r.evaluation["confusion"], np.int64) for r in records if r.evaluation], axis=0
    )
    return found


def _matrix(
    facts: SweepData, variant: str, confusion: np.ndarray, order: Sequence[int], seeds: int
) -> Figure:
    ordered = confusion[np.ix_(order, order)]
    # Whole numbers of two bytes: a page may have eight matrices of 40,000 cells.
    signed = np.round(_WHOLE * row_shares(ordered)).astype(np.int16)
    np.fill_diagonal(signed, -np.diag(signed))
    names = _unique([facts.class_name(label) for label in order])
    drawn = go.Figure(
        go.Heatmap(
            z=signed,
            x=names,
            y=names,
            customdata=ordered.astype(np.min_scalar_type(int(ordered.max()))),
            zmin=-_WHOLE,
            zmax=_WHOLE,
            colorscale=[list(stop) for stop in _SCALE],
            showscale=False,
            hovertemplate="true: %{y}<br>predicted: %{x}<br>%{customdata} images<extra></extra>",
        )
    )
    is_few = len(order) <= 20
    axis = {"type": "category", "showgrid": False, "tickfont": {"size": 12 if is_few else 9}}
    # Of many classes plotly names as many as there is room for, and more when enlarged.
    drawn.update_xaxes(title_text="predicted", tickangle=0 if is_few else -90, nticks=60, **axis)
    drawn.update_yaxes(title_text="true", autorange="reversed", nticks=60, **axis)
    if is_few:
        drawn.update_traces(text=ordered.tolist(), texttemplate="%{text}", textfont={"size": 11})
    images = int(confusion.sum())
    return figure(
        f"confusion-{variant}",
        f"Confusion matrix of {variant}",
        drawn,
        height_px=560 if is_few else 900,
        note=f"{images:,} evaluations, of {seeds} {'seed' if seeds == 1 else 'seeds'}. A row is a "
        "true class. Blue: the share that is right. Orange to red: the share that is mistaken, "
        "with a scale on which 2 % can be seen.",
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Return the names, numbered where one comes twice: an axis would merge them."""
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _pairs(facts: SweepData, variant: str, confusion: np.ndarray) -> Table:
    sums = confusion.sum(axis=1)
    rows = []
    for a, b, a_as_b, b_as_a in most_confused(confusion, _MOST_PAIRS):
        shares = (a_as_b / max(int(sums[a]), 1), b_as_a / max(int(sums[b]), 1))
        rows.append(
            [facts.class_name(a), facts.class_name(b), a_as_b, shares[0], b_as_a, shares[1]]
        )
    return Table(
        name=f"most_confused_{variant}",
        title=f"Most confused pairs of {variant}",
        columns=(
            Column("a", "a"),
            Column("b", "b"),
            Column("a_as_b", "a taken for b", "count"),
            Column("a_as_b_share", "of all a", "percent"),
            Column("b_as_a", "b taken for a", "count"),
            Column("b_as_a_share", "of all b", "percent"),
        ),
        rows=rows,
        is_folded=len(rows) > 10,
    )


def _per_class(facts: SweepData, variant: str, records: Sequence[Record]) -> Table:
    evaluated = [r.evaluation for r in records if r.evaluation]

    def means(key: str) -> list[float]:
        values: list[float] = np.mean(
            [each[key]["per_class"] for each in evaluated], axis=0
        ).tolist()
        return values

    columns = [means(key) for key in ("precision", "recall", "f1")]
    support = evaluated[0]["support"]
    rows: list[list[Any]] = [
        [facts.class_name(label), *(values[label] for values in columns), support[label]]
        for label in range(len(support))
    ]
    averages = [
        [
            f"({how} mean)",
            *(
                float(np.mean([each[key][how] for each in evaluated]))
                for key in ("precision", "recall", "f1")
            ),
            sum(support),
        ]
        for how in ("macro", "weighted")
    ]
    return Table(
        name=f"classes_{variant}",
        title=f"Figures per class of {variant}",
        columns=(
            Column("class", "class"),
            Column("precision", "precision", "percent"),
            Column("recall", "recall", "percent"),
            Column("f1", "F1", "percent"),
            Column("support", "images", "count"),
        ),
        rows=[*averages, *rows],
        is_folded=len(rows) > 12,
    )


def calibration(facts: SweepData) -> Section:
    """Return how often a prediction is right against how sure the model is."""
    drawn, colour = go.Figure(), colours(facts.variants)
    drawn.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        line={"color": "#999", "width": 1, "dash": "dot"},
        name="as sure as right",
        hoverinfo="skip",
    )
    rows = []
    for variant in facts.variants:
        evaluated = [r.evaluation["calibration"] for r in facts.evaluated(variant) if r.evaluation]
        if not evaluated:
            continue
        count = np.sum([each["count"] for each in evaluated], axis=0)
        weights = np.maximum(count, 1)
        sure, right = (
            np.sum([np.multiply(each[key], each["count"]) for each in evaluated], axis=0) / weights
            for key in ("confidence", "accuracy")
        )
        kept = count > 0
        drawn.add_scatter(
            x=np.round(100 * sure[kept], 2),
            y=np.round(100 * right[kept], 2),
            customdata=count[kept],
            mode="lines+markers",
            line={"color": colour[variant], "width": 2},
            name=variant,
            hovertemplate=f"{variant}<br>sure %{{x:.1f}} %, right %{{y:.1f}} %"
            "<br>%{customdata} evaluations<extra></extra>",
        )
        rows += [
            [variant, i / 15, (i + 1) / 15, int(n), float(s), float(r)]
            for i, (n, s, r) in enumerate(zip(count, sure, right, strict=True))
            if n
        ]
    title = "Calibration"
    if not rows:
        only = text("No trial has been evaluated on the test split yet.")
        return Section(name="calibration", title=title, blocks=(only,))
    drawn.update_xaxes(title_text="mean confidence of the top-1 prediction, %", range=[0, 100])
    drawn.update_yaxes(title_text="share that is right, %", range=[0, 100])
    table = Table(
        name="calibration",
        title="The bins",
        columns=(
            Column("variant", "variant"),
            Column("from", "confidence from", "percent"),
            Column("to", "to", "percent"),
            Column("evaluations", "evaluations", "count"),
            Column("confidence", "mean confidence", "percent"),
            Column("accuracy", "right", "percent"),
        ),
        rows=rows,
        is_folded=True,
    )
    blocks = (
        text(
            "The test images in 15 equal bins of confidence, all seeds of a variant together. "
            "Below the dotted line a model is surer than it is right. The expected calibration "
            "error of the leaderboard is the mean distance to that line, weighted by images."
        ),
        figure("calibration", "How sure and how often right", drawn, height_px=460),
        table,
    )
    return Section(name="calibration", title=title, blocks=blocks)
