"""Runs the benchmarks, or prints a table of their latest results (`--table`)."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks import harness

NAMES = (
    "trial_start",
    "decisions",
    "tracking",
    "preparing",
    "loading",
    "memory",
    "stepping",
    "stepping_cnn",
    "whole_sweep",
    "scale",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(NAMES)}")
    parser.add_argument("--full", action="store_true", help="run at full size, which takes hours")
    parser.add_argument("--repetitions", type=int, metavar="N", help="measurements of each row")
    parser.add_argument("--table", action="store_true", help="print the latest results")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        benchmark, contender, out = arguments.one
        harness.measure_one(benchmark, contender, Path(out), arguments.full)
        return
    if arguments.table:
        from benchmarks.table import table

        print(table([benchmark_of(name) for name in NAMES]))
        return
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}. Known are {', '.join(NAMES)}.")
    for name in arguments.names or NAMES:
        benchmark = benchmark_of(name)
        print(f"{name}: {benchmark.title}", flush=True)
        harness.run(
            benchmark,
            full=arguments.full,
            repetitions=arguments.repetitions or benchmark.repetitions,
            say=lambda text: print(text, flush=True),
        )


def benchmark_of(name: str) -> harness.Benchmark:
    """Return a benchmark by its name."""
    found: harness.Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    return found


if __name__ == "__main__":
    main()
