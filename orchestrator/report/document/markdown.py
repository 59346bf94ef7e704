"""A report as Markdown: its texts, cards and tables, and the titles of figures and pictures."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from orchestrator.report.document.blocks import (
    Block,
    Cards,
    Figure,
    Matrix,
    Pictures,
    Section,
    Table,
    Tabs,
    Text,
    printed_table,
)


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return a whole report as Markdown."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += _lines(block)
    return "\n".join(lines).rstrip() + "\n"


@functools.singledispatch
def _lines(block: Block) -> list[str]:
    raise TypeError(block)


@_lines.register
def _text(block: Text) -> list[str]:
    if block.is_of_page:
        return []
    mark = "- " if len(block.lines) > 1 else ""
    return [*(mark + _escaped(line) for line in block.lines), ""]


@_lines.register
def _cards(block: Cards) -> list[str]:
    found = (
        f"- **{card.title}: {_escaped(card.value)}** {_escaped('; '.join(card.lines))}".rstrip()
        for card in block.cards
    )
    return [*([f"### {block.title}", ""] if block.title else []), *found, ""]


@_lines.register
def _tabs(block: Tabs) -> list[str]:
    return [line for _, inner in block.tabs for each in inner for line in _lines(each)]


@_lines.register
def _table(block: Table) -> list[str]:
    columns, rows = printed_table(block)
    rule = ["---" if column.kind == "text" else "---:" for column in columns]
    cells = (map(_escaped, row) for row in rows)
    return _titled(block, _grid([[column.heading for column in columns], rule, *cells]))


@_lines.register
def _matrix(block: Matrix) -> list[str]:
    rows = (
        [name, *(_escaped(cell.replace("|", " ")) for cell, _ in row)]
        for name, row in zip(block.names, block.cells, strict=True)
    )
    return _titled(block, _grid([["", *block.names], ["---"] * (1 + len(block.names)), *rows]))


@_lines.register
def _drawn(block: Figure | Pictures) -> list[str]:
    note = [_escaped(block.note), ""] if block.note else []
    return [f"_{block.title}: see report.html._", "", *note]


def _titled(block: Table | Matrix, lines: Sequence[str]) -> list[str]:
    note = [_escaped(block.note), ""] if block.note else []
    return [f"### {block.title}", "", *note, *lines, ""]


def _grid(rows: Iterable[Iterable[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in rows]


def _escaped(value: str) -> str:
    return value.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
