"""Redirects library output to the driver's log while a sweep runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from orchestrator.command import console_on


@contextlib.contextmanager
def redirected_output(log_path: Path | None) -> Iterator[Console]:
    """Yield a console on the user's terminal, while all other output goes to the log file.

    Without a log file all output stays on the terminal.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    if log_path is None:
        yield console_on(out)
        return
    log_path.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(1), os.dup(2)
    with log_path.open("a") as log:
        sys.stdout.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield console_on(out)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # the log's disk is full
                    stream.flush()
            for number, saved in enumerate(kept, start=1):
                os.dup2(saved, number)
                os.close(saved)
