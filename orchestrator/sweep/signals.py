"""What the driver's process holds while it runs: the sweep's lock, the terminal, the signals."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


class Interruption:
    """How urgently the user wants out: an event for the first signal and one for the second."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.urgent = threading.Event()

    def on_signal(self, number: int, frame: object) -> None:
        """Take SIGINT, SIGTERM or SIGHUP; the third ends this process on the spot.

        Even that loses nothing: the ledger is durable. A local Ray ends with this process: left to
        themselves its agents would ask for up to a minute after a server that is gone.
        """
        if number == signal.SIGHUP:
            _leave_terminal()
        if self.urgent.is_set():
            for pid in _descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os._exit(130)
        (self.urgent if self.wanted.is_set() else self.wanted).set()


def _descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have; Linux only."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = children.get(pid, [])
    for one in found:  # grows meanwhile
        found.extend(children.get(one, []))
    return found


def take_term_as_interrupt() -> None:
    """Make SIGTERM end what is under way as Ctrl+C does: tidied up, with status 130."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


@contextlib.contextmanager
def signals_set(interruption: Interruption) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into an orderly end while the block runs."""
    before = handle_signals(interruption)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handle_signals(interruption: Interruption) -> dict[int, Any]:
    """Pass SIGINT, SIGTERM and SIGHUP on; return the old handlers."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
        numbers.append(signal.SIGHUP)
    return {number: signal.signal(number, interruption.on_signal) for number in numbers}


def _leave_terminal() -> None:
    """Send what goes to a terminal nowhere: it was closed, and writing to it is an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # the one that lists them
            if os.readlink(link).startswith(("/dev/pts/", "/dev/tty")):
                os.dup2(nowhere, int(link.name))
    os.close(nowhere)
