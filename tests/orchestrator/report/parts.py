"""Reads tables, figures and texts from a section of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.ledger.ledger import open_ledger
from orchestrator.report.document.blocks import Block, Figure, Section, Table, Tabs, Text
from orchestrator.report.facts import SweepData, read_sweep


def read(path: Path) -> SweepData:
    ledger = open_ledger(path, read_only=True)
    try:
        return read_sweep(ledger)
    finally:
        ledger.close()


def blocks_of(section: Section) -> list[Block]:
    found: list[Block] = []
    for block in section.blocks:
        inner = block.tabs if isinstance(block, Tabs) else ()
        found += [each for _, own in inner for each in own] if inner else [block]
    return found


def table(section: Section, name: str) -> list[dict[str, Any]]:
    [found] = [b for b in blocks_of(section) if isinstance(b, Table) and b.name == name]
    keys = [column.key for column in found.columns]
    return [dict(zip(keys, row, strict=True)) for row in found.rows]


def figure(section: Section, name: str) -> dict[str, Any]:
    [found] = [b for b in blocks_of(section) if isinstance(b, Figure) and b.name == name]
    content: dict[str, Any] = json.loads(found.json)
    return content


def words(section: Section) -> str:
    return "\n".join(line for b in blocks_of(section) if isinstance(b, Text) for line in b.lines)
