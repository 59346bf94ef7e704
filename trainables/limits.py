"""The CPUs and the memory that this process may use, which can be less than the machine has.

Affinity (`taskset`, Slurm) and the quotas of cgroups (containers, Slurm, systemd) limit them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def num_cpus(proc: Path = _PROC) -> int:
    """Return the number of CPUs: the least of cores, affinity and quotas, rounded down, at least 1.

    Half a CPU left over would slow every trial down if one more were started for it.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(int(min([cores, *_quotas(proc)])), 1)


def memory_bytes(proc: Path = _PROC) -> int:
    """Return the memory: the machine's, or the least limit of this process's cgroups."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, name in _folders("memory", proc):
        file = "memory.max" if name == "cgroup2" else "memory.limit_in_bytes"
        limits += _numbers(folder / file)
    return min(limits)


def _quotas(proc: Path) -> Iterator[float]:
    """Yield the limits on this process's CPU time, in CPUs."""
    for folder, name in _folders("cpu", proc):
        if name == "cgroup2":
            found = _numbers(folder / "cpu.max")  # "50000 100000", or "max 100000" without a limit
        else:
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            found = [number for file in files for number in _numbers(folder / file)]
        if len(found) == 2 and min(found) > 0:
            yield found[0] / found[1]


def _folders(controller: str, proc: Path) -> Iterator[tuple[Path, str]]:
    """Yield this process's cgroups with a controller, up to the root, and each one's file system.

    That is "cgroup" or "cgroup2"; a machine may have both. A limit of any of them applies.
    """
    try:
        groups = (proc / "self/cgroup").read_text().splitlines()
        mounts = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:  # not on Linux
        return
    own = {kind: path for _, kind, path in (line.split(":", 2) for line in groups)}
    for line in mounts:
        left, _, right = line.partition(" - ")
        name, _, options = right.split(maxsplit=2)
        is_v1 = name == "cgroup" and controller in options.split(",")
        if not (is_v1 or name == "cgroup2"):
            continue
        kinds = [kind for kind in own if controller in kind.split(",")] if is_v1 else [""]
        root, point = (Path(_unescaped(field)) for field in left.split()[3:5])
        path = Path(own.get(next(iter(kinds), ""), "/"))
        # In a container the path can be one that only the host sees.
        inside = path.relative_to(root) if path.is_relative_to(root) else Path()
        for folder in (point / inside, *(point / inside).parents):
            if folder.is_relative_to(point):
                yield folder, name


def _numbers(file: Path) -> list[int]:
    """Return the numbers in a cgroup's file; none where the file does not exist."""
    with contextlib.suppress(OSError):
        return [int(word) for word in re.findall(r"-?\d+", file.read_text())]
    return []


def _unescaped(text: str) -> str:
    """Return a path of mountinfo, which writes blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
