"""The processes that this one started, and a copy of it that acts if it ends suddenly."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path


def descendants() -> list[int]:
    """Return the children of this process, then their children, and so on; Linux only."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = children.get(os.getpid(), [])
    for one in found:  # the list grows while it is read
        found.extend(children.get(one, []))
    return found


def kill(pids: list[int]) -> None:
    """Kill processes, of which some may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def on_sudden_end(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` in a copy of this process if this process ends during the block.

    Ray's library ends the process in which it cannot start, for example with too little address
    space, without an exception or a message. The action must not need other threads or their locks.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of threads' locks
        copy = os.fork()
    if copy == 0:
        os.close(writer)
        try:
            if not os.read(reader, 1):  # this process ended, and with it the other end of the pipe
                action()
        finally:
            os._exit(0)
    os.close(reader)
    try:
        yield
    finally:
        os.write(writer, b"0")
        os.close(writer)
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
            os.waitpid(copy, 0)
