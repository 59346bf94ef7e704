"""What tracking costs a training process, and what reaches MLflow.

Per metric: ours is the whole report of an epoch to the driver, a round trip through Ray that also
brings the decision whether to go on, since a training process of ours never talks to MLflow. The
opponents are called in the training process or in Tune's loop. All end in an SQLite store, which
stock MLflow then reads back.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks import simulated
from benchmarks.harness import Benchmark, Measure, scratch
from trainables.metrics import METRIC_NAMES


def ours(full: bool) -> Measure:
    seconds = _cost_of_reports(200)
    return Measure(values=seconds, facts=_written(trials=100 if full else 20, epochs=200))


def _cost_of_reports(epochs: int) -> list[float]:
    """Return the seconds per metric that reports of epochs took in a trial's process."""
    from orchestrator.execution import cluster

    cluster.connect("local", needs_state_api=False)  # first: it sets what Ray reads at import
    from ray import tune

    out = scratch() / "seconds.txt"

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        took = []
        for epoch in range(epochs):
            row = simulated.metrics({"lr": 0.01, "dropout": 0.2}, epoch)
            began_s = time.perf_counter()
            tune.report({"kind": "epoch", "epoch": epoch, "checkpoint": None, **row})
            took.append((time.perf_counter() - began_s) / len(METRIC_NAMES))
        out.write_text("\n".join(map(str, took[5:])))

    tune.Tuner(
        trial, run_config=tune.RunConfig(storage_path=str(scratch() / "tune"), verbose=0)
    ).fit()
    cluster.disconnect()
    return [float(line) for line in out.read_text().split()]


def _written(*, trials: int, epochs: int) -> dict[str, float | str]:
    """Write a finished sweep's ledger into a new SQLite store, and read it back with MLflow."""
    import mlflow

    from orchestrator.search.scheduler import TrialScheduler
    from orchestrator.storage.paths import SweepPaths
    from orchestrator.tracking.tracker import Tracker

    plan = simulated.plan(trials=trials, variants=("cnn3",), epochs=epochs)
    paths = SweepPaths(scratch(), "written")
    ledger = simulated.new_ledger(paths.root, plan)
    scheduler = TrialScheduler(ledger, plan)
    while start := scheduler.next_start():
        for epoch in range(epochs):
            row = simulated.metrics(start.config.to_dict(), epoch)
            if scheduler.on_epoch(start.signature, start.attempt, epoch, row, None):
                break
        else:
            scheduler.on_end(start.signature, start.attempt, outcome="complete")
    tracker = Tracker(ledger, paths, paths.default_tracking_uri)
    tracker._connect()  # a store's first tables take seconds, for everybody
    began_s = time.perf_counter()
    tracker.sync(last=True)
    took_s = time.perf_counter() - began_s
    client = mlflow.MlflowClient(paths.default_tracking_uri)
    experiment = client.get_experiment_by_name("written")
    assert experiment is not None
    number = 0
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        for name in METRIC_NAMES:
            if name in run.data.metrics:
                number += len(client.get_metric_history(run.info.run_id, name))
    rows = sum(len(ledger.epochs(trial.signature)) for trial in ledger.trials())
    assert number == rows * len(METRIC_NAMES), (number, rows)
    return {"metrics_written": number, "metrics_per_s": number / took_s}


def log_metric(full: bool) -> Measure:
    """`mlflow.log_metric` in the training loop."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{scratch()}/mlflow.db")
    mlflow.set_experiment("stock")
    seconds = []
    with mlflow.start_run():
        for step in range(400 if full else 200):
            began_s = time.perf_counter()
            mlflow.log_metric("loss", 1.0, step=step)
            seconds.append(time.perf_counter() - began_s)
    return Measure(values=seconds, facts={"metrics_per_s": len(seconds) / sum(seconds)})


def callback(full: bool) -> Measure:
    """`MLflowLoggerCallback`, called as Tune does for every result of as many metrics."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.experiment import Trial

    logger = MLflowLoggerCallback(
        tracking_uri=f"sqlite:///{scratch()}/mlflow.db", experiment_name="stock"
    )
    logger.setup()
    trial = Trial("train", stub=True)
    logger.log_trial_start(trial)
    seconds = []
    row = dict.fromkeys(METRIC_NAMES, 1.0)
    for epoch in range(100 if full else 40):
        began_s = time.perf_counter()
        logger.log_trial_result(epoch, trial, {**row, "training_iteration": epoch})
        seconds.append((time.perf_counter() - began_s) / len(METRIC_NAMES))
    return Measure(values=seconds, facts={"metrics_per_s": len(seconds) / sum(seconds)})


def _round_trip_s(probes: Mapping[str, float]) -> float:
    """Send an epoch's metrics to another process and wait for its answer, by bare pipes."""
    echo = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    seconds = []
    with subprocess.Popen(
        [sys.executable, "-c", echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for epoch in range(500):
            row = simulated.metrics({"lr": 0.01, "dropout": 0.2}, epoch)
            began_s = time.perf_counter()
            print(json.dumps(row), file=other.stdin, flush=True)
            json.loads(other.stdout.readline())
            seconds.append((time.perf_counter() - began_s) / len(METRIC_NAMES))
    return statistics.median(seconds)


BENCHMARK = Benchmark(
    name="tracking",
    title="tracking: cost to a training process per metric",
    unit="metric",
    contenders={"ours": ours, "mlflow.log_metric": log_metric, "MLflowLoggerCallback": callback},
    goals={"mlflow.log_metric": 200},
    limit=_round_trip_s,
)
