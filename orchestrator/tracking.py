"""The only door to MLflow: projects the ledger there from a background thread.

MLflow is a view. One parent run per sweep and one child per trial are found by tag before they
are created; metrics carry timestamps from the ledger, so writing them twice changes nothing; the
position up to which the ledger is projected is stored in the ledger. An MLflow that is down costs
a later pass.
"""

from __future__ import annotations

import math
import os
import shlex
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import durability, retention
from orchestrator.ledger import ENDED, Attempt, Ledger, Trial
from orchestrator.paths import SweepPaths

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SWEEP, _SIGNATURE, _OUTCOME = "sweep.id", "sweep.signature", "sweep.outcome"
_WEIGHTS = "weights"
# MLflow takes 1000 metrics, parameters and tags at a time (mlflow/utils/validation.py).
_PER_BATCH = 900

# MLflow's word for each way a trial stands; `sweep.outcome` holds ours.
_STATUS = {
    "complete": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "planned": "SCHEDULED",
}


class Tracker:
    """Writes one sweep's ledger into MLflow. Used by one thread at a time."""

    def __init__(self, ledger: Ledger, paths: SweepPaths, uri: str) -> None:
        self.ledger, self.paths, self.uri = ledger, paths, uri
        self._client: MlflowClient | None = None
        self.experiment = ""
        self._parent = ""
        self._runs: dict[str, str] = {}  # signature: run id
        self._begun: set[str] = set()  # signatures whose runs have all that is written once
        self._with_weights: set[str] | None = None
        self._up_to = math.inf

    def sync(self, *, up_to: int | None = None) -> int:
        """Project everything that changed since the stored position; return how many trials.

        Args:
            up_to: number of the last change that may be told, None for all.

        Raises:
            Exception: whatever MLflow raised. What was not projected will be by the next call.
        """
        position = self.ledger.get("tracking_seq", 0)
        self._up_to = math.inf if up_to is None else up_to
        changed = [
            trial
            for trial in self.ledger.trials(changed_after=position)
            if position < self._up_to and trial.planned_seq <= self._up_to
        ]
        try:
            self._connect()
            for trial in sorted(changed, key=lambda trial: trial.changed_seq):
                self._project(self._as_told(trial), position)
            if changed:
                self._place_weights()
                last = max(trial.changed_seq for trial in changed)
                self.ledger.put("tracking_seq", int(min(last, self._up_to)))
        except Exception:
            # A reply may have been lost after the server acted: look everything up again.
            self._client, self._runs, self._with_weights = None, {}, None
            raise
        return len(changed)

    def finish(self, outcome: str, facts: Mapping[str, Any]) -> None:
        """Give the parent run its status and the sweep's figures.

        Args:
            outcome: "complete", "failed" or "interrupted".
            facts: metrics of the parent run, by name.
        """
        self._connect()
        assert self._client is not None
        known = self._client.get_run(self._parent).data.metrics
        for name, value in facts.items():
            if known.get(name) != value:  # a command that had nothing to do says nothing twice
                self._client.log_metric(self._parent, name, value)
        self._client.set_tag(self._parent, _OUTCOME, outcome)
        self._client.set_terminated(self._parent, _STATUS[outcome])

    def _connect(self) -> None:
        """Find or create experiment and parent run, and learn which trials have a run."""
        if self._client is not None:
            return
        # A thread of ours waits, no trial does; so ask seldom and give up soon.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=self.uri)
        self.experiment = self._find_experiment(client)
        sweep_id = self.ledger.get("sweep_id")
        found: dict[str, str] = {}
        self._begun = set()
        token = None
        while True:
            page = client.search_runs(
                [self.experiment],
                f"tags.`{_SWEEP}` = '{sweep_id}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                signature = run.data.tags.get(_SIGNATURE, "")
                found[signature] = run.info.run_id
                if _OUTCOME in run.data.tags:
                    self._begun.add(signature)
            token = page.token
            if not token:
                break
        parent = found.pop("", None)
        if parent is None:
            parent = client.create_run(
                self.experiment,
                start_time=int(self.ledger.get("created_s") * 1000),
                run_name=self.paths.name,
                tags={_SWEEP: sweep_id, "mlflow.source.name": "orchestrator.sweep"},
            ).info.run_id
        if "" not in self._begun:
            client.log_dict(parent, self.ledger.get("plan"), "plan.json")
            client.set_tag(parent, _OUTCOME, "running")
        client.update_run(parent, status="RUNNING")
        self._parent, self._runs, self._client = parent, found, client

    def _find_experiment(self, client: MlflowClient) -> str:
        name = self.paths.name
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)
        # A server knows where its artifacts go; a bare database file does not.
        location = None
        if self.uri.startswith("sqlite:"):
            location = (self.paths.artifacts / name).absolute().as_uri()
        return str(client.create_experiment(name, artifact_location=location))

    def _project(self, trial: Trial, position: int) -> None:
        from mlflow.entities import Metric, Param, RunTag

        assert self._client is not None
        attempts = self.ledger.attempts(trial.signature)
        outcome = _outcome(trial, attempts) if trial.changed_seq <= self._up_to else trial.status
        run_id = self._runs.get(trial.signature)
        params: list[Param] = []
        rows = self.ledger.epochs(trial.signature, after=position)
        if run_id is None:
            started_s = attempts[0].started_s if attempts else self.ledger.get("created_s")
            run = self._client.create_run(
                self.experiment,
                start_time=int(started_s * 1000),
                run_name=f"{trial.variant}-{trial.number:03d}",
                tags={
                    _SWEEP: self.ledger.get("sweep_id"),
                    _SIGNATURE: trial.signature,
                    "mlflow.parentRunId": self._parent,
                    "mlflow.source.name": "orchestrator.sweep",
                    "variant": trial.variant,
                },
            )
            run_id = self._runs[trial.signature] = run.info.run_id
        if trial.signature not in self._begun:
            params = [Param(name, str(value)) for name, value in trial.config.items()]
            self._client.log_dict(run_id, trial.config, "config.json")
            # A run that was lost, or created in a pass that failed, is written from the beginning.
            rows = self.ledger.epochs(trial.signature)
        rows = [row for row in rows if row.seq <= self._up_to]
        tags = {_OUTCOME: outcome, "attempts": str(len(attempts))}
        if attempts and attempts[-1].micro_batch_size:
            tags["micro_batch_size"] = str(attempts[-1].micro_batch_size)
        failed = [attempt for attempt in attempts if attempt.outcome == "failed"]
        if failed:
            tags["failure.class"] = str(failed[-1].failure_class)
        metrics = [
            Metric(name, value, int(row.arrived_s * 1000), row.epoch)
            for row in rows
            for name, value in row.metrics.items()
            if math.isfinite(value)
        ]
        if trial.best_value is not None and trial.ended_seq is not None:
            ended_ms = int((attempts[-1].ended_s or 0) * 1000)
            metric = self.ledger.get("plan")["space"]["metric"]
            metrics.append(Metric(f"best_{metric}", trial.best_value, ended_ms, 0))
        while metrics or params:
            self._client.log_batch(run_id, metrics=metrics[:_PER_BATCH], params=params)
            metrics, params = metrics[_PER_BATCH:], []
        # Last, since the tags say that the rest is there.
        tagged = [RunTag(name, value) for name, value in tags.items()]
        self._client.log_batch(run_id, tags=tagged)
        self._begun.add(trial.signature)
        if trial.status in ENDED or outcome == "interrupted":
            self._log_files(run_id, attempts)
            ended_ms = int((attempts[-1].ended_s or 0) * 1000)
            self._client.set_terminated(run_id, _STATUS[outcome], ended_ms)
        else:
            self._client.update_run(run_id, status=_STATUS[outcome])

    def _as_told(self, trial: Trial) -> Trial:
        """Return a trial as it was when the last change that may be told was made."""
        if (trial.ended_seq or 0) <= self._up_to:
            return trial
        return replace(trial, status="running", ended_seq=None, best_epoch=None, best_value=None)

    def _log_files(self, run_id: str, attempts: Sequence[Attempt]) -> None:
        assert self._client is not None
        for attempt in attempts:
            path = durability.local_file(self.paths, attempt.log) if attempt.log else None
            if path is not None:
                self._client.log_artifact(run_id, str(path), "logs")
            if attempt.failure_text:
                self._client.log_text(
                    run_id, attempt.failure_text, f"logs/attempt_{attempt.attempt}_failure.txt"
                )

    def _place_weights(self) -> None:
        """Put the weights of the best trials of each variant into MLflow, and take others out."""
        assert self._client is not None
        plan = self.ledger.get("plan")
        trials = [self._as_told(trial) for trial in self.ledger.trials()]
        best = retention.best_signatures(
            trials, self.ledger.get("keep_best"), plan["space"]["mode"]
        )
        if self._with_weights is None:
            self._with_weights = {
                signature for signature, run_id in self._runs.items() if self._has_weights(run_id)
            }
        for trial in trials:
            run_id = self._runs.get(trial.signature)
            if run_id is None:
                continue
            if trial.signature in best - self._with_weights:
                self._log_weights(run_id, trial)
                self._with_weights.add(trial.signature)
            elif trial.signature in self._with_weights - best:
                self._delete_weights(run_id)
                self._with_weights.discard(trial.signature)

    def _has_weights(self, run_id: str) -> bool:
        """Return whether a run has its weights; what a failed pass left of them is removed."""
        assert self._client is not None
        files = {file.path for file in self._client.list_artifacts(run_id, _WEIGHTS)}
        whole = f"{_WEIGHTS}/model.json" in files  # written last
        if files and not whole:
            self._delete_weights(run_id)
        return whole

    def _log_weights(self, run_id: str, trial: Trial) -> None:
        assert self._client is not None
        source = retention.best_weights(self.ledger, self.paths, trial)
        if source is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "model.safetensors"
            link.symlink_to(source.absolute())
            self._client.log_artifact(run_id, str(link), _WEIGHTS)
        self._client.log_dict(run_id, rebuild_recipe(self.ledger, trial), f"{_WEIGHTS}/model.json")

    def _delete_weights(self, run_id: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        assert self._client is not None
        uri = self._client.get_run(run_id).info.artifact_uri
        get_artifact_repository(uri, tracking_uri=self.uri).delete_artifacts(_WEIGHTS)


def rebuild_recipe(ledger: Ledger, trial: Trial) -> dict[str, Any]:
    """Return what it takes to build the model again and load its weights."""
    return {
        "config": trial.config,
        "dataset": ledger.get("dataset"),
        "best_epoch": trial.best_epoch,
        "versions": ledger.get("versions"),
        "how": "trainables.models.build_model(TrainConfig.from_dict(config), ...), then "
        "load_state_dict(safetensors.torch.load_file('model.safetensors'))",
    }


def _outcome(trial: Trial, attempts: Sequence[Attempt]) -> str:
    """Return how a trial stands; one that waits for its next attempt is interrupted."""
    if trial.status == "running" and (not attempts or attempts[-1].outcome is not None):
        return "interrupted"
    return trial.status


def ui_command(uri: str) -> str | None:
    """Return the command that serves a database file's runs; None where a server does already."""
    if uri.startswith(("http://", "https://")):
        return None
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def page_address(uri: str, experiment: str, metric: str, mode: str) -> str:
    """Return the address of a page with the curves of all trials, the best one first.

    Args:
        uri: of the server; for a database file that of `mlflow ui` with its default port.
        experiment: MLflow's number of the sweep's experiment.
        metric: the sweep's.
        mode: its direction, "max" or "min".
    """
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    query = urllib.parse.urlencode(
        {
            # Sorted by a metric, trials stand beside their parent, not folded into it.
            "orderByKey": f"metrics.`best_{metric}`",
            "orderByAsc": "true" if mode == "min" else "false",
            "compareRunsMode": "CHART",
            # MLflow's page opens with the columns of language models unless told.
            "workflowType": "machine_learning",
        },
        quote_via=urllib.parse.quote,
    )
    return f"{server}/#/experiments/{experiment}/runs?{query}"
