"""MLflow has everything in the ledger exactly once, after failures too. Uses a real store."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import Clock
from orchestrator.tracking.client import page_address, ui_command
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.sweeps import metrics
from tests.orchestrator.tracking.tracked import Sweep, story, without_identity
from trainables.config import TrainConfig
from trainables.metrics import METRIC_NAMES


def test_a_sweep_has_one_parent_run_and_one_child_run_per_trial(sweep: Sweep) -> None:
    first, second = sweep.run_trial(0, 0.5), sweep.run_trial(1, 0.75)
    assert sweep.tracker.sync() == 2
    runs = sweep.runs()
    assert set(runs) == {"sweep", first, second}
    parent = runs["sweep"]
    for number, key in enumerate((first, second)):
        run = runs[key]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["sweep.id"] == sweep.ledger.facts()["sweep_id"]
        assert run.info.run_name == f"cnn2-{number:03d}"
        config = sweep.config(number)
        assert run.data.params == {"variant": "cnn2", "lr": str(config.lr)}
        for metric in METRIC_NAMES:
            expected = [(row.epoch + 1, row.metrics[metric]) for row in sweep.ledger.epochs(key)]
            assert sweep.values(key, metric) == expected
        assert sweep.values(key, "best_val_top1") == [(0, (0.5, 0.75)[number])]
        rows = sweep.ledger.epochs(key)
        history = sweep.client.get_metric_history(run.info.run_id, "val_top1")
        assert sorted(item.timestamp for item in history) == [
            int(row.arrived_s * 1000) for row in rows
        ]
        files = sweep.files(key)
        assert json.loads(files["config.json"]) == config.to_dict()
        assert files["logs/attempt_1.log"] == "log of attempt 1\n"
    assert set(sweep.files("sweep")) == {"plan.json"}
    assert parent.info.status == "RUNNING"
    sweep.tracker.finish("complete", {"trials": 2})
    sweep.new_tracker().finish("complete", {"trials": 2})
    assert sweep.runs()["sweep"].info.status == "FINISHED"
    assert sweep.values("sweep", "trials") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("how", ["same", "new tracker", "lost tags"])
def test_writing_again_changes_nothing(sweep: Sweep, how: str) -> None:
    sweep.run_trial(0, 0.5)
    running = sweep.start(1)
    sweep.epoch(running, 0, 0.25)
    sweep.tracker.sync()
    before = sweep.content()
    if how == "lost tags":
        sweep.forget()
    if how != "same":
        sweep.tracker = sweep.new_tracker()
    written = sweep.tracker.sync()
    assert written == (2 if how == "lost tags" else 0)
    assert sweep.content() == before
    sweep.epoch(running, 1, 0.5)
    assert sweep.tracker.sync() == 1
    assert sweep.values(running, "val_top1") == [(1, 0.25), (2, 0.5)]


def test_every_outcome_has_an_mlflow_status(sweep: Sweep) -> None:
    ends = {"complete": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}
    keys = {}
    for number, status in enumerate(ends):
        keys[status] = sweep.start(number)
        sweep.end(keys[status], status)
    keys["running"] = sweep.start(4)
    sweep.tracker.sync()
    runs = sweep.runs()
    assert {status: runs[key].info.status for status, key in keys.items()} == {
        **ends,
        "running": "RUNNING",
    }
    for status, key in keys.items():
        assert runs[key].data.tags["sweep.outcome"] == status


def test_the_run_of_an_interrupted_trial_is_killed_and_finished_after_a_resume(
    sweep: Sweep,
) -> None:
    key = sweep.start(0)
    sweep.epoch(key, 0, 0.25)
    sweep.tracker.sync()
    assert sweep.runs()[key].info.status == "RUNNING"
    sweep.end(key, "running", outcome="lost")
    sweep.tracker.sync()
    run = sweep.runs()[key]
    assert (run.info.status, run.data.tags["sweep.outcome"]) == ("KILLED", "interrupted")
    assert run.info.end_time == int((sweep.ledger.attempts(key)[-1].ended_s or 0) * 1000)
    sweep.tracker.finish("interrupted", {})
    assert sweep.runs()["sweep"].info.status == "KILLED"
    # The next command.
    sweep.tracker = sweep.new_tracker()
    sweep.start(0, micro=8)
    sweep.tracker.sync()
    run = sweep.runs()[key]
    assert (run.info.status, run.data.tags["sweep.micro_batch_size"]) == ("RUNNING", "8")
    assert sweep.runs()["sweep"].info.status == "RUNNING"
    sweep.epoch(key, 1, 0.5)
    sweep.end(key, "complete", (1, 0.5))
    sweep.tracker.sync()
    run = sweep.runs()[key]
    assert (run.info.status, run.data.tags["sweep.attempts"]) == ("FINISHED", "2")
    assert run.info.end_time == int((sweep.ledger.attempts(key)[-1].ended_s or 0) * 1000)
    assert sweep.values(key, "val_top1") == [(1, 0.25), (2, 0.5)]
    assert set(sweep.files(key, "logs")) == {"logs/attempt_1.log", "logs/attempt_2.log"}


def test_the_run_of_a_failed_trial_has_failure_class_text_and_log(sweep: Sweep) -> None:
    key = sweep.start(0)
    sweep.end(
        key, "running", outcome="failed", failure_class="disk", failure_text="OSError: full\n"
    )
    sweep.start(0)
    sweep.end(key, "failed", failure_class="bug", failure_text="ValueError: no\n")
    sweep.tracker.sync()
    assert sweep.runs()[key].data.tags["sweep.failure_class"] == "bug"
    assert sweep.files(key, "logs") == {
        "logs/attempt_1.log": "log of attempt 1\n",
        "logs/attempt_1_failure.txt": "OSError: full\n",
        "logs/attempt_2.log": "log of attempt 2\n",
        "logs/attempt_2_failure.txt": "ValueError: no\n",
    }


def test_nan_is_not_written(sweep: Sweep) -> None:
    key = sweep.start(0)
    sweep.ledger.record_epoch(key, 1, 0, metrics(val_loss=math.nan), None)
    sweep.tracker.sync()
    assert set(sweep.runs()[key].data.metrics) == set(METRIC_NAMES) - {"val_loss"}


def test_only_the_best_keep_their_weights(sweep: Sweep) -> None:
    def with_weights() -> set[str]:
        return {key for key in sweep.runs() if key != "sweep" and sweep.files(key, "weights")}

    low, middle = sweep.run_trial(0, 0.5), sweep.run_trial(1, 0.6)
    sweep.tracker.sync()
    assert with_weights() == {low, middle}
    files = sweep.files(middle, "weights")
    assert files["weights/model.safetensors"] == f"weights of {middle} 1"
    assert '"best_epoch": 2' in files["weights/model.json"]
    assert sweep.runs()[middle].data.tags["sweep.weights"] == "epoch 2"
    high = sweep.run_trial(2, 0.7)
    sweep.tracker.sync()
    assert with_weights() == {middle, high}
    sweep.run_trial(3, 0.1)
    sweep.tracker.sync()
    assert with_weights() == {middle, high}
    sweep.tracker = sweep.new_tracker()  # it reads from the store which weights exist
    higher = sweep.run_trial(4, 0.9)
    sweep.tracker.sync()
    assert with_weights() == {high, higher}


def test_a_model_can_be_rebuilt_from_its_json(sweep: Sweep) -> None:
    key = sweep.run_trial(0, 0.5)
    sweep.tracker.sync()
    recipe = json.loads(sweep.files(key, "weights")["weights/model.json"])
    assert TrainConfig.from_dict(recipe["config"]) == sweep.config(0)
    assert (recipe["dataset"], recipe["versions"]) == ("digits", {"torch": "2"})


def test_missing_weights_do_not_stop_the_sync(sweep: Sweep) -> None:
    key = sweep.run_trial(0, 0.5)
    for file in sweep.paths.trial(key).rglob("model.safetensors"):
        file.unlink()
    assert sweep.tracker.sync() == 1
    assert sweep.files(key, "weights") == {}
    assert sweep.runs()[key].info.status == "FINISHED"


CALLS = (
    *("create_run", "log_dict", "log_batch", "log_artifact", "set_terminated", "log_text"),
    *("update_run", "search_runs", "list_artifacts", "set_tag", "delete_tag", "log_inputs"),
)


class Flaky:
    """An MLflow client that fails at its n-th call, before or after the call is carried out.

    It fails as often as a call is retried, then works again.
    """

    def __init__(self, client: Any, at: int, *, after: bool, is_down: bool) -> None:
        self.client, self.at, self.after, self.is_down = client, at, after, is_down
        self.count = 0
        self.failed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        original = getattr(self.client, name)
        if name not in CALLS and not (self.is_down and name == "get_run" and self.failed):
            return original

        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += name in CALLS
            fails = self.count >= self.at and len(self.failed) < 3 * (1 + self.is_down)
            if fails:
                self.failed.append(name)
            if fails and not self.after:
                raise ConnectionError("the store is down")
            result = original(*args, **kwargs)
            if fails:
                raise ConnectionError("the reply is lost")
            return result

        return call


def test_a_store_that_fails_at_any_call_has_everything_once(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    whole = Sweep(storage, "whole")
    for scene in story(whole):
        scene()
        whole.tracker.sync()
    expected = without_identity(whole.content())
    assert len(expected) == 5
    real = mlflow.MlflowClient
    failed: set[str] = set()
    for turn, at in enumerate(range(1, 50, 3)):
        sweep = Sweep(storage, f"flaky-{at}", clock=Clock(sleep=lambda seconds: None))
        flaky = Flaky(
            real(tracking_uri=sweep.paths.default_tracking_uri),
            at,
            after=turn % 2 == 0,
            is_down=turn % 4 < 2,
        )
        monkeypatch.setattr(mlflow, "MlflowClient", lambda tracking_uri, to=flaky: to)
        for scene in story(sweep):
            scene()
            with contextlib.suppress(ConnectionError):
                sweep.tracker.sync()
        monkeypatch.setattr(mlflow, "MlflowClient", real)
        sweep.tracker.sync(last=True)
        sweep.tracker.sync(last=True)
        assert flaky.failed, at
        assert sweep.ledger.facts().get("tracking_behind", {}) == {}
        assert without_identity(sweep.content()) == expected, (at, flaky.failed)
        failed |= set(flaky.failed)
    assert failed >= {"create_run", "log_batch", "log_dict", "log_artifact", "set_terminated"}
    assert "log_inputs" in failed


def test_a_store_that_was_down_is_filled_by_one_sync(storage: Path) -> None:
    late = Sweep(storage, "late")
    no_folder = late.paths.local_root / "a file"
    no_folder.touch()
    missing = Tracker(late.ledger, late.paths, f"sqlite:///{no_folder}/mlflow.db")
    for scene in story(late):
        scene()
        with pytest.raises(Exception, match=r"Not a directory|File exists"):
            missing.sync()
    late.tracker.sync()
    runs = late.runs()
    assert len(runs) == 5
    assert len(late.values(late.config(3).signature(), "val_top1")) == 2


def test_an_experiment_deleted_by_hand_is_restored(sweep: Sweep) -> None:
    key = sweep.run_trial(0, 0.5)
    sweep.tracker.sync()
    experiment = sweep.client.get_experiment_by_name(sweep.paths.name)
    sweep.client.delete_experiment(experiment.experiment_id)
    sweep.tracker = sweep.new_tracker()
    sweep.run_trial(1, 0.6)
    sweep.tracker.sync()
    assert sweep.client.get_experiment_by_name(sweep.paths.name).lifecycle_stage == "active"
    assert key in sweep.runs() or len(sweep.runs()) == 2


def test_many_epochs_are_written_in_batches(sweep: Sweep) -> None:
    key = sweep.start(0)
    for epoch in range(230):  # with all metrics, more than MLflow takes in one request
        sweep.ledger.record_epoch(key, 1, epoch, metrics(val_top1=epoch / 1000), None)
    sweep.tracker.sync()
    assert sweep.values(key, "val_top1") == [(epoch + 1, epoch / 1000) for epoch in range(230)]
    assert len(sweep.values(key, "device_peak_gib")) == 230


def test_no_environment_and_no_user_reaches_the_store(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2hunter2")
    monkeypatch.setenv("LOGNAME", "somebody-by-name")
    sweep.run_trial(0, 0.5)
    sweep.tracker.sync()
    sweep.tracker.finish("complete", {"trials": 1})
    files = [sweep.paths.local_root / "mlflow.db", *sweep.paths.artifacts.rglob("*")]
    for file in files:
        content = file.read_bytes() if file.is_file() else b""
        assert b"hunter2hunter2" not in content
        assert b"somebody-by-name" not in content
    tags = {name for run in sweep.runs().values() for name in run.data.tags}
    assert tags == {
        *("mlflow.parentRunId", "mlflow.runName", "mlflow.source.name", "mlflow.note.content"),
        *("sweep.id", "sweep.outcome", "sweep.mark", "sweep.signature", "sweep.weights"),
        *("sweep.attempts", "sweep.stage", "sweep.note"),
    }


def test_the_store_has_one_row_per_metric_and_epoch(storage: Path, sweep: Sweep) -> None:
    """For all tests above, read from the database itself, because a client might hide rows."""
    sweep.run_trial(0, 0.5)
    sweep.tracker.sync()
    sweep.forget()
    assert sweep.new_tracker().sync() == 1
    connection = sqlite3.connect(storage / "mlflow.db")
    repeated = connection.execute(
        "SELECT run_uuid, key, step FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1"
    ).fetchall()
    total = connection.execute("SELECT count(*) FROM metrics").fetchone()[0]
    connection.close()
    assert repeated == []
    assert total >= 2 * len(METRIC_NAMES) + 1


def test_the_ui_command_quotes_the_path_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert ui_command("sqlite:////a/b.db") == "mlflow ui --backend-store-uri sqlite:////a/b.db"
    assert ui_command("sqlite:////it's $here/b.db") == (
        "mlflow ui --backend-store-uri 'sqlite:////it'\"'\"'s $here/b.db'"
    )
    assert ui_command("http://host:5000") is None
    assert page_address("http://host:5000/", "7", "val_loss", "min").startswith(
        "http://host:5000/#"
    )
    assert "#/experiments/7/runs?" in page_address("sqlite:////a/b.db", "7", "val_top1", "max")
