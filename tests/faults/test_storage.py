"""Storage that is elsewhere: what another machine finds there is enough, whatever befell this one.

A real S3 protocol server on loopback; "another machine" is another cache folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from orchestrator.storage.paths import SweepPaths, sweep_paths
from tests.faults.conftest import SMALL
from tests.faults.proxy import Proxy, proxied
from tests.faults.stores import CREDENTIALS, Bucket, epochs_in, new_bucket, s3_server
from tests.integration.sweeps import (
    count_epochs,
    ledger_of,
    members,
    started,
    sweep,
    table,
    wait_for,
)
from trainables.metrics import METRIC_NAMES

pytestmark = [pytest.mark.faults, pytest.mark.ray]


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[str, int]]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return new_bucket(*server)


@pytest.fixture
def proxy(server: tuple[str, int]) -> Iterator[Proxy]:
    with proxied(*server) as one:
        yield one


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From here on commands and tests are on the machine whose cache is this folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def lose(process: Any) -> None:
    """Kill a driver, and wait for the end of what it started, as on a machine that is lost."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not members(process.mark), "the end of the driver's processes", 90)


def metrics_in_mlflow(uri: str) -> dict[tuple[str, str, int], int]:
    """How many values each metric of each run has per epoch; every run is found once."""
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    signatures = [run.data.tags.get("sweep.signature", "") for run in runs]
    assert len(signatures) == len(set(signatures))
    counts: dict[tuple[str, str, int], int] = {}
    for run in runs:
        for name in METRIC_NAMES:
            for value in client.get_metric_history(run.info.run_id, name):
                key = run.info.run_id, name, value.step
                counts[key] = counts.get(key, 0) + 1
    return counts


