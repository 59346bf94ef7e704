"""Classes: confusion matrices, the most confused pairs, and the metrics of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from orchestrator.report.document import blocks
from orchestrator.report.document.blocks import Column, Figure, Section, Table
from orchestrator.report.document.plots import figure
from orchestrator.report.facts import Record, SweepData
from orchestrator.report.statistics import class_order, most_confused, row_shares

_MOST_PAIRS = 25
# Up to so many classes have a label each, with counts in the cells, in the order of the dataset.
_FEW_CLASSES = 20
_LONGEST_NAME = 24  # characters of a class's name on an axis
_WHOLE = 10_000  # a share of 1 in the matrix
# Correct predictions are negative and blue, wrong ones positive and red. The stops of the red side
# make small shares visible.
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


def classes(sweep: SweepData) -> Section:
    """Return each variant's confusion matrix, all in the same order, and metrics per class."""
    evaluated = {v: records for v in sweep.variants if (records := sweep.evaluated(v))}
    if not evaluated:
        return Section.of("classes", "Classes")
    counts: dict[str, np.ndarray] = {  # (k, k), summed over seeds
        variant: np.sum([np.asarray(r.evaluation["confusion"], np.int64) for r in records], axis=0)
        for variant, records in evaluated.items()
    }
    every: np.ndarray = np.sum(list(counts.values()), axis=0)
    is_few = len(every) <= _FEW_CLASSES
    order = list(range(len(every))) if is_few else class_order(every)
    tabs = []
    for variant, confusion in counts.items():
        own = evaluated[variant]
        matrix = _matrix(sweep, variant, confusion, order, len(own))
        tables = _pairs(sweep, variant, confusion), _per_class(sweep, variant, own)
        tabs.append((variant, (matrix, *tables)))
    ordered = (
        "The classes are in the order of the dataset."
        if is_few
        else "All matrices order the classes in the same way, so that classes that are often "
        "confused are next to each other (average-linkage clustering of the symmetrized confusion "
        "of all variants)."
    )
    intro = (
        "Counts are sums over the seeds of a variant, metrics per class are means over them. "
        f"{ordered}"
    )
    use = (
        "Drag over a matrix to zoom in, double-click to zoom out. Click a column heading of a "
        "table to sort it."
    )
    hint = blocks.Text((use,), is_of_page=True)
    return Section.of("classes", "Classes", intro, hint, blocks.Tabs("classes", tabs))


def _matrix(
    sweep: SweepData, variant: str, confusion: np.ndarray, order: Sequence[int], seeds: int
) -> Figure:
    ordered = confusion[np.ix_(order, order)]
    # Integers of two bytes keep the page small: it may have eight matrices of 40,000 cells.
    signed = np.round(_WHOLE * row_shares(ordered)).astype(np.int16)
    np.fill_diagonal(signed, -np.diag(signed))
    names = _unique([sweep.class_name(label) for label in order])
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
    is_few = len(order) <= _FEW_CLASSES
    axis = {"type": "category", "showgrid": False, "tickfont": {"size": 12 if is_few else 9}}
    # With many classes plotly labels as many as there is room for, and more after zooming in.
    if not is_few:
        drawn.update_layout(xaxis={"nticks": 60, "tickangle": -90}, yaxis={"nticks": 60})
    drawn.update_xaxes(title_text="predicted", **axis)
    drawn.update_yaxes(title_text="true", autorange="reversed", **axis)
    if is_few:
        # Without a size plotly leaves out the texts of cells that are too small.
        drawn.update_traces(text=ordered.tolist(), texttemplate="%{text}")
    images, of = int(confusion.sum()), blocks.counted(seeds, "seed")
    return figure(
        f"confusion-{variant}",
        f"Confusion matrix, {variant}",
        drawn,
        height_px=560 if is_few else 900,
        note=f"{blocks.counted(images, 'prediction')} of {of}. Each row is a true class. Blue: "
        "share of correct predictions. Orange to red: share of wrong predictions, on a scale "
        "that makes small shares visible.",
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Return shortened names, with numbers added to repeated ones, which an axis would merge."""
    most = _LONGEST_NAME
    names = [name if len(name) <= most else f"{name[: most - 1]}…" for name in names]
    counts = [names[: index + 1].count(name) for index, name in enumerate(names)]
    return [n if k == 1 else f"{n} ({k})" for n, k in zip(names, counts, strict=True)]


def _pairs(sweep: SweepData, variant: str, confusion: np.ndarray) -> Table:
    sums = confusion.sum(axis=1)
    rows = []
    for a, b, a_as_b, b_as_a in most_confused(confusion, _MOST_PAIRS):
        a_share, b_share = a_as_b / max(int(sums[a]), 1), b_as_a / max(int(sums[b]), 1)
        rows.append([*map(sweep.class_name, (a, b)), a_as_b, a_share, b_as_a, b_share])
    return Table(
        name=f"most_confused_{variant}",
        title=f"Most confused pairs of classes, {variant}",
        columns=(
            *Column.of(a="class a", b="class b"),
            *Column.of("count", a_as_b="a predicted as b"),
            *Column.of("percent", a_as_b_share="share of a"),
            *Column.of("count", b_as_a="b predicted as a"),
            *Column.of("percent", b_as_a_share="share of b"),
        ),
        rows=rows,
        is_folded=len(rows) > 10,
    )


def _per_class(sweep: SweepData, variant: str, records: Sequence[Record]) -> Table:
    support = records[0].evaluation["support"]

    def means(how: str) -> list[Any]:
        every = ([r.evaluation[m][how] for r in records] for m in ("precision", "recall", "f1"))
        return [np.mean(values, axis=0).tolist() for values in every]

    averages = [[f"({how} mean)", *means(how), sum(support)] for how in ("macro", "weighted")]
    rows = [
        [sweep.class_name(label), *values]
        for label, values in enumerate(zip(*means("per_class"), support, strict=True))
    ]
    return Table(
        name=f"classes_{variant}",
        title=f"Metrics per class, {variant}",
        columns=(
            Column("class", "class"),
            *Column.of("percent", precision="precision", recall="recall", f1="F1"),
            *Column.of("count", support="images"),
        ),
        rows=[*averages, *rows],
        is_folded=len(rows) > 12,
    )
