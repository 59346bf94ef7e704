"""How many CPUs and how much memory a process may use, from recorded files and a real cgroup."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from trainables import limits

MACHINE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 2**20
V2 = "30 23 0:26 {root} {point} rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw"
V1 = "32 31 0:29 {root} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "35 31 0:32 {root} {point} rw,relatime - cgroup cgroup rw,memory"


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def recorded(
    tmp_path: Path, groups: str, mounts: str, files: Mapping[str, str], root: str = "/"
) -> Path:
    """Return a folder like /proc of a process whose cgroups are below `tmp_path`/cgroup."""
    point = tmp_path / "cgroup"
    for name, text in files.items():
        (point / name).parent.mkdir(parents=True, exist_ok=True)
        (point / name).write_text(text)
    own = tmp_path / "self"
    own.mkdir()
    (own / "cgroup").write_text(groups)
    (own / "mountinfo").write_text(mounts.format(root=root, point=point))
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),  # half a CPU still runs one trial
        ("250000 100000\n", 2),
        ("1600000 100000\n", 8),
        ("max 100000\n", 8),
    ],
)
def test_a_quota_of_cgroup_v2_limits_the_cpus(quota: str, cpus: int, tmp_path: Path) -> None:
    proc = recorded(tmp_path, "0::/job\n", V2, {"job/cpu.max": quota})
    assert limits.num_cpus(proc) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("100000", 1), ("300000", 3), ("-1", 8)])
def test_a_quota_of_cgroup_v1_limits_the_cpus(quota: str, cpus: int, tmp_path: Path) -> None:
    files = {"job/cpu.cfs_quota_us": quota, "job/cpu.cfs_period_us": "100000"}
    groups = "5:memory:/other\n4:cpu,cpuacct:/job\n0::/\n"
    assert limits.num_cpus(recorded(tmp_path, groups, V1, files)) == cpus


def test_the_least_quota_of_a_cgroup_and_those_above_it_applies(tmp_path: Path) -> None:
    """As in a Slurm step, where the quota is the job's."""
    files = {
        "cpu.max": "700000 100000",
        "slurm/job_1/cpu.max": "300000 100000",
        "slurm/job_1/step_0/cpu.max": "max 100000",
    }
    proc = recorded(tmp_path, "0::/slurm/job_1/step_0\n", V2, files)
    assert limits.num_cpus(proc) == 3


@pytest.mark.parametrize("path", ["/docker/abc", "/", "/../../kubepods/abc", "/elsewhere"])
def test_in_a_container_the_mounted_cgroup_is_its_own(path: str, tmp_path: Path) -> None:
    files = {"cpu.max": "200000 100000", "memory.max": str(64 * MIB)}
    proc = recorded(tmp_path, f"0::{path}\n", V2, files, root="/docker/abc")
    assert (limits.num_cpus(proc), limits.memory_bytes(proc)) == (2, 64 * MIB)


def test_affinity_and_the_quota_both_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = recorded(tmp_path, "0::/job\n", V2, {"job/cpu.max": "400000 100000"})
    assert limits.num_cpus(proc) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert limits.num_cpus(proc) == 2


@pytest.mark.parametrize(
    ("mounts", "groups", "name"),
    [(V2, "0::/job\n", "memory.max"), (V1_MEMORY, "4:memory:/job\n", "memory.limit_in_bytes")],
)
def test_the_least_memory_limit_applies(
    mounts: str, groups: str, name: str, tmp_path: Path
) -> None:
    files = {name: str(96 * MIB), f"job/{name}": str(128 * MIB)}
    assert limits.memory_bytes(recorded(tmp_path, groups, mounts, files)) == 96 * MIB


@pytest.mark.parametrize("unlimited", ["max\n", "9223372036854771712\n"])
def test_without_a_memory_limit_the_machines_memory_counts(unlimited: str, tmp_path: Path) -> None:
    files = {"job/memory.max": unlimited}
    assert limits.memory_bytes(recorded(tmp_path, "0::/job\n", V2, files)) == MACHINE_BYTES


def test_a_system_without_cgroups_has_no_limits(tmp_path: Path) -> None:
    assert (limits.num_cpus(tmp_path), limits.memory_bytes(tmp_path)) == (8, MACHINE_BYTES)


@pytest.fixture
def cgroup_v1(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A real cgroup with the controller that the test names."""
    folder = Path("/sys/fs/cgroup", request.param, f"test-{uuid.uuid4().hex[:8]}")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be created here: {error}")
    yield folder
    folder.rmdir()


def ask(folder: Path, expression: str) -> str:
    """Return an expression's value in a new process in a cgroup."""
    code = (
        "import sys; open(sys.argv[1], 'w').write('0'); "
        f"from trainables import limits; print({expression})"
    )
    command = [sys.executable, "-c", code, str(folder / "cgroup.procs")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("cgroup_v1", ["cpu"], indirect=True)
def test_a_process_in_a_cgroup_with_a_quota_of_one_cpu_has_one(cgroup_v1: Path) -> None:
    period = int((cgroup_v1 / "cpu.cfs_period_us").read_text())
    (cgroup_v1 / "cpu.cfs_quota_us").write_text(str(period))
    assert ask(cgroup_v1, "limits.num_cpus()") == "1"


@pytest.mark.parametrize("cgroup_v1", ["memory"], indirect=True)
def test_a_process_in_a_cgroup_with_a_memory_limit_has_that_memory(cgroup_v1: Path) -> None:
    (cgroup_v1 / "memory.limit_in_bytes").write_text(str(512 * MIB))
    assert ask(cgroup_v1, "limits.memory_bytes()") == str(512 * MIB)


def test_no_other_module_asks_the_system_for_its_cpus_or_memory() -> None:
    root = Path(__file__).parents[2]
    names = ("cpu_count", "sched_getaffinity", "SC_PHYS_PAGES", "SC_NPROCESSORS", "psutil")
    folders = ("orchestrator", "trainables", "search_spaces", "benchmarks")
    files = [file for folder in folders for file in (root / folder).rglob("*.py")]
    asking = {f.name for f in files if any(name in f.read_text() for name in names)}
    assert asking == {"limits.py"}
