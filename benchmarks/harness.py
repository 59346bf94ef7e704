"""Runs a benchmark's contenders in turn, A B A B, each in its own process, and keeps the result.

A contender is a function `(full: bool) -> Measure` of a benchmark's module. The first one is ours.
What is compared is the median time (or memory) that one unit of work takes (a trial, an image, a
metric), as the ratio theirs / ours of the same repetition: above 1, ours takes less.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainables import limits

RESULTS = Path(__file__).parent / "results.jsonl"
LIMIT_S = 900  # of one contender, once


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """What one contender measured once.

    `values` are of one unit of work each, or per unit; their median counts. `facts` are figures
    that stand beside the ratio: sizes, accuracies, longest waits.
    """

    values: list[float]
    facts: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One row of the table.

    Attributes:
        name: of the module.
        title: what is compared.
        unit: what one measured value is of.
        quantity: what is measured, "s" or "GiB".
        contenders: by name; the first is ours.
        goals: by opponent, the ratio to reach without a GPU.
        repetitions: how often it is measured, unless the command says; 1 where that takes long.
        goals_cuda: the same with one H200-class GPU.
        at_most: what ours should take per unit, None: nothing is said of it.
        limit: from the probes or one of its own, the least that a unit can take on this machine;
            None: no such limit is known.
        limit_is_of_full: whether it is also one with `--full`.
    """

    name: str
    title: str
    unit: str
    contenders: Mapping[str, Callable[[bool], Measure]]
    goals: Mapping[str, float]
    repetitions: int = 3
    goals_cuda: Mapping[str, float] = field(default_factory=dict)
    quantity: str = "s"
    at_most: float | None = None
    limit: Callable[[Mapping[str, float]], float] | None = None
    limit_is_of_full: bool = True


