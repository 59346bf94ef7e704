"""Turns SIGINT, SIGTERM and SIGHUP into an orderly end of the sweep within a limited time."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from orchestrator import processes
from orchestrator.clock import Clock

# Longest wait for the background threads at the end of a sweep; an interrupted sweep must end
# within half a minute.
_LIMIT_S, _INTERRUPTED_LIMIT_S = 300.0, 15.0


class Interruption:
    """The user's signals: `wanted` is set by the first one, `urgent` by the second.

    `ray_lost` is set when the Ray cluster has ended: Ray's library will end this process soon.
    """

    def __init__(self) -> None:
        self.wanted, self.urgent = threading.Event(), threading.Event()
        self.ray_lost = threading.Event()
        self.last_line = ""  # printed to `output` by the third signal
        self.output: IO[str] = sys.stdout

    @property
    def must_hurry(self) -> bool:
        """Whether the command has half a minute left."""
        return self.wanted.is_set() or self.ray_lost.is_set()

    def on_signal(self, number: int, frame: object) -> None:
        """Handle SIGINT, SIGTERM or SIGHUP; the third one prints a line and ends this process.

        Even that loses nothing, because the ledger is durable. A local Ray is killed as well:
        otherwise its agents look for a server that has ended for up to a minute.
        """
        if number == signal.SIGHUP:
            _leave_terminal()
        if self.urgent.is_set():
            processes.kill(processes.descendants())
            with contextlib.suppress(OSError):  # a print would wait for locks of this thread
                os.write(self.output.fileno(), self.last_line.encode(errors="backslashreplace"))
            os._exit(130)
        (self.urgent if self.wanted.is_set() else self.wanted).set()


class EndLimit:
    """How long the end of a sweep waits for background threads."""

    def __init__(self, interruption: Interruption, clock: Clock) -> None:
        self._interruption, self._clock = interruption, clock
        self._began_s = clock.monotonic_s()
        self._interrupted_s: float | None = None

    def is_over(self) -> bool:
        """Return whether the wait has lasted long enough; call it often."""
        now_s = self._clock.monotonic_s()
        if self._interruption.must_hurry and self._interrupted_s is None:
            self._interrupted_s = now_s
        return (
            self._interruption.urgent.is_set()
            or now_s - self._began_s > _LIMIT_S
            or now_s - (self._interrupted_s or now_s) > _INTERRUPTED_LIMIT_S
        )

    def wait_for(
        self, thread: threading.Thread, while_waiting: Callable[[], None] = lambda: None
    ) -> None:
        """Wait for a thread's end, up to the limit, and call a function several times a second."""
        while thread.is_alive() and not self.is_over():
            thread.join(0.2)
            while_waiting()


def take_term_as_interrupt() -> None:
    """Make SIGTERM end the command as Ctrl+C does: cleaned up, with status 130."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


@contextlib.contextmanager
def signals_set(interruption: Interruption) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP while the block runs."""
    before = handle_signals(interruption)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handle_signals(interruption: Interruption) -> dict[int, Any]:
    """Pass SIGINT, SIGTERM and SIGHUP to an interruption; return the old handlers."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under `nohup`
        numbers.append(signal.SIGHUP)
    return {number: signal.signal(number, interruption.on_signal) for number in numbers}


def _leave_terminal() -> None:
    """Redirect output to the terminal to /dev/null: it was closed, and writing to it fails."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # the descriptor of this listing
            if os.readlink(link).startswith(("/dev/pts/", "/dev/tty")):
                os.dup2(nowhere, int(link.name))
    os.close(nowhere)
