"""Uploads a sweep's files to its MLflow runs and removes them: weights, logs, report, model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.ledger import retention
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Attempt, Trial
from orchestrator.storage import sweeps
from orchestrator.storage.paths import SweepPaths
from orchestrator.tracking.client import with_retries
from orchestrator.tracking.runs import INCOMPLETE, NO_WEIGHTS, WEIGHTS_TAG, SweepRuns, TrialRun

_WEIGHTS = "weights"  # folder in a run's artifacts


@dataclass(frozen=True, slots=True)
class Output:
    """A folder that a sweep writes at its end; two copies with the same `version` are equal."""

    name: str
    folder: Path
    version: str


def upload_output(runs: SweepRuns, output: Output) -> None:
    """Upload an output to the sweep's own run, unless that has this version of it."""
    run_id, tag = runs.parent_id, f"sweep.{output.name}"
    if runs.client.get_run(run_id).data.tags.get(tag) != output.version:
        _clear(runs, run_id, output.name, tag)
        runs.client.log_artifacts(run_id, str(output.folder), output.name)
        runs.client.set_tag(run_id, tag, output.version)


def delete_output(runs: SweepRuns, name: str, tag: str) -> None:
    """Remove an output and its tag from the sweep's own run."""
    _clear(runs, runs.parent_id, name, tag)
    runs.client.delete_tag(runs.parent_id, tag)
    runs.reload_parent()


def upload_logs(
    runs: SweepRuns, run_id: str, paths: SweepPaths, attempts: Sequence[Attempt]
) -> None:
    """Upload the log and the failure text of each attempt at a trial."""
    for attempt in attempts:
        path = sweeps.local_file(paths, attempt.log) if attempt.log else None
        if path is not None:
            runs.client.log_artifact(run_id, str(path), "logs")
        if attempt.failure_text:
            name = f"logs/attempt_{attempt.attempt}_failure.txt"
            runs.client.log_text(run_id, attempt.failure_text, name)


def weights_tag(trial: Trial) -> str:
    """Return the value of WEIGHTS_TAG for the weights of a trial's best epoch."""
    return NO_WEIGHTS if trial.best_epoch is None else f"epoch {trial.best_epoch + 1}"


def upload_weights(
    runs: SweepRuns, run: TrialRun, ledger: Ledger, paths: SweepPaths, trial: Trial
) -> None:
    """Replace the weights in a trial's run by those of its best epoch, if they still exist."""
    source = retention.best_weights(ledger, paths, trial)
    if source is not None:
        _clear(runs, run.run_id, _WEIGHTS, WEIGHTS_TAG)
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "model.safetensors"
            link.symlink_to(source.absolute())
            runs.client.log_artifact(run.run_id, str(link), _WEIGHTS)
        # Last: without this file the weights do not count as complete.
        recipe = _rebuild_recipe(ledger, trial)
        runs.client.log_dict(run.run_id, recipe, f"{_WEIGHTS}/model.json")
        runs.client.set_tag(run.run_id, WEIGHTS_TAG, weights_tag(trial))
    run.weights = weights_tag(trial)


def delete_weights(runs: SweepRuns, run: TrialRun) -> None:
    """Remove the weights from a trial's run."""
    _clear(runs, run.run_id, _WEIGHTS, WEIGHTS_TAG)
    runs.client.delete_tag(run.run_id, WEIGHTS_TAG)
    run.weights = NO_WEIGHTS


def _rebuild_recipe(ledger: Ledger, trial: Trial) -> dict[str, Any]:
    """Return what is needed to build a trial's model and load its weights; epochs from 1."""
    assert trial.best_epoch is not None
    header = ledger.header()
    return {
        "config": trial.config,
        "dataset": header.dataset,
        "manifest": header.manifest,
        "best_epoch": trial.best_epoch + 1,
        "versions": header.versions,
        "how": "trainables.models.build.build_model(TrainConfig.from_dict(config), ...), then "
        "load_state_dict(safetensors.torch.load_file('model.safetensors'))",
    }


def _clear(runs: SweepRuns, run_id: str, folder: str, tag: str) -> None:
    """Empty a folder of a run's artifacts; its tag says first that the folder is incomplete."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    runs.client.set_tag(run_id, tag, INCOMPLETE)
    artifact_uri = runs.client.get_run(run_id).info.artifact_uri
    files = get_artifact_repository(artifact_uri, tracking_uri=runs.uri)
    if with_retries(files.list_artifacts, runs.client.clock)(folder):
        with_retries(files.delete_artifacts, runs.client.clock)(folder)
