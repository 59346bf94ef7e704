"""The best model is logged and registered once. Uses real SQLite stores."""

from __future__ import annotations

import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from orchestrator.clock import Clock
from orchestrator.errors import UsageError
from orchestrator.predict.mlflow_model import fetch_files
from orchestrator.storage.paths import SweepPaths
from orchestrator.sweep.opening import choose_registered_name
from orchestrator.tracking import artifacts
from orchestrator.tracking.database import relocate
from tests.orchestrator.tracking.tracked import (
    Sweep,
    finish,
    logged,
    output,
    outputs_of,
    versions,
)


def test_the_best_model_is_logged_once_with_the_results_of_its_trial(sweep: Sweep) -> None:
    key, other = sweep.run_trial(0, 0.75), sweep.run_trial(1, 0.5)
    for _ in range(2):
        finish(sweep, key)
    (model,) = logged(sweep)
    parent = sweep.runs()["sweep"].info
    assert (model.name, model.status, model.source_run_id) == ("model", "READY", parent.run_id)
    assert model.params == {"variant": "cnn2", "lr": str(sweep.config(0).lr)}
    assert {metric.key: metric.value for metric in model.metrics} == {"best_val_top1": 0.75}
    assert model.tags["sweep.model"] == f"{key} epoch 2"
    assert outputs_of(sweep, "sweep") == outputs_of(sweep, key) == [model.model_id]
    assert outputs_of(sweep, other) == []
    assert sweep.values(key, "best_val_top1") == [(0, 0.75)]
    link = f"(#/experiments/{parent.experiment_id}/models/{model.model_id}?workflowType=machine_lea"
    assert link in sweep.runs()["sweep"].data.tags["mlflow.note.content"]


def test_a_better_model_is_the_one_that_is_found(
    sweep: Sweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    first = sweep.run_trial(0, 0.5)
    finish(sweep, first, "steps")
    second = sweep.run_trial(1, 0.75)
    finish(sweep, second, "steps")
    assert len(logged(sweep)) == 2
    parent = sweep.runs()["sweep"].info.run_id
    files, kind, _ = fetch_files(parent, sweep.uri, tmp_path)
    assert (kind, (files / "model.json").read_text()) == ("exported", second)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sweep.uri)
    place = mlflow.artifacts.download_artifacts(f"runs:/{parent}/model/MLmodel")
    assert Path(place).read_text() == f"model of {second}"
    assert [v.tags["sweep.model"].split()[0] for v in versions(sweep, "steps")] == [first, second]


def test_a_model_that_a_user_deleted_is_logged_again(sweep: Sweep, tmp_path: Path) -> None:
    key = sweep.run_trial(0, 0.5)
    finish(sweep, key)
    (deleted,) = logged(sweep)
    sweep.client.delete_logged_model(deleted.model_id)
    finish(sweep, key)
    (model,) = logged(sweep)
    assert model.model_id != deleted.model_id
    files, kind, _ = fetch_files(sweep.runs()["sweep"].info.run_id, sweep.uri, tmp_path)
    assert (kind, (files / "model.json").read_text()) == ("exported", key)


def test_a_model_is_registered_once(sweep: Sweep) -> None:
    key = sweep.run_trial(0, 0.5)
    name = "my digits.v1"
    first = finish(sweep, key, name).registered
    again = finish(sweep, key, name).registered
    (version,) = versions(sweep, name)
    (model,) = logged(sweep)
    for one in (first, again):
        assert one is not None
        assert (one.name, str(one.version)) == (name, "1")
    assert version.run_id == sweep.runs()["sweep"].info.run_id
    assert sweep.client.get_model_version_download_uri(name, "1") == model.artifact_location
    assert model.tags["mlflow.modelVersions"] == '[{"name": "my digits.v1", "version": "1"}]'
    finish(sweep, key, "another name")
    assert len(versions(sweep, "another name")) == len(versions(sweep, name)) == 1
    assert len(logged(sweep)) == 1


