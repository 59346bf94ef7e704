"""Shows the progress of a long step on standard error: a bar on a terminal, otherwise lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from orchestrator.command import can_redraw, console_on, warn

PLAIN_LINE_EVERY_S = 5.0


@contextmanager
def progress(
    what: str,
    *,
    total: int | None,
    unit: Literal["bytes", "images"],
    start: int = 0,
    shown: bool = True,
) -> Iterator[Callable[[int], None]]:
    """Show the progress of a step; yield the function to call with the amount done so far.

    `what` is the step, such as "Decoding train"; `total` is the amount at its end, or None if that
    is unknown; `start` is the amount done before, which does not count in the rate. Nothing is
    printed if `shown` is False.
    """
    if not shown:
        yield lambda done: None
    elif can_redraw(sys.stderr):
        yield from _bar(what, total, unit, start)
    else:
        yield from _lines(what, total, unit, start)


def _bar(what: str, total: int | None, unit: str, start: int) -> Iterator[Callable[[int], None]]:
    from rich import progress as rich

    columns = [rich.TextColumn("{task.description}"), rich.BarColumn()]
    if unit == "bytes":
        columns += [rich.DownloadColumn(binary_units=True), rich.TransferSpeedColumn()]
    else:
        columns.append(rich.MofNCompleteColumn())
    columns.append(rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=console_on(sys.stderr)) as display:
        task = display.add_task(what, total=total, completed=start)
        yield lambda done: display.update(task, completed=done)


def _lines(what: str, total: int | None, unit: str, start: int) -> Iterator[Callable[[int], None]]:
    started_s = last_s = time.monotonic()
    reached = start

    def show() -> None:
        done = _amount(reached, unit)
        if total:  # "5 of 9 images", "1.0 MiB of 2.0 MiB"
            done = f"{done.removesuffix(' images')} of {_amount(total, unit)}"
        rate = (reached - start) / max(time.monotonic() - started_s, 1e-3)
        warn(f"{what}: {done}, {_amount(round(rate), unit)}/s")

    def update(done: int) -> None:
        nonlocal last_s, reached
        reached = done
        if time.monotonic() - last_s >= PLAIN_LINE_EVERY_S:
            last_s = time.monotonic()
            show()

    yield update
    show()


def _amount(number: int, unit: str) -> str:
    return f"{number / 2**20:.1f} MiB" if unit == "bytes" else f"{number:,} images"
