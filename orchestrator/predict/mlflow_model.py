"""Exports a model in MLflow's format, serves it, and downloads models from MLflow runs.

An exported model is written by `mlflow.pyfunc.save_model` with this module as its loader. It has no
pickle, but weights, their description and a copy of the packages `orchestrator` and `trainables`.
So `mlflow models serve` can serve it wherever the libraries of its `requirements.txt` are
installed, without this project, and after this project has changed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import shlex
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.command import program
from orchestrator.errors import UsageError
from orchestrator.predict import model as predict_model
from orchestrator.predict.model import TrainedModel
from orchestrator.storage.paths import MODEL
from orchestrator.storage.tracking_uri import sqlite_file
from orchestrator.tracking.client import reason
from orchestrator.tracking.database import upgrade_from
from trainables import files

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from trainables.data.dataset import Manifest
    from trainables.evaluation.classifier import Classifier

ARTIFACT = MODEL  # folder of the exported model in a run's artifacts
_WEIGHTS = "weights"  # folder of a trial's weights in its run's artifacts
_CLASSIFIER = "classifier"  # folder in the exported model that `write_folder` wrote
# What the two packages need for predictions. Other libraries are imported only for other tasks.
_REQUIREMENTS = (
    *("mlflow", "torch", "torchvision", "timm", "safetensors", "numpy", "pandas", "pillow"),
    *("pyarrow", "scikit-learn"),
)


def export_model(model: TrainedModel, target: Path, example: bytes | None = None) -> None:
    """Write a model as a folder that MLflow can load, serve and register.

    Its input is a column "image" of base64-encoded image files, of any size and any format that
    datasets may have. Its output is "labels" and "probabilities", best first.

    The folder is created whole or not at all. `example` is an image file for the input example;
    None: a grey image.

    Raises:
        FileExistsError: the target exists.
    """
    if target.exists():
        raise FileExistsError(target)
    with files.temporary(target) as written:
        with tempfile.TemporaryDirectory() as folder:
            classifier = Path(folder) / _CLASSIFIER
            classifier.mkdir()
            predict_model.write_folder(model, classifier)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # MLflow's own imports warn
                _save(classifier, model, written, example or _grey_image(model.manifest))
        files.put_in_place(written, target, durable=False)


def _save(classifier: Path, model: TrainedModel, target: Path, example: bytes) -> None:
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    import orchestrator
    import trainables

    labels = ColSpec(Array(DataType.string), "labels")
    probabilities = ColSpec(Array(DataType.double), "probabilities")
    packages = (orchestrator, trainables)
    mlflow.pyfunc.save_model(
        path=str(target),
        loader_module=__name__,
        data_path=str(classifier),
        code_paths=[str(Path(package.__file__ or "").parent) for package in packages],
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.string, "image")]),
            outputs=Schema([labels, probabilities]),
        ),
        input_example=pd.DataFrame({"image": [base64.b64encode(example).decode()]}),
        pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
        metadata={**model.about, "class_names": list(model.manifest.class_names)},
    )


def _grey_image(manifest: Manifest) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (manifest.width_px, manifest.height_px), 128).save(file, "PNG")
    return file.getvalue()


def _load_pyfunc(path: str) -> _Served:
    """Return an exported model, for MLflow, which calls this function of its loader module."""
    return _Served(predict_model.load(predict_model.read_folder(Path(path))))


class _Served:
    """An exported model with the interface that MLflow expects."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def predict(
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> list[dict[str, list[Any]]]:
        """Return labels and probabilities for each image of the column "image".

        Raises:
            MlflowException: images are not base64 or cannot be decoded; it names each row.
        """
        from mlflow.exceptions import MlflowException

        try:
            named: list[tuple[str, bytes | Path]] = [
                (f"row {row}", _decoded(text, row)) for row, text in enumerate(model_input["image"])
            ]
            pixels = predict_model.read_images(named, self._classifier.manifest)
        except UsageError as error:  # the server responds with status 400 and this text
            raise MlflowException.invalid_parameter_value(str(error)) from error
        predictions = predict_model.predict(self._classifier, pixels)
        return [prediction.to_dict() for prediction in predictions]


def _decoded(text: Any, row: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UsageError(
            f"`image` must hold image files as base64 text, but row {row} does not ({error})."
        ) from error


def fetch_files(run_id: str, uri: str, target: Path) -> tuple[Path, str, dict[str, str]]:
    """Download the model of an MLflow run.

    Returns:
        The folder in `target` with the files, their kind ("exported" for an exported model,
        "weights" for the weights of a trial), and the run's tags.

    Raises:
        UsageError: the store cannot be reached, the run does not exist, or it has no model.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():  # MLflow would create one
        raise UsageError(f"There is no MLflow store at {uri}. Give its URI with --tracking-uri.")
    if upgrade_from(uri) is not None:
        raise UsageError(
            f"The MLflow database at {uri} is of an older version and must be upgraded before it "
            f"is read. Copy the file, then run `{program('mlflow')} db upgrade {shlex.quote(uri)}`."
        )
    # The user waits for this, so time out soon.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient(tracking_uri=uri)
    try:
        run = client.get_run(run_id)
        files, wanted = _artifacts(client, run, uri)
        if not wanted:
            raise UsageError(
                f"The MLflow run {run_id!r} has no model. The sweep's own run and the runs of the "
                "best trials of each variant have one. Give the id of such a run, or the sweep's "
                "name."
            )
        kind = "weights" if wanted == _WEIGHTS else "exported"
        return Path(files.download_artifacts(wanted, str(target))), kind, run.data.tags
    except (MlflowException, OSError) as error:
        raise UsageError(
            f"The MLflow run {run_id!r} cannot be read from {uri}: "
            f"{reason(error, uri)} Check the id and --tracking-uri."
        ) from error


def _artifacts(client: MlflowClient, run: Run, uri: str) -> tuple[ArtifactRepository, str]:
    """Return where the files of a run's model are, and the folder in there, "" without a model."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    files = get_artifact_repository(run.info.artifact_uri, tracking_uri=uri)
    held = {item.path for item in files.list_artifacts()}
    if _WEIGHTS in held:
        return files, _WEIGHTS
    if ARTIFACT in held:  # an earlier version of this program wrote it there
        return files, f"{ARTIFACT}/data/{_CLASSIFIER}"
    models = run.outputs.model_outputs if run.outputs else ()
    for model in sorted(models, key=lambda model: model.step, reverse=True):  # the best first
        with contextlib.suppress(MlflowException):  # a user has deleted it
            location = client.get_logged_model(model.model_id).artifact_location
            return get_artifact_repository(location, tracking_uri=uri), f"data/{_CLASSIFIER}"
    return files, ""
