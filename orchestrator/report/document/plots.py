"""Figures of the report: colours, and plotly figures as compact JSON for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, qualitative
from plotly.io.json import to_json_plotly

from orchestrator.report.document.blocks import Figure

# Distinguishable also with impaired colour vision: Okabe and Ito's palette and two more.
_COLOURS = tuple(
    f"rgb({r},{g},{b})"
    for r, g, b in (
        *((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)),
        *((86, 180, 233), (230, 159, 0), (120, 94, 240), (100, 100, 100)),
    )
)


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name, the same in every figure."""
    known = (*_COLOURS, *qualitative.Dark24)
    return {name: known[index % len(known)] for index, name in enumerate(names)}


def faint(colour: str, alpha: float) -> str:
    """Return one of the colours of `colours` with an opacity of 0 to 1."""
    if colour.startswith("rgb("):
        return f"rgba({colour[4:-1]},{alpha})"
    r, g, b = hex_to_rgb(colour)
    return f"rgba({r},{g},{b},{alpha})"


def add_diagonal(drawn: go.Figure, ends: Sequence[float], name: str) -> None:
    """Add the dotted line on which x and y are equal."""
    line = {"color": "#999", "width": 1, "dash": "dot"}
    drawn.add_scatter(x=ends, y=ends, mode="lines", line=line, name=name, hoverinfo="skip")


def log_ticks(values: Sequence[float]) -> list[float]:
    """Return round values of a logarithmic axis of positive values: 1, 2 and 5 times powers of ten.

    Over more than two powers of ten only these themselves, since there is no room for more.
    """
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    return [step * 10.0**power for power in range(low, high + 1) for step in steps]


def figure(
    name: str,
    title: str,
    drawn: go.Figure,
    *,
    height_px: int = 420,
    note: str = "",
    is_half: bool = False,
) -> Figure:
    """Return a figure for the page, without plotly's template: the page has one for all figures."""
    content = drawn.to_plotly_json()
    for name_in_page in ("template", "title", "height"):  # the page has its own
        content["layout"].pop(name_in_page, None)
    # A script element ends at the first "</script", which a class name may contain.
    json = to_json_plotly(content).replace("<", "\\u003c")
    return Figure(
        name=name, title=title, json=json, height_px=height_px, note=note, is_half=is_half
    )
