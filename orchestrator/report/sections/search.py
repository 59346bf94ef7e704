"""The search: where its suggestions came from, and Optuna's figures of the hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from orchestrator.report.document.blocks import Block, Figure, Section, Tabs, Text, counted
from orchestrator.report.document.plots import figure, log_ticks
from orchestrator.report.facts import SweepData
from orchestrator.report.statistics import FEWEST_POINTS
from orchestrator.search.sampler import study_of
from trainables.metrics import is_fraction

# With fewer complete trials, figures show nothing that the table of trials does not.
FEWEST_TRIALS = 4
# PED-ANOVA compares the best tenth of the trials, and at least two, with all of them.
ENOUGH_TRIALS = 30
# Width of a character of the labels in the parallel coordinates, as a share of the axis on a
# telephone, where it is shortest.
_CHARACTER = 0.026
# The browser holds one object per line of the parallel coordinates.
_MOST_LINES = 300


def search(sweep: SweepData) -> Section:
    """Return parallel coordinates, slices and hyperparameter importance of each variant."""
    searched = [v for v in sweep.variants if sweep.is_searched(v) and sweep.of(v, "search")]
    if not searched:
        return Section.of("search", "Search")
    kinds = {variant: suggested(sweep, variant) for variant in searched}
    caution = (
        f"{_adaptive(list(kinds.values()))} Only complete trials are shown: a stopped trial has no "
        "comparable value. Final trials are not part of the search."
    )
    origins = [
        f"{variant}: {counted(kind.enqueued, 'trial')} enqueued by the space, {kind.random} drawn "
        f"at random, {kind.adaptive} suggested by TPE from the results of earlier trials."
        for variant, kind in kinds.items()
    ]
    tabs = Tabs("search", [(variant, _of_variant(sweep, variant)) for variant in searched])
    texts = Text((caution,), is_warning=True), Text(origins)
    return Section.of("search", "Search", *texts, tabs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggested:
    """Where the suggestions of a variant's search trials came from, in numbers of trials."""

    enqueued: int
    random: int
    adaptive: int


def suggested(sweep: SweepData, variant: str) -> Suggested:
    """Return how many trials the space enqueued, how many were random and how many TPE suggested.

    TPE uses a model once `startup_trials` trials have ended without failing. A trial that ended
    after a suggestion was made does not count for it.
    """
    space = sweep.plan.space
    trials = [record.trial for record in sweep.of(variant, "search")]
    ends = [t.ended_seq for t in trials if t.ended_seq is not None and t.status != "failed"]
    enqueued = [t for t in trials if t.number < len(space.enqueued)]
    others = [t for t in trials if t not in enqueued]
    known = [sum(ended_seq <= t.seen_seq for ended_seq in ends) for t in others]
    adaptive = sum(count >= space.startup_trials for count in known)
    return Suggested(enqueued=len(enqueued), random=len(others) - adaptive, adaptive=adaptive)


def _adaptive(kinds: Sequence[Suggested]) -> str:
    if any(kind.adaptive for kind in kinds):
        return (
            "TPE suggested some of the trials, with values similar to those of good trials. The "
            "values are therefore not evenly distributed, and importance and slices are biased "
            "towards the region that was searched. They describe this search; they do not prove "
            "causes."
        )
    if any(kind.enqueued for kind in kinds):
        return (
            "TPE suggested no trial. The values that the space enqueued are not evenly "
            "distributed, so importance and slices describe only these trials; they do not prove "
            "causes."
        )
    return "TPE suggested no trial: all values were drawn at random from the whole ranges."


def _of_variant(sweep: SweepData, variant: str) -> list[Block]:
    records = sweep.of(variant, "search")
    complete = sum(record.trial.status == "complete" for record in records)
    if complete < FEWEST_TRIALS:
        few = f"{variant} has {counted(complete, 'complete trial')}. Figures of the hyperparameters"
        return [Text((f"{few} need at least {FEWEST_TRIALS}.",))]
    records.sort(key=lambda record: record.trial.number)
    study = study_of(sweep.plan, variant, [record.trial for record in records])
    for record in records:
        if record.trial.ended_seq is not None:
            study.tell(record.trial, record.rows, sweep.metric)
    scale = 100 if is_fraction(sweep.metric) else 1
    title = f"{sweep.metric}, %" if scale == 100 else sweep.metric
    shown: list[Block] = [_parallel(variant, study.parallel(title, scale), complete)]
    shown += [_slice(variant, each, drawn) for each, drawn in study.slices(title, scale).items()]
    shown.append(Text(("In the slices, a point is a trial: the darker, the later.",)))
    if complete >= FEWEST_POINTS:
        shown.append(_importance(variant, study.importances(), complete))
    return shown


