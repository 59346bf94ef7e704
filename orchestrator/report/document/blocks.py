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

# An "estimate" is an `Estimate` of fractions.
Kind = Literal[
    "text", "count", "percent", "points", "estimate", "loss", "number", "mega", "seconds", "ms"
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
        unit |= {"percent": "%", "points": "points", "estimate": "%"}
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
    """A plotly figure as JSON. The page draws it when it is scrolled into view."""

    name: str
    title: str
    json: str
    height_px: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph, or a list if there are several lines."""

    lines: Sequence[str]
    is_warning: bool = False


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


Block = Table | Figure | Text | Matrix | Pictures | Tabs


@dataclass(frozen=True, slots=True)
class Section:
    """One heading and its blocks."""

    name: str  # its anchor in the page
    title: str
    blocks: tuple[Block, ...] = ()

    @classmethod
    def of(cls, name: str, title: str, *blocks: Block | str) -> Section:
        """Return a section; a string is a paragraph."""
        return cls(name, title, tuple(Text((b,)) if isinstance(b, str) else b for b in blocks))


NOT_EVALUATED = "No trial has been evaluated on the test split yet."


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
    if kind in ("percent", "points"):
        return f"{100 * value:{'.1f' if kind == 'percent' else '+.1f'}}"
    if kind == "estimate":
        spread = "" if value.sd is None else f"± {100 * value.sd:.1f}, "
        return f"{100 * value.mean:.1f} ({spread}n = {value.n})"
    if kind == "mega":
        return f"{value / 1e6:,.2f}"
    form = {"count": ",.0f", "loss": ".4f", "number": ".4g", "seconds": ",.1f", "ms": ",.2f"}
    return format(value, form[kind])


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

    An estimate has three fields: its mean, its standard deviation and its number of values.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    ends = {"estimate": ("", "_sd", "_seeds")}
    writer.writerow([c.key + end for c in table.columns for end in ends.get(c.kind, ("",))])
    for row in table.rows:
        pairs = zip(row, table.columns, strict=True)
        writer.writerow([each for value, column in pairs for each in _csv_fields(value, column)])
    return file.getvalue()


def _csv_fields(value: Any, column: Column) -> list[Any]:
    if column.kind == "estimate":
        return [value.mean, value.sd, value.n] if value else [None] * 3
    return [value]


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return texts and tables as Markdown; of figures and pictures only the titles."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += _markdown(block)
    return "\n".join(lines).rstrip() + "\n"


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Text):
        mark = "- " if len(block.lines) > 1 else ""
        return [*(mark + _escaped(line) for line in block.lines), ""]
    if isinstance(block, Tabs):
        return [line for _, inner in block.tabs for each in inner for line in _markdown(each)]
    note = [_escaped(block.note), ""] if block.note else []
    if isinstance(block, Table):
        columns, rows = printed_table(block)
        rule = ["---" if column.kind == "text" else "---:" for column in columns]
        head, rows = [c.heading for c in columns], [list(map(_escaped, row)) for row in rows]
    elif isinstance(block, Matrix):
        rows = [
            [name, *(_escaped(cell.replace("|", " ")) for cell, _ in row)]
            for name, row in zip(block.names, block.cells, strict=True)
        ]
        head, rule = ["", *block.names], ["---"] * (1 + len(block.names))
    else:
        return [f"_{block.title}: see report.html._", "", *note]
    lines = ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]
    return [f"### {block.title}", "", *note, *lines, ""]


def _escaped(value: str) -> str:
    return value.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
