"""What each further trial beside a first one takes of the host's memory.

Small CNN on the real images, ten steps each, one and then two trials at a time; the difference of
what all processes held at most, shared pages counted once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping

from benchmarks import whole_sweep
from benchmarks.harness import Benchmark, Measure, PeakMemory

BATCH_SIZE = 128


def ours(full: bool) -> Measure:
    return _further(whole_sweep.run_ours)


def torch_trainer(full: bool) -> Measure:
    """A TorchTrainer per trial under Ray Tune, as in `whole_sweep`."""
    return _further(whole_sweep.run_documented)


def _further(run: Callable[..., tuple[float, int]]) -> Measure:
    held = {}
    for trials in (1, 2):
        peak = PeakMemory(os.getpid())
        _, at_a_time = run(trials=trials, concurrent=trials, steps=10, batch_sizes=(BATCH_SIZE,))
        peak.stop()
        assert at_a_time == trials  # or it was not measured
        held[trials] = peak.gib
    return Measure(values=[held[2] - held[1]], facts={"first_gib": held[1]})


def _training_gib(probes: Mapping[str, float]) -> float:
    """Return what a process holds at most that trains the same steps, beside one that does too."""
    code = f"from benchmarks.whole_sweep import train; train({BATCH_SIZE})"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    peak = PeakMemory(both[0].pid)
    for process in both:
        assert process.wait() == 0
    peak.stop()
    return peak.gib


BENCHMARK = Benchmark(
    name="memory",
    title="memory per further concurrent trial",
    unit="trial",
    quantity="GiB",
    contenders={"ours": ours, "Ray Tune + TorchTrainer": torch_trainer},
    goals={"Ray Tune + TorchTrainer": 10},
    repetitions=1,
    limit=_training_gib,
)
