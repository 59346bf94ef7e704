"""What each further trial beside a first one takes of the host's memory.

Small CNN on the real images, ten steps each, one and then three trials at a time; half of the
difference of what all processes held at most, shared pages counted once.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

from benchmarks import whole_sweep
from benchmarks.harness import Benchmark, Measure, PeakMemory, pss_gib

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


def _torch_alone_gib(probes: Mapping[str, float]) -> float:
    """Return what a process holds that has imported torch, beside others that have too."""
    code = "import sys, torch; print('imported', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            for _ in range(2)
        ]
        for process in both:
            assert process.stdout is not None
            process.stdout.readline()
        return pss_gib(both[0].pid)


BENCHMARK = Benchmark(
    name="memory",
    title="memory per further concurrent trial",
    unit="trial",
    quantity="GiB",
    contenders={"ours": ours, "Ray Tune + TorchTrainer": torch_trainer},
    goals={"Ray Tune + TorchTrainer": 10},
    repetitions=1,
    limit=_torch_alone_gib,
)
