"""16 trials at a time on a Ray cluster of four nodes, all on this machine; trials only sleep.

The opponent is arithmetic: trials * length / 16. Ours counts from a joined cluster to the last
trial's end, the start of its 16 processes included.
"""

from __future__ import annotations

import os
import time

from benchmarks import simulated
from benchmarks.harness import Benchmark, Measure, scratch

NODES, CPUS = 4, 4


def _size(full: bool) -> tuple[int, float]:
    return (1_000, 10.0) if full else (96, 4.0)


def ours(full: bool) -> Measure:
    from orchestrator.execution import cluster as joined

    joined.ensure_token()
    os.environ["RAY_AUTH_MODE"] = "token"  # or the cluster's head speaks to this driver without it
    from ray.cluster_utils import Cluster

    trials, epoch_s = _size(full)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS})
    for _ in range(NODES - 1):
        cluster.add_node(num_cpus=CPUS)
    plan = simulated.plan(trials=trials, variants=("cnn3",), epochs=1)
    began_s = time.time()
    ledger = simulated.run(
        plan,
        scratch() / "sweep",
        epoch_s=epoch_s,
        concurrent=NODES * CPUS,
        address=cluster.address,
    )
    last_s = max(attempt.ended_s or 0 for attempt in ledger.attempts())
    assert len(ledger.attempts()) == trials
    return Measure(values=[(last_s - began_s) / trials], facts={"trials": trials})


def ideal(full: bool) -> Measure:
    _, epoch_s = _size(full)
    return Measure(values=[epoch_s / (NODES * CPUS)])


BENCHMARK = Benchmark(
    name="scale",
    title="scale: 16 sleeping trials at a time on 4 nodes, of the ideal time",
    unit="trial",
    contenders={"ours": ours, "ideal time": ideal},
    goals={"ideal time": 1 / 1.1},
    repetitions=1,
)
