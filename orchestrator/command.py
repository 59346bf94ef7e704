"""Exit statuses, the console, and how a command ends."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from rich.console import Console

COMPLETE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def console_on(file: TextIO) -> Console:
    """Return a console that writes to a file or terminal."""
    from rich.console import Console

    # Without a terminal nobody knows a width; rich's 80 columns would fold the tables.
    return Console(file=file, width=None if file.isatty() else 140)


def exit_fast(main: Callable[[], int]) -> NoReturn:
    """Run a command and end this process with the status it returns.

    As `sys.exit(main())`, without taking apart what was imported, which is two seconds of work
    where that is torch, Ray and MLflow. What is registered with `atexit` runs.
    """
    ended_with = None

    def end() -> None:
        if ended_with is None:  # an exception ends it, and Python says which
            return
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:  # a full disk; Python says so, with a status of its own
                return
        os._exit(ended_with)

    atexit.register(end)  # the first to be registered is the last to run
    ended_with = main()
    sys.exit(ended_with)


def say(text: str) -> None:
    """Print a line to standard output at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Print a line to standard error at once."""
    print(text, file=sys.stderr, flush=True)
