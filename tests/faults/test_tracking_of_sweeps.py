"""The real command with a failing MLflow: same final table and exit status, no trial waits."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sqlite3
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest

from orchestrator.storage.paths import SweepPaths
from tests.faults.mlflow_proxy import Fault, Proxy, Request, Server, proxied, running_server
from tests.integration.sweeps import (
    count_epochs,
    ledger_of,
    started,
    sweep,
    table,
    tracking_uri,
    wait_for,
)
from tests.orchestrator.tracking.tracked import assert_all_there_once

pytestmark = [pytest.mark.faults, pytest.mark.ray]

# Long enough to kill a server and start it again.
SIZE = ("--variants", "cnn3", "--trials", 2, "--epochs", 25, "--max-concurrent", 1)
# No trial may wait longer than this for tracking.
LONGEST_DELAY_S = 1.0


@dataclass(frozen=True)
class Healthy:
    """The outcome of a sweep with a healthy server."""

    table: list[tuple[Any, ...]]
    usual_gap_s: float
    options: tuple[object, ...]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def healthy(
    server: Server, tmp_path_factory: pytest.TempPathFactory, digits_data_dir: Path
) -> Healthy:
    cwd = tmp_path_factory.mktemp("healthy")
    options = (*SIZE, "--data-dir", digits_data_dir)
    done = sweep(cwd, "digits", *options, "--tracking-uri", server.uri, "--name", "healthy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "behind" not in done.stdout
    paths = SweepPaths(cwd / "results", "healthy")
    return Healthy(table(paths), usual_gap_s(paths), options)


def usual_gap_s(paths: SweepPaths) -> float:
    """Return the usual time between two epochs of one trial, as they arrived in the ledger.

    It is the median, because other load delays a few epochs; waiting for MLflow would delay all.
    """
    ledger = ledger_of(paths)
    gaps = [
        second.arrived_s - first.arrived_s
        for trial in ledger.trials()
        for first, second in itertools.pairwise(ledger.epochs(trial.signature))
    ]
    ledger.close()
    return statistics.median(gaps)


def assert_unaffected(paths: SweepPaths, healthy: Healthy) -> None:
    assert table(paths) == healthy.table
    gap_s = usual_gap_s(paths)
    print(f"usual gap {gap_s:.2f} s, healthy {healthy.usual_gap_s:.2f} s")
    assert gap_s < healthy.usual_gap_s + LONGEST_DELAY_S


def assert_all_written(uri: str, paths: SweepPaths) -> None:
    ledger = ledger_of(paths)
    client = mlflow.MlflowClient(uri)
    assert_all_there_once(client, paths.name, ledger)
    experiment = client.get_experiment_by_name(paths.name).experiment_id
    runs = client.search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED"}
    ledger.close()


def test_a_server_that_was_down_is_filled_by_resume(
    server: Server, tmp_path: Path, healthy: Healthy
) -> None:
    """Case 56: no server from start to end; then `--resume`, which starts no Ray."""
    paths = SweepPaths(tmp_path / "results", "down")
    with proxied(server) as proxy:
        uri, port = proxy.uri, proxy.port
    options = (*healthy.options, "--tracking-uri", uri, "--name", "down")
    done = sweep(tmp_path, "digits", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is behind: no server is listening at this address.") == 1
    assert "does not have everything" in done.stdout
    assert_unaffected(paths, healthy)
    late = Proxy(server.port, port)
    try:
        again = sweep(tmp_path, "digits", *healthy.options, "--name", "down", "--resume")
        assert again.returncode == 0, again.stdout + again.stderr
        assert "Every trial of this sweep has ended already." in again.stdout
        assert "Ray" not in again.stdout
        assert "behind" not in again.stdout
        assert "does not have everything" not in again.stdout
        assert_all_written(uri, paths)
        once_more = sweep(tmp_path, "digits", *healthy.options, "--name", "down", "--resume")
        assert once_more.returncode == 0
        assert_all_written(uri, paths)
    finally:
        late.close()


def test_a_server_that_was_killed_and_restarted_has_everything_once(
    tmp_path: Path, healthy: Healthy
) -> None:
    """Cases 57 and 67: SIGKILL in the middle; every curve continues where it was."""
    paths = SweepPaths(tmp_path / "results", "killed")
    with running_server(tmp_path / "own") as server:
        options = (*healthy.options, "--tracking-uri", server.uri, "--name", "killed")
        with started(tmp_path, "digits", *options) as process:
            wait_for(lambda: count_epochs(paths) >= 4, "four epochs")
            server.kill()
            wait_for(lambda: count_epochs(paths) >= 0.4 * len(healthy.table), "more epochs")
            server.start(politely=True)
            output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert "does not have everything" not in output
        assert_unaffected(paths, healthy)
        assert_all_written(server.uri, paths)


def test_a_frozen_server_delays_no_trial(server: Server, tmp_path: Path, healthy: Healthy) -> None:
    """Case 59: SIGSTOP for as long as a trial takes."""
    paths = SweepPaths(tmp_path / "results", "frozen")
    options = (*healthy.options, "--tracking-uri", server.uri, "--name", "frozen")
    with started(tmp_path, "digits", *options) as process:
        try:
            wait_for(lambda: count_epochs(paths) >= 4, "four epochs")
            server.signal(signal.SIGSTOP)
            wait_for(lambda: count_epochs(paths) >= 0.8 * len(healthy.table), "most epochs")
        finally:
            server.signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "does not have everything" not in output
    assert_unaffected(paths, healthy)
    assert_all_written(server.uri, paths)


def test_an_interrupted_sweep_ends_within_half_a_minute_with_a_frozen_server(
    server: Server, tmp_path: Path, healthy: Healthy
) -> None:
    """Case 59 at an interrupt: exit status 130 in time, the rest is written by `--resume`."""
    paths = SweepPaths(tmp_path / "results", "stopped")
    options = (*healthy.options, "--tracking-uri", server.uri, "--name", "stopped")
    with started(tmp_path, "digits", *options) as process:
        try:
            wait_for(lambda: count_epochs(paths) >= 4, "four epochs")
            server.signal(signal.SIGSTOP)
            time.sleep(3)  # a sync is running
            begun_s = time.monotonic()
            os.kill(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=60)
            took_s = time.monotonic() - begun_s
        finally:
            server.signal(signal.SIGCONT)
    print(f"ended after {took_s:.1f} s")
    assert process.returncode == 130, output
    assert took_s < 30
    assert "--resume writes the rest" in output
    resumed = sweep(tmp_path, "digits", *options, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert table(paths) == healthy.table
    assert_all_written(server.uri, paths)


def test_a_bad_network_to_the_server_delays_no_trial(
    server: Server, tmp_path: Path, healthy: Healthy
) -> None:
    """Case 57: delays, 429, 500 and 503, and lost replies, all in one sweep."""
    paths = SweepPaths(tmp_path / "results", "network")
    dice = random.Random(0)

    def rule(request: Request) -> Fault | None:
        if dice.random() < 0.5:
            return None
        return dice.choice(
            [
                Fault(delay_s=1.0),
                Fault(lose_reply=True),
                *(Fault(status=s, headers=(("Retry-After", "600"),)) for s in (429, 500, 503)),
            ]
        )

    with proxied(server) as proxy:
        proxy.rule = rule
        options = (*healthy.options, "--tracking-uri", proxy.uri, "--name", "network")
        with started(tmp_path, "digits", *options) as process:
            wait_for(lambda: count_epochs(paths) >= 0.8 * len(healthy.table), "most epochs")
            proxy.rule = lambda request: None
            output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert len(proxy.seen) > 20
    assert_unaffected(paths, healthy)
    assert_all_written(server.uri, paths)


def test_a_locked_database_delays_no_trial(tmp_path: Path, healthy: Healthy) -> None:
    """Case 57 without a server: another program locks the SQLite store for 30 s."""
    paths = SweepPaths(tmp_path / "results", "locked")
    with started(tmp_path, "digits", *healthy.options, "--name", "locked") as process:
        wait_for(lambda: count_epochs(paths) >= 2, "two epochs")
        uri = f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}"
        wait_for(lambda: _has_runs(tmp_path / "results" / "mlflow.db"), "a run")
        lock = sqlite3.connect(tmp_path / "results" / "mlflow.db", isolation_level=None, timeout=30)
        lock.execute("BEGIN EXCLUSIVE")
        time.sleep(30)
        lock.execute("COMMIT")
        lock.close()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "does not have everything" not in output
    assert_unaffected(paths, healthy)
    assert_all_written(uri, paths)


def _has_runs(database: Path) -> bool:
    try:
        with sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True) as store:
            return bool(store.execute("SELECT count(*) FROM runs").fetchone()[0])
    except sqlite3.OperationalError:
        return False


def test_runs_of_a_killed_driver_are_found_and_ended_by_resume(
    server: Server, tmp_path: Path, healthy: Healthy
) -> None:
    """Case 64: SIGKILL leaves runs RUNNING; `--resume` finds and ends the same runs."""
    paths = SweepPaths(tmp_path / "results", "driver")
    options = (*healthy.options, "--tracking-uri", server.uri, "--name", "driver")
    client = mlflow.MlflowClient(server.uri)
    with started(tmp_path, "digits", *options) as process:
        wait_for(lambda: count_epochs(paths) >= 8, "eight epochs")
        wait_for(lambda: client.get_experiment_by_name("driver"), "the experiment")
        experiment = client.get_experiment_by_name("driver").experiment_id
        wait_for(lambda: len(client.search_runs([experiment])) >= 2, "two runs")
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = {run.info.run_id: run.info.status for run in client.search_runs([experiment])}
    assert set(left.values()) == {"RUNNING"}
    resumed = sweep(tmp_path, "digits", *options, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert set(left) <= {run.info.run_id for run in client.search_runs([experiment])}
    assert table(paths) == healthy.table
    assert_all_written(server.uri, paths)


def test_a_moved_storage_has_its_old_artifacts_and_gets_new_ones(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    """A resume from a moved folder: nothing points to the old place."""
    size = ("--variants", "cnn3", "--epochs", 1, "--data-dir", digits_data_dir)
    first = sweep(tmp_path, "digits", *size, "--trials", 1, "--storage", "old")
    assert first.returncode == 0, first.stdout + first.stderr
    old = tracking_uri(first.stdout)
    shutil.move(tmp_path / "old", tmp_path / "new place")
    options = (*size, "--storage", "new place", "--resume")
    again = sweep(tmp_path, "digits", *options, "--trials", 2)
    assert again.returncode == 0, again.stdout + again.stderr
    assert not (tmp_path / "old").exists()
    uri = tracking_uri(again.stdout)
    assert uri != old
    assert uri.endswith("/new place/mlflow.db")
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits").experiment_id
    runs = client.search_runs([experiment])
    assert len(runs) == 3
    for run in runs:
        name = "config.json" if "sweep.signature" in run.data.tags else "plan.json"
        assert run.info.artifact_uri.startswith((tmp_path / "new place").as_uri())
        path = client.download_artifacts(run.info.run_id, name)
        assert Path(path).read_text().startswith("{")
    assert_all_written(uri, SweepPaths(tmp_path / "new place", "digits"))