CALLS = (
    *("search_logged_models", "create_logged_model", "log_model_artifacts", "log_outputs"),
    *("finalize_logged_model", "create_registered_model", "search_model_versions"),
    *("create_model_version", "set_logged_model_tags", "log_batch"),
)


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_store_that_fails_at_any_call_has_one_model_and_one_version(
    storage: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_lost: bool,
) -> None:
    """The call fails as often as it is retried, before or after it is carried out."""
    import mlflow

    real = mlflow.MlflowClient
    for failing in CALLS:
        name = f"{failing}-{is_lost}"
        sweep = Sweep(storage, name, clock=Clock(sleep=lambda seconds: None))
        key = sweep.run_trial(0, 0.5)
        sweep.tracker.sync()
        client = real(tracking_uri=sweep.uri)
        left = [3]
        original = getattr(client, failing)

        def call(
            *args: Any, original: Any = original, left: list[int] = left, **kwargs: Any
        ) -> Any:
            result = original(*args, **kwargs) if is_lost or not left[0] else None
            if left[0]:
                left[0] -= 1
                raise ConnectionError("the reply is lost" if is_lost else "the store is down")
            return result

        setattr(client, failing, call)
        monkeypatch.setattr(mlflow, "MlflowClient", lambda tracking_uri, to=client: to)
        with contextlib.suppress(ConnectionError):
            finish(sweep, key, name)
        monkeypatch.setattr(mlflow, "MlflowClient", real)
        assert left[0] < 3, failing
        finish(sweep, key, name)
        (model,) = logged(sweep)
        assert model.status == "READY", failing
        assert outputs_of(sweep, "sweep") == outputs_of(sweep, key) == [model.model_id], failing
        assert len(versions(sweep, name)) == 1, failing
        assert [metric.key for metric in model.metrics] == ["best_val_top1"]


def test_a_model_of_a_late_request_is_removed(sweep: Sweep) -> None:
    key = sweep.run_trial(0, 0.5)
    finish(sweep, key)
    (model,) = logged(sweep)
    tags = {name: model.tags[name] for name in ("sweep.id", "sweep.model")}
    sweep.client.create_logged_model(model.experiment_id, name="model", tags=tags)
    assert len(logged(sweep)) == 2
    finish(sweep, key)
    assert [one.model_id for one in logged(sweep)] == [model.model_id]


def test_the_model_folder_of_an_earlier_version_is_replaced(
    sweep: Sweep,
    tmp_path: Path,
) -> None:
    key = sweep.run_trial(0, 0.5)
    old = output(sweep, key)
    artifacts.upload_output(sweep.tracker._connect(), old)
    parent = sweep.runs()["sweep"].info.run_id
    files, kind, _ = fetch_files(parent, sweep.uri, tmp_path)
    assert (kind, (files / "model.json").read_text()) == ("exported", key)
    finish(sweep, key)
    assert "model/MLmodel" not in sweep.files("sweep")
    assert "sweep.model" not in sweep.runs()["sweep"].data.tags
    assert len(logged(sweep)) == 1


def test_a_moved_folder_keeps_its_models(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "old", "moved")
    finish(sweep, sweep.run_trial(0, 0.5), "moved")
    sweep.ledger.close()
    (tmp_path / "old").rename(tmp_path / "new")
    paths = SweepPaths(tmp_path / "new", "moved")
    assert relocate(paths) == ["moved"]
    sweep.uri, sweep.paths = paths.default_tracking_uri, paths
    (model,) = logged(sweep)
    here = (tmp_path / "new/mlartifacts/moved").as_uri()
    assert model.artifact_location.startswith(f"{here}/models/")
    (version,) = versions(sweep, "moved")
    assert version.source == model.artifact_location
    assert sweep.client.get_model_version_download_uri("moved", "1") == model.artifact_location
    fetch_files(sweep.runs()["sweep"].info.run_id, sweep.uri, tmp_path)


def test_a_name_that_is_taken_by_a_prompt_is_refused_before_the_sweep(sweep: Sweep) -> None:
    sweep.tracker.sync()
    sweep.client.create_prompt("greeting")
    sweep.ledger.put("options", {"register": "greeting"})
    with pytest.raises(UsageError, match=r"'greeting' at sqlite:.* A prompt in MLflow has this"):
        choose_registered_name(sweep.ledger, sweep.uri)
    sweep.ledger.put("options", {"register": "new"})
    assert choose_registered_name(sweep.ledger, sweep.uri) == "new"
    # A server that is down is waited for; a store that does not exist is created.
    assert choose_registered_name(sweep.ledger, "http://127.0.0.1:9") == "new"
    assert choose_registered_name(sweep.ledger, "sqlite:////nowhere/mlflow.db") == "new"
    sweep.ledger.put("options", {})
    assert choose_registered_name(sweep.ledger, sweep.uri) is None


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (403, "This user has no write access to the server."),
        (404, "The server has no model registry."),
    ],
)
def test_a_server_that_registers_nothing_is_refused_before_the_sweep(
    sweep: Sweep,
    status: int,
    sentence: str,
) -> None:
    """As behind a proxy that passes on only some addresses."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    sweep.ledger.put("options", {"register": "digits"})
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UsageError, match=sentence):
            choose_registered_name(sweep.ledger, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
