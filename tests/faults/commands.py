"""Runs `python -m orchestrator.data` in a process of its own, and measures it."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    said: str  # on standard output and standard error
    cpu_s: float  # of processor time: others that run meanwhile say nothing of the command
    peak_mib: float  # of memory


def data_command(cwd: Path, *arguments: object) -> Ended:
    """Run it to the end."""
    before_s = _children_s()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.data", *map(str, arguments)],
            cwd=cwd,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        peak_mib = 0.0
        while process.poll() is None:
            peak_mib = max(peak_mib, _peak_mib(process.pid))
            time.sleep(0.01)
        said.seek(0)
        return Ended(process.returncode, said.read(), _children_s() - before_s, peak_mib)


def _children_s() -> float:
    """Return the processor seconds of all children of this process that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _peak_mib(pid: int) -> float:
    """Return the most memory a process has held; a child's `ru_maxrss` has its parent's in it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found.group(1)) / 2**10 if found else 0.0


def tree(folder: Path) -> set[str]:
    """Return the names of everything below a folder but the locks, which stay on purpose."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.name.endswith(".lock")
    }
