"""Logs a sweep's best model in MLflow, where "Models" lists it, and registers it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.storage.tracking_uri import sqlite_file
from orchestrator.tracking import artifacts, database
from orchestrator.tracking.artifacts import Output
from orchestrator.tracking.client import advice, http_status, set_environment, with_retries
from orchestrator.tracking.runs import SWEEP_ID, SweepRuns, pages

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Metric
    from mlflow.entities.model_registry import ModelVersion

NAME = "model"  # of the logged model, so that `runs:/ID/model` is it
_VERSION = "sweep.model"  # tag: which trial and epoch the model is
_VERSIONS = "mlflow.modelVersions"  # MLflow's tag of a logged model with its registered versions


def log_model(
    runs: SweepRuns,
    output: Output,
    params: Mapping[str, str],
    metrics: Sequence[Metric],
    trial_run: str | None,
    step: int,
) -> LoggedModel:
    """Return the logged model with this version of the output; it is created if missing.

    It belongs to the sweep's own run and to the run of the trial that trained it, with the
    `metrics` of that. Earlier best models stay, since they may be registered; the best one has the
    highest `step` among the models of the sweep's run.
    """
    from mlflow.entities import Metric

    model = _find_or_create(runs, output.version, params)
    if model.status != "READY":
        runs.client.log_model_artifacts(model.model_id, str(output.folder))
        if trial_run is not None and metrics:
            own = [
                Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id)
                for m in metrics
            ]
            runs.client.log_batch(trial_run, metrics=own)
        # Last: a model that is not ready does not count as complete.
        runs.client.finalize_logged_model(model.model_id, "READY")
    for run_id in (runs.parent_id, trial_run):
        if run_id is not None:
            _link(runs, run_id, model.model_id, step)
    if _VERSION in runs.parent.data.tags:  # an earlier version of this program wrote it there
        artifacts.delete_output(runs, NAME, _VERSION)
    return model


def _find_or_create(runs: SweepRuns, version: str, params: Mapping[str, str]) -> LoggedModel:
    tags = {SWEEP_ID: runs.identity[SWEEP_ID], _VERSION: version}

    def once() -> Any:
        """Search first: an earlier request may have been carried out and its reply lost."""
        client, found = runs.client.without_retries, []
        for model in pages(client.search_logged_models, list(runs.experiments), f"name = '{NAME}'"):
            if tags.items() <= model.tags.items():
                found.append(model)
        found.sort(key=lambda model: (model.status != "READY", model.creation_timestamp))
        for twin in found[1:]:  # from a request that was carried out after we had given up
            if twin.status != "READY":
                client.delete_logged_model(twin.model_id)
        return found[0] if found else _create(client)

    def _create(client: Any) -> Any:
        return client.create_logged_model(
            runs.experiment,
            name=NAME,
            source_run_id=runs.parent_id,
            tags={**runs.identity, _VERSION: version},
            params=dict(params),
        )

    model: LoggedModel = with_retries(once, runs.client.clock)()
    return model


def _link(runs: SweepRuns, run_id: str, model_id: str, step: int) -> None:
    """Make a model an output of a run, once."""
    from mlflow.entities import LoggedModelOutput

    def once() -> None:
        outputs = runs.client.without_retries.get_run(run_id).outputs
        if model_id not in {one.model_id for one in (outputs.model_outputs if outputs else ())}:
            runs.client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])

    with_retries(once, runs.client.clock)()


def refusal(uri: str, name: str) -> str | None:
    """Return why no model can be registered under a name, None if one can.

    A store that does not answer is no reason: what MLflow misses is written when it is back.
    """
    file = sqlite_file(uri)
    if file is not None and (not file.is_file() or database.upgrade_from(uri) is not None):
        return None  # it will be created or upgraded
    set_environment()
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    try:
        client.search_model_versions(f"name = '{name}'", max_results=1)
        is_prompt = client.get_prompt(name) is not None  # hides errors, hence the search
    except Exception as error:
        if http_status(error) in (404, 405, 501):
            return "The server has no model registry."
        return advice(error, uri)
    return "A prompt in MLflow has this name; choose another one." if is_prompt else None


def register(runs: SweepRuns, model: LoggedModel, name: str) -> ModelVersion:
    """Return the version of a registered model that is this model; it is created if missing."""
    from mlflow.exceptions import MlflowException

    try:
        runs.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {SWEEP_ID: runs.identity[SWEEP_ID], _VERSION: model.tags[_VERSION]}

    def once() -> Any:
        client = runs.client.without_retries
        for version in pages(client.search_model_versions, f"name = '{name}'"):
            if tags.items() <= version.tags.items():
                return version
        # The artifacts' place, since MLflow looks up `models:/ID` in a store of its own choice.
        place, run_id = model.artifact_location, model.source_run_id
        return client.create_model_version(
            name, place, run_id=run_id, tags=tags, model_id=model.model_id
        )

    version: ModelVersion = with_retries(once, runs.client.clock)()
    _note_version(runs, model.model_id, version)
    return version


def _note_version(runs: SweepRuns, model_id: str, version: ModelVersion) -> None:
    """Let the logged model's page name the version; a server has done so itself."""
    own = {"name": version.name, "version": str(version.version)}
    known = json.loads(runs.client.get_logged_model(model_id).tags.get(_VERSIONS, "[]"))
    if own not in ({**each, "version": str(each["version"])} for each in known):
        runs.client.set_logged_model_tags(model_id, {_VERSIONS: json.dumps([*known, own])})
