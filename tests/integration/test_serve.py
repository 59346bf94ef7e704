"""MLflow loads and serves an exported model, with the same predictions as the command."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from PIL import Image

from orchestrator.ledger.ledger import open_ledger
from orchestrator.predict import __main__ as predict
from orchestrator.predict import mlflow_model
from orchestrator.sweep import outputs
from tests.orchestrator.trained import Trained, train_sweep, write_test_images

# MLflow's own type hints cause warnings when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:mlflow")

LIMIT_S = 180


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits_data_dir: Path) -> Trained:
    return train_sweep(tmp_path_factory.mktemp("storage"), digits_data_dir)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    target = tmp_path_factory.mktemp("exported") / "model"
    with closing(open_ledger(trained.paths.ledger)) as ledger:
        assert outputs.export_best(ledger, trained.paths, trained.manifest, target)
    return target


@pytest.fixture
def posted(trained: Trained, tmp_path: Path) -> list[Path]:
    """Two stored digits, and one like a user's photograph: large, wide, JPEG."""
    files, _ = write_test_images(trained.data_dir, tmp_path, 2)
    with Image.open(files[0]) as digit:
        photo = Image.new("RGB", (400, 240), "black")
        photo.paste(digit.resize((240, 240)).convert("RGB"), (80, 0))
    photo.save(tmp_path / "photo.jpg")
    return [*files, tmp_path / "photo.jpg"]


def as_column(files: list[Path]) -> list[str]:
    return [base64.b64encode(file.read_bytes()).decode() for file in files]


def from_command(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    assert predict.main([*map(str, words), "--json"]) == 0
    predictions: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["predictions"]
    return predictions


def assert_same(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(got) == len(expected) > 0
    for ours, theirs in zip(got, expected, strict=True):
        assert ours["labels"] == theirs["labels"]
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-6)


def test_an_exported_model_has_no_pickle_and_the_signature_of_the_command(exported: Path) -> None:
    names = {path.suffix for path in exported.rglob("*") if path.is_file()}
    assert names == {"", ".yaml", ".txt", ".json", ".safetensors", ".py", ".html", ".sh"}
    about = yaml.safe_load((exported / "MLmodel").read_text())
    loader = about["flavors"]["python_function"]["loader_module"]
    assert loader == "orchestrator.predict.mlflow_model"
    assert json.loads(about["signature"]["inputs"]) == [
        {"type": "string", "name": "image", "required": True}
    ]
    assert [column["name"] for column in json.loads(about["signature"]["outputs"])] == [
        "labels",
        "probabilities",
    ]
    assert about["metadata"]["class_names"] == list("0123456789")
    assert about["metadata"]["variant"] == "cnn3"
    required = (exported / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z-]+==[\w.+]+", line) for line in required)


def test_mlflow_loads_an_exported_model(
    capsys: pytest.CaptureFixture[str], trained: Trained, exported: Path, posted: list[Path]
) -> None:
    at = ("--storage", trained.storage, "--data-dir", trained.data_dir)
    expected = from_command(capsys, "tiny", *posted, *at)
    model = mlflow.pyfunc.load_model(str(exported))
    assert_same(model.predict(pd.DataFrame({"image": as_column(posted)})), expected)
    example = model.input_example
    assert len(model.predict(example)[0]["labels"]) == 5
    with pytest.raises(MlflowException, match="row 1 does not"):
        model.predict(pd.DataFrame({"image": [*as_column(posted[:1]), "*no base64*"]}))
    with pytest.raises(MlflowException, match="'row 0' cannot be used: it is no image"):
        model.predict(pd.DataFrame({"image": [base64.b64encode(b"text").decode()]}))


@contextmanager
def served(uri: str, cwd: Path, **env: str) -> Iterator[str]:
    """Run `mlflow models serve`; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # mlflow starts uvicorn by name; it is in the folder of this Python.
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri),
        *("--host", "127.0.0.1", "--port", str(port), "--env-manager", "local"),
    ]
    log = cwd / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            command,
            cwd=cwd,
            env={**kept, **env},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            until_s = time.monotonic() + LIMIT_S
            while not _is_up(address):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until_s, log.read_text()
                time.sleep(0.5)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def post(address: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{address}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_served_model_predicts_as_the_command_does(
    capsys: pytest.CaptureFixture[str],
    trained: Trained,
    exported: Path,
    posted: list[Path],
    tmp_path: Path,
) -> None:
    """From an MLflow run, in another folder, without this project on the path."""
    store = tmp_path / "store"
    store.mkdir()
    uri = f"sqlite:///{store / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("tiny", artifact_location=(store / "files").as_uri())
    run = client.create_run(experiment).info.run_id
    client.log_artifacts(run, str(exported), mlflow_model.ARTIFACT)

    at = ("--storage", trained.storage, "--data-dir", trained.data_dir)
    expected = from_command(capsys, "tiny", *posted, *at)
    # The model comes from MLflow alone: there is no ledger and no dataset.
    nowhere = ("--storage", store / "none", "--data-dir", store / "none")
    found = from_command(capsys, run, *posted, "--tracking-uri", uri, *nowhere)
    assert_same(found, expected)

    with served(f"runs:/{run}/{mlflow_model.ARTIFACT}", tmp_path, MLFLOW_TRACKING_URI=uri) as http:
        images = as_column(posted)
        for body in (
            {"dataframe_split": {"columns": ["image"], "data": [[one] for one in images]}},
            {"dataframe_records": [{"image": one} for one in images]},
            {"inputs": {"image": images}},
        ):
            status, answer = post(http, body)
            assert status == 200, answer
            assert_same(answer["predictions"], expected)
        status, answer = post(http, {"dataframe_records": [{"image": "AAAA"}]})
        assert status == 400
        assert "The image 'row 0' cannot be used" in answer["message"]
        status, answer = post(http, {"dataframe_records": [{"picture": images[0]}]})
        assert status == 400
        assert "image" in answer["message"]


def test_the_weights_in_a_trials_run_can_be_used(
    capsys: pytest.CaptureFixture[str], trained: Trained, posted: list[Path], tmp_path: Path
) -> None:
    """With the files that `tracking` uploads for the best trials."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("tiny", artifact_location=(tmp_path / "files").as_uri())
    run, empty = (client.create_run(experiment, run_name=n).info.run_id for n in ("a", "b"))
    client.log_artifact(run, str(trained.checkpoint / "model.safetensors"), "weights")
    recipe = {"config": trained.config.to_dict(), "best_epoch": 1}
    client.log_dict(run, recipe, "weights/model.json")
    at = ("--storage", trained.storage, "--data-dir", trained.data_dir)
    expected = from_command(capsys, "tiny", *posted, *at)
    assert_same(from_command(capsys, run, *posted, "--tracking-uri", uri, *at), expected)
    for wrong, message in ((empty, "has no model"), ("0" * 32, "cannot be read from")):
        assert predict.main([wrong, str(posted[0]), "--tracking-uri", uri]) == 2
        assert message in capsys.readouterr().err
    client.log_dict(run, {"config": {}}, "weights/model.json")
    assert predict.main([run, str(posted[0]), "--tracking-uri", uri]) == 2
    assert "has an incomplete model" in capsys.readouterr().err
