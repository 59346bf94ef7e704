"""What each further trial beside a first one takes of the host's memory.

Small CNN on the real images, ten steps each, one and then three trials at a time; half of the
difference of what all processes held at most, shared pages counted once.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from benchmarks import whole_sweep
from benchmarks.harness import Benchmark, Measure, PeakMemory

FURTHER = 2


def ours(full: bool) -> Measure:
    return _further(whole_sweep.run_ours)


def torch_trainer(full: bool) -> Measure:
    """A TorchTrainer per trial under Ray Tune, as in `whole_sweep`."""
    return _further(whole_sweep.run_documented)


def _further(run: Callable[..., float]) -> Measure:
    held = {}
    for trials in (1, 1 + FURTHER):
        peak = PeakMemory(os.getpid())
        run(trials=trials, concurrent=trials, steps=10, cpus=1 + FURTHER)
        peak.stop()
        held[trials] = peak.gib
    each = (held[1 + FURTHER] - held[1]) / FURTHER
    return Measure(values=[each], facts={"first_gib": held[1]})


BENCHMARK = Benchmark(
    name="memory",
    title="memory per further concurrent trial",
    unit="trial",
    quantity="GiB",
    contenders={"ours": ours, "Ray Tune + TorchTrainer": torch_trainer},
    goals={"Ray Tune + TorchTrainer": 10},
    repetitions=1,
)
