"""Progress of one long step on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

PLAIN_LINE_EVERY_S = 5.0


@contextmanager
def progress(
    what: str, *, total: int | None, unit: Literal["bytes", "images"], shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show the progress of a step; yield the function to call with the amount done so far.

    Args:
        what: the step, such as "Decoding train".
        total: the amount at the end, or None if it is unknown.
        unit: of the amounts.
        shown: False prints nothing.
    """
    if not shown:
        yield lambda done: None
    elif sys.stderr.isatty():
        yield from _bar(what, total, unit)
    else:
        yield from _lines(what, total, unit)


def _bar(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from rich import progress as rich
    from rich.console import Console

    amount: list[rich.ProgressColumn] = (
        [rich.DownloadColumn(binary_units=True), rich.TransferSpeedColumn()]
        if unit == "bytes"
        else [rich.MofNCompleteColumn()]
    )
    columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), *amount]
    with rich.Progress(
        *columns, rich.TimeRemainingColumn(), console=Console(stderr=True)
    ) as display:
        task = display.add_task(what, total=total)
        yield lambda done: display.update(task, completed=done)


def _lines(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    started_s = last_s = time.monotonic()
    reached = first = 0

    def update(done: int) -> None:
        nonlocal last_s, reached
        reached = done
        now_s = time.monotonic()
        if now_s - last_s >= PLAIN_LINE_EVERY_S:
            last_s = now_s
            show(now_s)

    def show(now_s: float) -> None:
        of = f" of {_amount(total, unit)}" if total else ""
        rate = (reached - first) / max(now_s - started_s, 1e-3)
        line = f"{what}: {_amount(reached, unit)}{of}, {_amount(round(rate), unit)}/s"
        print(line, file=sys.stderr, flush=True)

    yield update
    show(time.monotonic())


def _amount(number: int, unit: str) -> str:
    return f"{number / 2**20:.1f} MiB" if unit == "bytes" else f"{number:,} images"
