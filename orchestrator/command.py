"""Shared by all commands: error messages, exit statuses, the console, the end of the process."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console

COMPLETE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


class Output:
    """A text stream that goes quiet once it cannot be written, instead of raising.

    Its reader may have ended, as with `| head`, its disk be full or its terminal closed.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None  # the first one
        self.is_needed = True  # else the command succeeds without it

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, do: Callable[[], object]) -> None:
        try:
            do()
        except OSError as error:
            self.error = self.error or error
            # What is buffered, and what libraries write, goes nowhere from now on.
            with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def _quiet_output() -> Iterator[Output]:
    """Replace standard output by one that never raises, until the block ends."""
    # A descriptor that was closed would become that of the next file that is opened.
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)
    kept = sys.stdout
    output = Output(kept or open(1, "w", closefd=False))  # noqa: SIM115 - for the whole process
    sys.stdout = cast(TextIO, output)
    try:
        yield output
    finally:
        output.flush()
        sys.stdout = kept


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


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
    the exit status after an error other than a `UsageError`, whose status is 2. It is 1 if standard
    output could not be written and is the command's result; that its reader has ended is no error.
    """
    with _quiet_output() as output:
        status = _run(parser, action, argv, interrupted, failed)
        output.flush()
    if output.error is None or isinstance(output.error, BrokenPipeError):
        return status
    warn(f"Standard output cannot be written: {output.error}.")
    return status or (FAILED if output.is_needed else COMPLETE)


def _run(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
    interrupted: str,
    failed: int,
) -> int:
    arguments = parser.parse_args(argv)
    try:
        return action(arguments)
    except (OrchestratorError, OSError) as error:
        warn(redacted(traceback.format_exc().rstrip() if arguments.verbose else str(error)))
        if not (arguments.verbose or isinstance(error, OrchestratorError)):
            warn("Run the command with --verbose to see the traceback.")
        return WRONG_USAGE if isinstance(error, UsageError) else failed
    except UnicodeEncodeError as error:
        warn(redacted(traceback.format_exc().rstrip() if arguments.verbose else _not_text(error)))
        return WRONG_USAGE
    except (ImportError, MemoryError) as error:
        warn(redacted(traceback.format_exc().rstrip() if arguments.verbose else _no_room(error)))
        return failed
    except KeyboardInterrupt:
        warn(interrupted)
        return INTERRUPTED


def output_is_optional() -> None:
    """Let this command succeed if standard output cannot be written, as its results are files."""
    if isinstance(sys.stdout, Output):
        sys.stdout.is_needed = False


def _not_text(error: UnicodeEncodeError) -> str:
    """Return the sentence for a path or argument that a library cannot write in its encoding."""
    part = error.object[max(error.start - 60, 0) : error.end + 60]
    return (
        f"Paths and arguments must be text in the encoding {error.encoding}; {part!r} is not. Run "
        "the command in a UTF-8 locale, such as LC_ALL=C.UTF-8, and without `-X utf8=0`; if the "
        "name itself is not UTF-8, rename the file or folder."
    )


def _no_room(error: ImportError | MemoryError) -> str:
    """Return the sentence for too little memory; libraries then fail to load, too."""
    if isinstance(error, MemoryError):
        return (
            "There is too little memory for this command, or the limit of `ulimit -v` is too low."
        )
    return (
        f"A library cannot be loaded: {error}. Install the packages again if one is missing; "
        "otherwise there is too little memory, or a limit of `ulimit -a` is too low. Run the "
        "command with --verbose to see the traceback."
    )


def add_verbose(add: Callable[..., Any]) -> None:
    """Add `--verbose` with a parser's or group's `add_argument`."""
    add("--verbose", action="store_true", help="show the traceback of an error")


def console_on(file: TextIO) -> Console:
    """Return a console that writes to a file or terminal."""
    from rich.console import Console

    # Only a terminal has a width. Rich's default of 80 columns would fold the tables.
    # Brackets and colons in paths are not markup.
    width = None if file.isatty() else 140
    quiet = file if isinstance(file, Output) else cast(TextIO, Output(file))
    # Rich takes a file for a terminal where FORCE_COLOR is set, and would move the cursor in it.
    is_terminal = can_redraw(file)
    is_colored = not is_terminal and _is_color_forced()
    return Console(
        file=quiet,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,  # numbers in color would be hard to search for
        force_terminal=is_terminal,
        color_system="standard" if is_colored else "auto",
    )


def can_redraw(file: TextIO) -> bool:
    """Return whether a file is a terminal on which lines can be replaced."""
    if not file.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    return "0" not in (os.environ.get("TTY_COMPATIBLE"), os.environ.get("TTY_INTERACTIVE"))


def _is_color_forced() -> bool:
    """Return whether the user asks for colors in files and pipes."""
    forced = (os.environ.get("FORCE_COLOR"), os.environ.get("CLICOLOR_FORCE"))
    return not os.environ.get("NO_COLOR") and any(value not in (None, "", "0") for value in forced)


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
    _finish_despite_signals()
    sys.exit(ended_with)


def _finish_despite_signals() -> None:
    """Let what is registered with `atexit` finish; a second signal ends this process at once."""

    def wait(number: int, frame: object) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # SIGHUP is ignored under `nohup`.
    handled = [each for each in numbers if signal.getsignal(each) != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, wait)


def sweep_command(*words: str) -> str:
    """Return the text of a command of `orchestrator.sweep`, for a shell, without its secrets."""
    return redacted(shlex.join(["python", "-m", "orchestrator.sweep", *words]))


def program(name: str) -> str:
    """Return how a user runs a program of this environment, as typed in the current folder.

    The environment need not be activated: `make` uses its programs by their path.
    """
    own = Path(sys.executable).absolute().with_name(name)
    found = shutil.which(name)
    if not own.exists() or (found is not None and Path(found).absolute() == own):
        return name
    with contextlib.suppress(OSError):  # the current folder was deleted
        if own.is_relative_to(Path.cwd()):
            own = own.relative_to(Path.cwd())
    return shlex.quote(str(own))


def say(text: str) -> None:
    """Print a line to standard output at once."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Print a line to standard error at once, if that can be written."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