def _parallel(variant: str, drawn: go.Figure, complete: int) -> Figure:
    """Return Optuna's parallel coordinates with their axes below each other.

    So they have room for the names and values of the axes on a narrow page too.
    """
    note = "Each line is a trial, the darker, the better."
    drawn.data = drawn.data[:-1]  # without the scale of colours: the first axis shows the values
    if complete > _MOST_LINES:
        drawn.data = drawn.data[-_MOST_LINES:]
        note += f" The last {_MOST_LINES} of {complete:,} complete trials."
    for each in drawn.data:
        each.x, each.y = each.y, each.x
    names = list(drawn.layout.xaxis.ticktext)
    labels: dict[int, list[tuple[float, str]]] = {axis: [] for axis in range(len(names))}
    for label in drawn.layout.annotations:
        labels[label.x].append((label.y, label.text))
    look = {"showarrow": False, "yshift": -9, "font": {"size": 10, "color": "#555"}}
    # Assigned, because an update would repeat a shorter list.
    drawn.layout.annotations = [
        {"x": at, "y": axis, "text": text, "xanchor": _anchor(at), **look}
        for axis, own in labels.items()
        for at, text in _apart(own)
    ]
    line = {"color": "#888", "width": 1}
    drawn.layout.shapes = [
        {"type": "line", "x0": 0, "x1": 1, "y0": axis, "y1": axis, "layer": "below", "line": line}
        for axis in labels
    ]
    drawn.layout.xaxis = {"visible": False, "range": (-0.02, 1.02), "fixedrange": True}
    drawn.layout.yaxis = {
        **{"tickvals": list(labels), "ticktext": names, "showgrid": False, "fixedrange": True},
        "range": (len(names) - 0.5, -0.4),  # the first is at the top
    }
    drawn.update_layout(plot_bgcolor="#e6e9ec")  # Optuna's palest lines are nearly white
    height_px = 60 + 64 * len(names)
    title = "Parallel coordinates"
    return figure(f"parallel-{variant}", title, drawn, height_px=height_px, note=note)


def _apart(labels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Return those labels of an axis that do not overlap, the outermost first."""
    kept: list[tuple[float, str]] = []
    taken: list[tuple[float, float]] = []
    for at, text in sorted(labels, key=lambda label: -abs(label[0] - 0.5)):
        before = {"left": 0.0, "center": 0.5, "right": 1.0}[_anchor(at)]
        start = at - before * _CHARACTER * len(text)
        end = start + _CHARACTER * (len(text) + 1)
        if all(end <= left or right <= start for left, right in taken):
            kept.append((at, text))
            taken.append((start, end))
    return kept


def _anchor(at: float) -> str:
    return "left" if at < 0.01 else "right" if at > 0.99 else "center"


def _slice(variant: str, name: str, drawn: go.Figure) -> Figure:
    drawn.update_traces(marker={"showscale": False})
    if drawn.layout.xaxis.type == "log":
        drawn.update_xaxes(tickvals=log_ticks(drawn.data[0].x), tickformat="~g")
    elif choices := drawn.layout.xaxis.categoryarray:  # as Python writes them: 'sgd', 32
        drawn.update_xaxes(tickvals=choices, ticktext=[choice.strip("'") for choice in choices])
    named = f"slice-{variant}-{name}"
    return figure(named, f"Slice: {name}", drawn, height_px=300, is_half=True)


def _importance(variant: str, shares: Mapping[str, float], complete: int) -> Figure:
    note = (
        "PED-ANOVA, Optuna's default: how well a hyperparameter alone separates the best trials "
        "from all trials."
    )
    if complete < ENOUGH_TRIALS:
        note += f" Of these {complete} trials, only two or three count as the best, so the "
        note += "values are uncertain."
    names = [*shares][::-1]  # the first is the lowest bar
    values = [100 * shares[name] for name in names]
    look: dict[str, Any] = {"textposition": "outside", "cliponaxis": False, "orientation": "h"}
    drawn = go.Figure()
    drawn.add_bar(
        x=values,
        y=names,
        text=[f"{value:.1f}" for value in values],
        hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
        **look,
    )
    # Otherwise the text beside the longest bar is cut.
    drawn.update_xaxes(title_text="importance, %", range=(0, 1.2 * max(values, default=1)))
    title = f"Hyperparameter importance, {complete:,} complete trials"
    height_px = 140 + 34 * len(names)
    return figure(f"importance-{variant}", title, drawn, height_px=height_px, note=note)
