"""The blocks of a report: sections of texts, tables, figures and pictures.

A table holds raw values and is printed as HTML, Markdown and CSV. Raw values are fractions, seconds
and counts. HTML and Markdown show fractions as percent, CSV shows raw values.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

# An "estimate" is an `Estimate` of fractions, an "interval" the pair of its ends.
Kind = Literal[
    "text",
    "count",
    "percent",
    "points",
    "estimate",
    "interval",
    "loss",
    "number",
    "mega",
    "seconds",
    "ms",
]
NONE = "–"  # noqa: RUF001, an en dash is intended


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name in the CSV file, its printed heading, and how its values are printed."""

    key: str
    title: str
    kind: Kind = "text"

    @classmethod
    def of(cls, kind: Kind = "text", **titles: str) -> tuple[Column, ...]:
        """Return columns of one kind, from the title of each key."""
        return tuple(cls(key, title, kind) for key, title in titles.items())

    @property
    def heading(self) -> str:
        """The heading with its unit."""
        unit = {"mega": "M", "seconds": "s", "ms": "ms"}
        unit |= {"percent": "%", "points": "points", "estimate": "%", "interval": "%"}
        return f"{self.title}, {unit[self.kind]}" if self.kind in unit else self.title


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows with one raw value per column; None is printed as a dash."""

    name: str  # also that of its CSV file
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    is_folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A plotly figure as JSON, which the page draws: those in view first.

    Its height is that of the drawing; a legend below it adds to the height. Two that follow each
    other with `is_half` are side by side if the page is wide enough.
    """

    name: str
    title: str
    json: str
    height_px: int
    note: str = ""
    is_half: bool = False


@dataclass(frozen=True, slots=True)
class Card:
    """One answer: what it is about, the answer itself, and lines that complete it."""

    title: str
    value: str
    lines: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Cards:
    """Cards side by side."""

    title: str  # may be empty
    cards: Sequence[Card]


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph, or a list if there are several lines."""

    lines: Sequence[str]
    is_warning: bool = False
    is_of_page: bool = False  # tells how to use the page, so Markdown lacks it


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """All pairs of names: a text and a CSS class for each.

    `cells[row][column]` is a text, with "|" between its lines, and "wins", "loses", "open" or
    "" as CSS class.
    """

    name: str
    title: str
    names: tuple[str, ...]
    cells: Sequence[Sequence[tuple[str, str]]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A small image. `source` is a data URI, or the key of an image that the page holds once."""

    source: str
    caption: str
    detail: str = ""  # the tooltip
    mark: Literal["right", "wrong", ""] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Rows of pictures; with `headings`, a table with one column per heading."""

    name: str
    title: str
    rows: Sequence[Sequence[Picture]]
    headings: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tabs:
    """Sets of blocks, of which the page shows one at a time."""

    name: str
    tabs: Sequence[tuple[str, Sequence[Block]]]


Block = Cards | Table | Figure | Text | Matrix | Pictures | Tabs


@dataclass(frozen=True, slots=True)
class Section:
    """One heading and its blocks. A section without blocks is left out of the report."""

    name: str  # its anchor in the page
    title: str
    blocks: tuple[Block, ...] = ()

    @classmethod
    def of(cls, name: str, title: str, *blocks: Block | str) -> Section:
        """Return a section; a string is a paragraph."""
        return cls(name, title, tuple(Text((b,)) if isinstance(b, str) else b for b in blocks))


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "no seeds", "1 seed", "1,200 seeds"."""
    return f"{f'{count:,}' if count else 'no'} {noun}{'' if count == 1 else 's'}"


def printed(value: Any, kind: Kind) -> str:
    """Return a raw value as the page and Markdown print it."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if kind == "text" or isinstance(value, str):
        return str(value)
    if kind == "estimate":
        spread = "" if value.sd is None else f"± {100 * value.sd:.1f}, "
        return f"{100 * value.mean:.1f} ({spread}n = {value.n})"
    if kind == "interval":
        return " to ".join(printed(end, "percent") for end in value)
    return format(value * _FACTORS.get(kind, 1), _FORMS[kind])


_FACTORS: dict[str, float] = {"percent": 100, "points": 100, "mega": 1e-6}
_FORMS = {
    **{"percent": ".1f", "points": "+.1f", "mega": ",.2f", "count": ",.0f", "loss": ".4f"},
    **{"number": ".4g", "seconds": ",.1f", "ms": ",.2f"},
}


def printed_table(table: Table) -> tuple[list[Column], list[list[str]]]:
    """Return the columns that have a value, and the printed rows."""
    kept = [
        (index, column)
        for index, column in enumerate(table.columns)
        if not table.rows or any(row[index] not in (None, "") for row in table.rows)
    ]
    rows = [[printed(row[index], column.kind) for index, column in kept] for row in table.rows]
    return [column for _, column in kept], rows


def tables_of(blocks: Sequence[Block]) -> list[Table]:
    """Return all tables, including those inside tabs."""
    inner = [each for block in blocks if isinstance(block, Tabs) for _, each in block.tabs]
    found = [block for block in blocks if isinstance(block, Table)]
    return found + [table for each in inner for table in tables_of(each)]


def to_csv(table: Table) -> str:
    """Return a table as CSV with raw values; None becomes an empty field.

    An estimate has three fields: its mean, its standard deviation and its number of values. An
    interval has two: its ends.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([c.key + end for c in table.columns for end in _FIELDS.get(c.kind, ("",))])
    for row in table.rows:
        pairs = zip(row, table.columns, strict=True)
        writer.writerow([each for value, column in pairs for each in _csv_fields(value, column)])
    return file.getvalue()


# The fields of the kinds of columns that have several, as ends of their names.
_FIELDS: dict[str, tuple[str, ...]] = {
    "estimate": ("", "_sd", "_seeds"),
    "interval": ("_low", "_high"),
}


def _csv_fields(value: Any, column: Column) -> Sequence[Any]:
    if column.kind not in _FIELDS:
        return [value]
    if value is None:
        return [None] * len(_FIELDS[column.kind])
    return [value.mean, value.sd, value.n] if column.kind == "estimate" else value
