"""Shared by all commands: error messages, exit statuses, the console, the end of the process."""

from __future__ import annotations

import argparse
import atexit
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console

COMPLETE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def run(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
    *,
    interrupted: str = "Interrupted.",
    failed: int = WRONG_USAGE,
) -> int:
    """Parse the arguments, run the command and return its exit status.

    An error that this project raises on purpose, or one of the system's, is printed to standard
    error without secrets, and without its traceback unless `--verbose` is given.
    The parser has the argument of `add_verbose`. `interrupted` is printed after Ctrl+C. `failed` is
    the exit status after an error other than a `UsageError`, whose status is 2.
    """
    arguments = parser.parse_args(argv)
    try:
        return action(arguments)
    except (OrchestratorError, OSError) as error:
        warn(redacted(traceback.format_exc().rstrip() if arguments.verbose else str(error)))
        if not (arguments.verbose or isinstance(error, OrchestratorError)):
            warn("Run the command with --verbose to see the traceback.")
        return WRONG_USAGE if isinstance(error, UsageError) else failed
    except KeyboardInterrupt:
        warn(interrupted)
        return INTERRUPTED


def add_verbose(add: Callable[..., Any]) -> None:
    """Add `--verbose` with a parser's or group's `add_argument`."""
    add("--verbose", action="store_true", help="show the traceback of an error")


def console_on(file: TextIO) -> Console:
    """Return a console that writes to a file or terminal."""
    from rich.console import Console

    # Only a terminal has a width. Rich's default of 80 columns would fold the tables.
    # Brackets and colons in paths are not markup.
    width = None if file.isatty() else 140
    return Console(file=file, width=width, markup=False, emoji=False)


def exit_fast(main: Callable[[], int]) -> NoReturn:
    """Run a command and end this process with the status it returns.

    Unlike `sys.exit(main())` it does not tear down the imported libraries, which takes two seconds
    for torch, Ray and MLflow. Functions registered with `atexit` run.
    """
    ended_with = None

    def end() -> None:
        if ended_with is None:  # an exception ends the process, and Python reports it
            return
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:  # a full disk: Python reports it, with an exit status of its own
                return
        os._exit(ended_with)

    atexit.register(end)  # the first to be registered is the last to run
    ended_with = main()
    sys.exit(ended_with)


def sweep_command(*words: str) -> str:
    """Return the text of a command of `orchestrator.sweep`, for a shell, without its secrets."""
    return redacted(shlex.join(["python", "-m", "orchestrator.sweep", *words]))


def say(text: str) -> None:
    """Print a line to standard output at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Print a line to standard error at once."""
    print(text, file=sys.stderr, flush=True)