def run(benchmark: Benchmark, *, full: bool, repetitions: int, say: Callable[[str], None]) -> None:
    """Measure all contenders in turn, print the ratios and append one line to the results."""
    speeds = probes()
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in benchmark.contenders}
    for repetition in range(repetitions):
        for name in benchmark.contenders:
            began_s = time.perf_counter()
            one = _in_own_process(benchmark.name, name, full)
            measured[name].append(one)
            value = amount(one["median"], benchmark.quantity)
            say(
                f"  {repetition + 1}/{repetitions} {name}: {value} per {benchmark.unit}, "
                f"{one['peak_gib']:.2f} GiB ({time.perf_counter() - began_s:.0f} s)"
            )
    ours = next(iter(benchmark.contenders))
    ours_value = statistics.median(one["median"] for one in measured[ours])
    line = {
        "benchmark": benchmark.name,
        "when": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "full": full,
        "repetitions": repetitions,
        "machine": machine(),
        "probes": speeds,
        "unit": benchmark.unit,
        "quantity": benchmark.quantity,
        "ours": ours_value,
        "of_limit": None,
        "ratios": {
            name: _ratios(measured[name], measured[ours])
            for name in benchmark.contenders
            if name != ours
        },
        "measured": measured,
    }
    if benchmark.limit and (benchmark.limit_is_of_full or not full):
        line["of_limit"] = benchmark.limit(speeds) / ours_value
    for name, ratio in line["ratios"].items():
        goal = benchmark.goals.get(name)
        say(
            f"  {ratio['median']:.3g}x against {name} ({ratio['least']:.3g} to "
            f"{ratio['most']:.3g}){f'; goal {goal:g}x' if goal else ''}"
        )
    if line["of_limit"] is not None:
        say(f"  {line['of_limit']:.0%} of what the machine's probes allow")
    with RESULTS.open("a") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def _ratios(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, float]:
    ratios = [t["median"] / o["median"] for t, o in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def _in_own_process(benchmark: str, contender: str, full: bool) -> dict[str, Any]:
    """Measure one contender once, with the memory that it and all its children held at most."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out = Path(folder) / "measure.json"
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks", "--one", benchmark, contender, str(out)]
        # Nothing of an installation's own settings changes what is compared.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        env |= {"RAY_ADDRESS": "local", "BENCHMARK_FOLDER": folder}
        with log.open("w") as file:
            process = subprocess.Popen(
                command + ["--full"] * full,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=env,
            )
            peak = PeakMemory(process.pid)
            try:
                process.wait(LIMIT_S)
            except subprocess.TimeoutExpired as error:
                raise SystemExit(
                    f"{benchmark}, {contender}: it took more than {LIMIT_S} s and was ended."
                ) from error
            finally:
                peak.stop()
                for pid in _started_with(f"BENCHMARK_FOLDER={folder}"):  # what is left running
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        if process.returncode or not out.exists():
            raise SystemExit(
                f"{benchmark}, {contender}: it ended with {process.returncode}.\n"
                f"{log.read_text()[-4000:]}"
            )
        measure = json.loads(out.read_text())
    values = measure["values"]
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "units": len(values),
        "peak_gib": peak.gib,
        "facts": measure["facts"],
    }


def _started_with(variable: str) -> list[int]:
    """Return the processes that inherited a variable of the environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def measure_one(benchmark: str, contender: str, out: Path, full: bool) -> None:
    """Measure one contender in this process and write what it says."""
    module = importlib.import_module(f"benchmarks.{benchmark}")
    measure = module.BENCHMARK.contenders[contender](full)
    out.write_text(json.dumps(asdict(measure)))


class PeakMemory:
    """Watches the memory of a process and all its children, shared pages counted once.

    `gib` is the most that their proportional set sizes added up to, looked at every half second.
    """

    def __init__(self, pid: int) -> None:
        self.pid, self.gib = pid, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            pids = {self.pid, *children(self.pid)}
            self.gib = max(self.gib, sum(map(pss_gib, pids)))

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()
        self._thread.join()


def children(pid: int) -> set[int]:
    """Return all living descendants of a process."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            continue
    found: set[int] = set()
    layer = {pid}
    while layer:
        layer = {child for child, parent in parents.items() if parent in layer} - found
        found |= layer
    return found


def pss_gib(pid: int) -> float:
    """Return a process's proportional set size: its own pages and its share of shared ones."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s*(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) / 2**20 if found else 0.0


def probes() -> dict[str, float]:
    """Measure what the machine can do: copying memory and multiplying matrices, on all cores.

    Returns:
        `copy_gb_s`, bytes read plus bytes written; `matmul_gflop_s` in float32; with a CUDA device
        `cuda_copy_gb_s` and `cuda_matmul_gflop_s`, the latter in bfloat16.
    """
    import torch

    torch.set_num_threads(limits.num_cpus())
    found = _probe(torch.device("cpu"), torch.float32, side=1536, words=2**26)
    if torch.cuda.is_available():
        on_cuda = _probe(torch.device("cuda"), torch.bfloat16, side=8192, words=2**29)
        found |= {f"cuda_{name}": value for name, value in on_cuda.items()}
    return found


def _probe(device: Any, dtype: Any, *, side: int, words: int) -> dict[str, float]:
    import torch

    source = torch.ones(words, device=device)
    target = torch.empty_like(source)
    copy_s = best_time(lambda: target.copy_(source), device)
    a = torch.randn(side, side, device=device, dtype=dtype)
    matmul_s = best_time(lambda: a @ a, device)
    return {
        "copy_gb_s": 2 * source.nbytes / copy_s / 1e9,
        "matmul_gflop_s": 2 * side**3 / matmul_s / 1e9,
    }


def best_time(work: Callable[[], object], device: Any, times: int = 7) -> float:
    """Return the least of several times of some work, in seconds; for probes of a machine."""
    import torch

    def once() -> float:
        began_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began_s

    once()
    return min(once() for _ in range(times))


def machine() -> dict[str, Any]:
    """Describe this machine: processor, cores, memory, GPU, versions."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions: dict[str, str | None] = {}
    for name in ("torch", "ray", "mlflow", "optuna", "timm"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # the rows of plain training do without
            versions[name] = None
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model.group(1) if model else platform.processor(),
        "cores": limits.num_cpus(),
        "memory_gib": round(limits.memory_bytes() / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **versions,
    }


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def amount(value: float, quantity: str) -> str:
    """Return a value with a unit that suits its size."""
    if quantity != "s":
        return f"{value:.3g} {quantity}"
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def scratch() -> Path:
    """Return the folder of the contender that runs in this process; it is deleted afterwards."""
    return Path(os.environ["BENCHMARK_FOLDER"])