def test_a_sweep_whose_machine_is_lost_resumes_from_the_storage_to_the_same_table(
    bucket: Bucket,
    unbroken,
    tmp_path: Path,
    digits_data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case 1: SIGKILL of the driver, and its whole working folder gone."""
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = (*SMALL, "--data-dir", digits_data_dir, "--storage", bucket.uri())
    options = (*options, "--tracking-uri", tracking)
    machine(monkeypatch, tmp_path / "one")
    paths = sweep_paths(bucket.uri(), "digits")
    with started(tmp_path, "digits", *options) as process:
        wait_for(lambda: count_epochs(paths) >= 6, "six epochs")
        lose(process)
    shutil.rmtree(tmp_path / "one")
    copied = epochs_in(bucket.storage().get("digits/ledger.sqlite"), tmp_path)
    assert copied >= 1

    machine(monkeypatch, tmp_path / "two")
    resumed = sweep(tmp_path, "digits", *options, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "Resuming from the copy" in resumed.stderr
    paths = sweep_paths(bucket.uri(), "digits")
    assert table(paths) == unbroken
    attempts = ledger_of(paths).attempts()
    # What the copy knew was not trained again from nothing.
    assert any(attempt.resumed_from for attempt in attempts) or copied == 4
    counts = metrics_in_mlflow(tracking)
    assert set(counts.values()) == {1}
    assert len(counts) == 2 * 4 * len(METRIC_NAMES)

    # The storage holds the ledger, the logs and the best weights, and nothing else.
    names = bucket.storage().files("digits", recursive=True)
    trials = ledger_of(paths).trials()
    best = max(trials, key=lambda trial: trial.best_value or 0)
    kept = {name.rpartition("/")[0] for name in names if name.endswith("manifest.json")}
    assert len(kept) == 1
    assert kept.pop().startswith(f"trials/{best.signature}/attempt_")
    assert epochs_in(bucket.storage().get("digits/ledger.sqlite"), tmp_path) == 8

    # A machine that has nothing of it can check it, and finds who runs it.
    machine(monkeypatch, tmp_path / "three")
    checked = sweep(tmp_path, "digits", *options, "--verify")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "All requested trials have ended." in checked.stdout
    assert not sweep_paths(bucket.uri(), "digits").ledger.exists()
    logs = {name for name in names if name.endswith(".log")}
    assert {attempt.log for attempt in attempts if attempt.outcome == "complete"} <= logs
    assert "driver.json" not in names


def test_a_restored_older_copy_converges_and_doubles_nothing(
    bucket: Bucket,
    unbroken,
    tmp_path: Path,
    digits_data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case 4: state that is older than what was stored and told after it."""
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = (*SMALL, "--data-dir", digits_data_dir, "--storage", bucket.uri())
    options = (*options, "--tracking-uri", tracking)
    machine(monkeypatch, tmp_path / "one")
    with started(tmp_path, "digits", *options) as process:

        def copy_of_some_epochs() -> bytes | None:
            copy = bucket.storage().get("digits/ledger.sqlite")
            return copy if epochs_in(copy, tmp_path) >= 2 else None

        older = wait_for(copy_of_some_epochs, "a copy with two epochs")
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert 2 <= epochs_in(older, tmp_path) < 8
    shutil.rmtree(tmp_path / "one")
    bucket.storage().put("digits/ledger.sqlite", older)

    machine(monkeypatch, tmp_path / "two")
    resumed = sweep(tmp_path, "digits", *options, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert table(sweep_paths(bucket.uri(), "digits")) == unbroken
    assert set(metrics_in_mlflow(tracking).values()) == {1}


@pytest.mark.parametrize(("mode", "for_s"), [("503", 8), ("hang", 14), ("cut", 8)])
def test_a_storage_that_fails_for_a_while_only_delays_the_sweep(
    bucket: Bucket,
    proxy: Proxy,
    mode: str,
    for_s: float,
    unbroken,
    tmp_path: Path,
    digits_data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case 51: 503, no answer, and connections cut in the middle of an upload."""
    machine(monkeypatch, tmp_path / "cache")
    uri = bucket.uri(proxy.port)
    paths = sweep_paths(uri, "digits")
    options = (*SMALL, "--data-dir", digits_data_dir, "--storage", uri)
    with started(tmp_path, "digits", *options) as process:
        wait_for(lambda: count_epochs(paths) >= 2, "two epochs")
        proxy.mode = mode
        time.sleep(for_s)
        stored = bucket.storage().get("digits/ledger.sqlite")
        known = {r.checkpoint for t in ledger_of(paths).trials() for r in _rows(paths, t)}
        for name in sorted(filter(None, known))[-1:]:  # what has a row is stored in whole
            names = bucket.storage().files(f"digits/{name}")
            assert {"manifest.json", "model.safetensors", "optimizer.pt", "state.json"} <= {*names}
        proxy.mode = "pass"
        output, _ = process.communicate(timeout=200)
    assert stored is not None
    assert process.returncode == 0, output
    assert table(paths) == unbroken
    assert epochs_in(bucket.storage().get("digits/ledger.sqlite"), tmp_path) == 8


def _rows(paths: SweepPaths, trial):
    ledger = ledger_of(paths)
    rows = ledger.epochs(trial.signature)
    ledger.close()
    return rows


def test_a_second_driver_on_another_machine_is_refused_and_a_dead_ones_lease_is_broken(
    bucket: Bucket, tmp_path: Path, digits_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 17: two drivers on one sweep; the second is told of the first's host and process."""
    options = ("--trials", 1, "--variants", "cnn3", "--data-dir", digits_data_dir)
    options = (*options, "--storage", bucket.uri())
    machine(monkeypatch, tmp_path / "one")
    paths = sweep_paths(bucket.uri(), "digits")
    with started(tmp_path, "digits", *options, "--epochs", 600) as first:
        wait_for(lambda: count_epochs(paths) >= 1, "an epoch")
        machine(monkeypatch, tmp_path / "two")
        second = sweep(tmp_path, "digits", *options, "--resume")
        assert second.returncode == 2, second.stdout + second.stderr
        assert f"is already being run by process {first.pid} on {os.uname().nodename}" in (
            second.stderr
        )
        assert first.poll() is None
        lose(first)
    with started(tmp_path, "digits", *options, "--resume", "--epochs", 600) as third:
        paths = sweep_paths(bucket.uri(), "digits")
        wait_for(lambda: count_epochs(paths) >= 2, "more epochs", 60)
        third.send_signal(signal.SIGINT)
        output, _ = third.communicate(timeout=40)
        assert third.returncode == 130, output


def test_a_driver_whose_lease_was_taken_stops_and_leaves_the_copy_alone(
    bucket: Bucket, tmp_path: Path, digits_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 17, seen from the driver that was frozen or cut off until it was replaced."""
    machine(monkeypatch, tmp_path / "one")
    paths, storage = sweep_paths(bucket.uri(), "digits"), bucket.storage()
    options = ("--trials", 1, "--epochs", 200, "--variants", "cnn3", "--storage", bucket.uri())
    with started(tmp_path, "digits", *options, "--data-dir", digits_data_dir) as process:
        wait_for(lambda: count_epochs(paths) >= 1, "an epoch")
        process.send_signal(signal.SIGSTOP)
        other = {"host": "elsewhere", "pid": 4711, "token": "other"}
        storage.put("digits/driver.json", json.dumps(other).encode())
        storage.put("digits/ledger.sqlite", b"what the other driver wrote")
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "taken over by process 4711 on elsewhere" in output
    assert "Traceback" not in output
    assert storage.get("digits/ledger.sqlite") == b"what the other driver wrote"
    assert json.loads(storage.get("digits/driver.json") or b"")["token"] == "other"


def test_a_damaged_copy_is_refused_with_one_sentence(
    bucket: Bucket, tmp_path: Path, digits_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 3: a copy that is torn, empty or has a flipped bit, on a machine that has no other."""
    machine(monkeypatch, tmp_path / "one")
    options = ("--trials", 1, "--epochs", 1, "--variants", "cnn3", "--storage", bucket.uri())
    options = (*options, "--data-dir", digits_data_dir)
    assert sweep(tmp_path, "digits", *options).returncode == 0
    storage = bucket.storage()
    whole = storage.get("digits/ledger.sqlite")
    assert whole is not None
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for number, damaged in enumerate((whole[: len(whole) // 2], whole[:-1], b"", bytes(flipped))):
        storage.put("digits/ledger.sqlite", damaged)
        machine(monkeypatch, tmp_path / f"new-{number}")
        refused = sweep(tmp_path, "digits", *options, "--resume")
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert "ledger.sqlite is damaged" in refused.stderr
        assert "Traceback" not in refused.stderr
    storage.put("digits/ledger.sqlite", whole)
    machine(monkeypatch, tmp_path / "last")
    again = sweep(tmp_path, "digits", *options, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr


def test_the_error_names_a_sweep_that_exists_or_is_unknown_in_the_storage(
    bucket: Bucket, tmp_path: Path, digits_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases 32 and 77, for a storage at an address."""
    machine(monkeypatch, tmp_path / "one")
    options = ("--data-dir", digits_data_dir, "--storage", bucket.uri())
    bucket.storage().put("other/ledger.sqlite", b"")
    unknown = sweep(tmp_path, "digits", *options, "--resume")
    assert unknown.returncode == 2
    assert "Existing: other." in unknown.stderr
    taken = sweep(tmp_path, "digits", *options, "--name", "other")
    assert taken.returncode == 2
    assert "exists in s3://" in taken.stderr
    wrong = sweep(tmp_path, "digits", "--storage", "ftp://host/x")
    assert wrong.returncode == 2
    assert "s3://bucket/prefix" in wrong.stderr
