"""Decisions about trials: which starts next, which stops. Trials of ten reports train nothing.

Both sides run under Ray with two trials at a time, asynchronous successive halving and TPE. Ours
also stores every report durably. The `facts` of ours measure the scheduler alone, without Ray, for
1,000 trials of ten variants (`--full`: 10,000): trials per second, the longest suggestion, the
seconds per second that display and clean-up of checkpoints take after all trials have ended, and
the driver's memory.
"""

from __future__ import annotations

import functools
import io
import itertools
import logging
import resource
import time
from typing import Any

from benchmarks import documented, simulated
from benchmarks.harness import Benchmark, Measure, scratch

EPOCHS = 10


def ours(full: bool) -> Measure:
    facts = _scheduler_alone(10_000 if full else 1_000)
    trials = 1_000 if full else 200
    plan = simulated.plan(trials=trials, variants=("cnn3",), epochs=EPOCHS)
    ledger = simulated.run(plan, scratch(), epoch_s=0, concurrent=2, address="local")
    ends = sorted(a.ended_s for a in ledger.attempts() if a.ended_s)
    assert len(ends) == trials
    return Measure(values=_gaps(ends), facts=facts)


def _scheduler_alone(trials: int) -> dict[str, float | str]:
    from orchestrator.search.scheduler import TrialScheduler

    plan = simulated.plan(trials=trials // 10, variants=simulated.VARIANTS, epochs=EPOCHS)
    folder = scratch() / "alone"
    scheduler = TrialScheduler(simulated.new_ledger(folder, plan), plan)
    longest_s, began_s = 0.0, time.perf_counter()
    for _ in range(trials):
        asked_s = time.perf_counter()
        start = scheduler.next_start()
        longest_s = max(longest_s, time.perf_counter() - asked_s)
        assert start is not None
        config = start.config.to_dict()
        for epoch in range(EPOCHS):
            row = simulated.metrics(config, epoch)
            if scheduler.on_epoch(start.signature, start.attempt, epoch, row, None):
                break
        else:
            scheduler.on_end(start.signature, start.attempt, outcome="complete")
    took_s = time.perf_counter() - began_s
    held_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "scheduler_trials": trials,
        "scheduler_trials_per_s": trials / took_s,
        "scheduler_longest_suggestion_s": longest_s,
        "scheduler_readers_s": _readers_s(scheduler),
        "scheduler_gib": held_gib,
    }


def _readers_s(scheduler: Any) -> float:
    """Return how long the ledger's readers keep the driver busy in each second of a sweep."""
    from rich.console import Console

    from orchestrator.ledger import retention
    from orchestrator.storage.paths import SweepPaths
    from orchestrator.sweep.display import Display

    ledger, clean = scheduler.ledger, set[str]()
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    with Display(console, ledger, scheduler.plan) as display:
        for _ in range(2):  # the first time reads the whole ledger
            began_s = time.perf_counter()
            display.show()
            display.show()  # twice a second
            retention.collect(ledger, SweepPaths(scratch(), "alone"), clean)
            took_s = time.perf_counter() - began_s
    return took_s


def ray_tune(full: bool, *, reuse_actors: bool = False) -> Measure:
    """Ray Tune with OptunaSearch and ASHAScheduler, and a function that reports ten times.

    By default each trial gets a new process; with `reuse_actors` the next trial reuses it.
    """
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    ray.init(num_cpus=2, logging_level=logging.ERROR, include_dashboard=False)

    def trainable(config: dict[str, Any]) -> None:
        for epoch in range(EPOCHS):
            tune.report({"val_top1": simulated.curve(config, epoch), "done_s": time.time()})

    results = documented.tune(
        trainable,
        {
            "lr": tune.loguniform(1e-4, 1e-1),
            "dropout": tune.uniform(0.0, 0.5),
            "batch_size": tune.choice([32, 64, 128]),
            "optimizer": tune.choice(["sgd", "adamw"]),
        },
        trials=200 if full else 100 if reuse_actors else 8,
        concurrent=2,
        storage=scratch() / "tune",
        metric="val_top1",
        mode="max",
        scheduler=ASHAScheduler(
            time_attr="training_iteration", max_t=EPOCHS + 1, grace_period=1, reduction_factor=3
        ),
        reuse_actors=reuse_actors,
    )
    return Measure(values=_gaps(sorted(result.metrics["done_s"] for result in results)))


def _gaps(ends: list[float]) -> list[float]:
    """Return the mean time per trial, from the first end to the last."""
    return [(ends[-1] - ends[0]) / (len(list(itertools.pairwise(ends))))]


BENCHMARK = Benchmark(
    name="decisions",
    title="decisions: trials of ten reports, no training",
    unit="trial",
    contenders={
        "ours": ours,
        "Ray Tune + OptunaSearch + ASHA": ray_tune,
        "the same with reuse_actors": functools.partial(ray_tune, reuse_actors=True),
    },
    goals={"Ray Tune + OptunaSearch + ASHA": 3},
)
