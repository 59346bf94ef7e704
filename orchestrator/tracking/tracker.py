"""The only door to MLflow: projects the ledger there from a background thread.

MLflow is a view. One parent run per sweep and one child per trial are found by tag before they
are created; metrics carry timestamps from the ledger, so writing them twice changes nothing. How
much of a trial is written stands in its run, as a mark of the ledger's state that it shows: a
store that is new, was lost or came from an old copy is completed by the same rule as one that was
down. A trial that MLflow rejects holds up no other.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.ledger import ranking, retention
from orchestrator.ledger.header import read_header
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import ENDED, Attempt, Trial
from orchestrator.redaction import redacted
from orchestrator.storage import sweeps
from orchestrator.storage.paths import SweepPaths
from orchestrator.tracking import database
from orchestrator.tracking.artifacts import rebuild_recipe
from orchestrator.tracking.client import RetryingClient, patiently, reason
from orchestrator.tracking.tags import (
    INCOMPLETE,
    MARK,
    NO_WEIGHTS,
    OUTCOME,
    PARENT_RUN_ID,
    RUN_STATUS,
    SIGNATURE,
    SWEEP_ID,
    WEIGHTS_FOLDER,
    WEIGHTS_TAG,
)

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, Run, RunTag

    from orchestrator.tracking.artifacts import Product

# MLflow takes 1000 metrics, parameters and tags at a time (mlflow/utils/validation.py).
_PER_BATCH = 900


@dataclass(frozen=True, slots=True)
class RejectedTrial:
    """A trial that MLflow does not show as the ledger has it, because it rejects it."""

    reason: str
    tries: int
    due_s: float  # of time.monotonic


class Tracker:
    """Writes one sweep's ledger into MLflow. Used by one thread at a time."""

    def __init__(
        self,
        ledger: Ledger,
        paths: SweepPaths,
        uri: str,
        up_to: Callable[[], int] | None = None,
    ) -> None:
        """Prepare to write; nothing is asked of MLflow yet.

        Args:
            ledger: the sweep's.
            paths: its folder.
            uri: of MLflow's store.
            up_to: returns the number of the last change that may be told; None: all may.
        """
        self.ledger, self.paths, self.uri, self.up_to = ledger, paths, uri, up_to
        self.header = read_header(ledger)
        self.behind: dict[str, RejectedTrial] = {}  # by signature
        self.answered_s: float | None = None  # time.monotonic of MLflow's last sign of life
        self.experiment = ""
        self.products: Sequence[Product] = ()  # for the sweep's own run, at its end
        self._client: Any = None
        self._parent: Run | None = None
        self._runs: dict[str, str] = {}  # signature: run id
        self._written: dict[str, str] = {}  # signature: its run's mark, see _mark
        self._own: dict[str, tuple[str, str, int]] = {}  # run, mark and change that we wrote
        self._status: dict[str, str] = {}  # signature: of its run, in MLflow's words
        self._weights: dict[str, str] = {}  # signature: what _WEIGHTS_TAG says
        self._is_fresh = True  # connected, and weights not looked at since
        self._position = -1  # all trials that changed up to here are written, or in `behind`

    def sync(self, *, last: bool = False) -> int:
        """Write what changed since MLflow was written to; return how many trials that was.

        Args:
            last: also try what was rejected a moment ago, and leave the sweep's run as it stands.

        Raises:
            Exception: whatever MLflow raised. What was not written will be by the next call.
        """
        try:
            self._connect()
            assert self._parent is not None
            if not last and self._parent.info.status != "RUNNING":  # goes on after an end
                self._stand("running")
            todo = self._unwritten(last)
            for trial in todo:
                self._isolated(self._project, trial)
            if self.behind or self._is_fresh or any(trial.status in ENDED for trial in todo):
                self._place_weights(last)
                self._is_fresh = False
            self._note_behind()
        except Exception:
            # A reply may have been lost after the server acted: look everything up again.
            self._client = None
            raise
        return len(todo)

    def finish(self, outcome: str, facts: Mapping[str, Any]) -> None:
        """Write the rest, then give the sweep's run its status and figures.

        Args:
            outcome: "complete", "failed" or "interrupted".
            facts: metrics of the sweep's run, by name.

        Raises:
            Exception: whatever MLflow raised.
        """
        self.sync(last=True)
        try:
            self._log_facts(facts)
            self._place_products()
            self._stand(outcome)
        finally:
            # A server that was frozen may have acted late on what it was asked before. Look again.
            self._client = None
        self.sync(last=True)
        assert self._parent is not None
        stands = self._parent.info.status, self._parent.data.tags.get(OUTCOME)
        if stands != (RUN_STATUS[outcome], outcome):
            self._stand(outcome)

    def _connect(self) -> None:
        """Find or create experiment and parent run, and learn what each trial's run shows."""
        if self._client is not None:
            return
        # A thread of ours waits, no trial does; so give up soon. A request that is sent twice may
        # be done twice, so who sends it again is decided here (`Patient`).
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow

        if self.uri == self.paths.default_tracking_uri:
            database.relocate(self.paths)
        database.create(self.uri)
        client = RetryingClient(mlflow.MlflowClient(tracking_uri=self.uri))
        self.experiment = self._find_experiment(client)
        found = self._search(client)
        tags = {SWEEP_ID: self.header.sweep_id, "mlflow.source.name": "orchestrator.sweep"}
        parent = found.pop("", None) or self._find_or_create(
            client, "", self.paths.name, self.header.created_s, tags
        )
        if OUTCOME not in parent.data.tags:
            client.log_dict(parent.info.run_id, self.header.plan.to_dict(), "plan.json")
            client.set_tag(parent.info.run_id, OUTCOME, "running")
        self._runs, self._written, self._status, self._weights = {}, {}, {}, {}
        self._parent, self._client, self._position = parent, client, -1
        self._is_fresh = True
        for signature, run in found.items():
            self._learn(signature, run)
        self.answered_s = time.monotonic()

    def _find_experiment(self, client: RetryingClient) -> str:
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

    def _find_or_create(
        self,
        client: RetryingClient,
        signature: str,
        name: str,
        started_s: float,
        tags: dict[str, str],
    ) -> Run:
        def once() -> Run:
            """Search first: an earlier request may have been acted on and its answer lost."""
            found = self._search(client.impatient, signature).get(signature)
            return found or client.create_run(
                self.experiment, start_time=int(started_s * 1000), run_name=name, tags=tags
            )

        run: Run = patiently(once)()
        return run

    def _search(self, client: Any, signature: str = "") -> dict[str, Run]:
        """Return the sweep's runs by signature, or one trial's; the sweep's own under "".

        Doubled runs, from a request that was acted on after it had been given up, are deleted.
        """
        wanted = f"tags.`{SWEEP_ID}` = '{self.header.sweep_id}'"
        if signature:
            wanted += f" and tags.`{SIGNATURE}` = '{signature}'"
        runs: list[Run] = []
        token = None
        while True:
            page = client.search_runs([self.experiment], wanted, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                break
        found: dict[str, Run] = {}
        # The one that was written to is kept.
        for run in sorted(runs, key=lambda run: (OUTCOME not in run.data.tags, run.info.run_id)):
            key = run.data.tags.get(SIGNATURE, "")
            if key in found:
                client.delete_run(run.info.run_id)
            else:
                found[key] = run
        return found

    def _learn(self, signature: str, run: Run) -> None:
        """Remember what a trial's run shows, as far as it can be believed."""
        tags = run.data.tags
        self._runs[signature] = run.info.run_id
        self._status[signature] = run.info.status
        self._weights[signature] = tags.get(WEIGHTS_TAG, NO_WEIGHTS)
        assert self._parent is not None
        if (
            MARK in tags
            and run.info.status == RUN_STATUS.get(tags.get(OUTCOME, ""))
            and tags.get(PARENT_RUN_ID) == self._parent.info.run_id
        ):
            self._written[signature] = tags[MARK]

    def _mark(self, trial: Trial) -> str:
        """Return what tells whether a run shows a trial as it is: its state, and of which ledger.

        A ledger that was restored from an older copy counts its changes anew, from there; the time
        of an epoch's arrival does not come twice.
        """
        rows = self.ledger.epochs(trial.signature)
        last_ms = max((int(row.arrived_s * 1000) for row in rows), default=0)
        return f"{trial.changed_seq} {trial.status} {last_ms}"

    def _unwritten(self, last: bool) -> list[Trial]:
        """Return the trials to write now, in the order of their last change."""
        changed = self._told(self.ledger.trials(changed_after=self._position))
        names = {trial.signature for trial in changed}
        trials = changed + [self.ledger.trial(s) for s in self.behind if s not in names]
        self._position = max((trial.changed_seq for trial in changed), default=self._position)
        todo = [
            trial
            for trial in trials
            if self._written.get(trial.signature) != self._mark(trial)
            and (last or self._is_due(trial.signature))
        ]
        return sorted(todo, key=lambda trial: trial.changed_seq)

    def _told(self, trials: list[Trial]) -> list[Trial]:
        """Return the trials whose last change may be told."""
        up_to = math.inf if self.up_to is None else self.up_to()
        return [trial for trial in trials if trial.changed_seq <= up_to]

    def _is_due(self, signature: str) -> bool:
        behind = self.behind.get(signature)
        return behind is None or time.monotonic() >= behind.due_s

    def _isolated(self, write: Callable[[Trial], None], trial: Trial) -> None:
        """Write something of one trial; if only that fails, note it and go on.

        Raises:
            Exception: the store itself does not answer either.
        """
        key = trial.signature
        before = self.behind.pop(key, None)
        try:
            write(trial)
        except Exception as error:
            self._forget(key)
            self._weights[key] = INCOMPLETE
            assert self._parent is not None
            parent = self._client.get_run(self._parent.info.run_id)
            if parent.info.lifecycle_stage == "deleted":
                raise
            tries = before.tries + 1 if before else 1
            due_s = time.monotonic() + min(2.0**tries, 300)
            why = redacted(reason(error, self.uri))
            self.behind[key] = RejectedTrial(why, tries, due_s)
        self.answered_s = time.monotonic()

    def _forget(self, signature: str) -> None:
        for known in (self._runs, self._written, self._status, self._weights):
            known.pop(signature, None)

    def _note_behind(self) -> None:
        """Keep durably which trials MLflow rejects, and why."""
        note = {signature: behind.reason for signature, behind in sorted(self.behind.items())}
        if note != read_header(self.ledger).tracking_behind:
            self.ledger.put("tracking_behind", note)

    def _log_facts(self, facts: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        assert self._parent is not None
        run = self._client.get_run(self._parent.info.run_id)
        ended_s = [attempt.ended_s or 0.0 for attempt in self.ledger.attempts()]
        at_ms = int(max(ended_s, default=self.header.created_s) * 1000)
        new = [
            Metric(name, value, at_ms, len(self.ledger.trials()))
            for name, value in facts.items()
            if run.data.metrics.get(name) != value  # who had nothing to do says nothing twice
        ]
        if new:
            self._client.log_batch(run.info.run_id, metrics=new)

    def _place_products(self) -> None:
        """Put the sweep's report and model into its run, where it does not have them."""
        assert self._parent is not None
        run_id = self._parent.info.run_id
        tags = self._client.get_run(run_id).data.tags
        for product in self.products:
            tag = f"sweep.{product.name}"
            if tags.get(tag) != product.mark:
                self._clear(run_id, product.name, tag)
                self._client.log_artifacts(run_id, str(product.folder), product.name)
                self._client.set_tag(run_id, tag, product.mark)
                self.answered_s = time.monotonic()

    def _stand(self, outcome: str) -> None:
        """Give the sweep's run its outcome and status."""
        assert self._parent is not None
        run_id = self._parent.info.run_id
        self._client.set_tag(run_id, OUTCOME, outcome)
        if outcome == "running":
            self._client.update_run(run_id, status="RUNNING")
        else:
            self._client.set_terminated(run_id, RUN_STATUS[outcome])
        self._parent = self._client.get_run(run_id)

    def _run_of(self, trial: Trial, started_s: float) -> str:
        """Return a trial's run, by its tag if it is not known, or a new one."""
        assert self._parent is not None
        key = trial.signature
        if key not in self._runs:
            tags = {
                SWEEP_ID: self.header.sweep_id,
                SIGNATURE: key,
                PARENT_RUN_ID: self._parent.info.run_id,
                "mlflow.source.name": "orchestrator.sweep",
                "variant": trial.variant,
                "stage": trial.stage,
            }
            run = self._find_or_create(self._client, key, trial.name, started_s, tags)
            self._learn(key, run)
        return self._runs[key]

    def _project(self, trial: Trial) -> None:
        attempts = self.ledger.attempts(trial.signature)
        outcome = _outcome(trial, attempts)
        started_s = attempts[0].started_s if attempts else self.header.created_s
        mark = self._mark(trial)
        run_id = self._run_of(trial, started_s)
        if self._is_of_another_ledger(trial):
            self._client.delete_run(run_id)
            self._forget(trial.signature)
            run_id = self._run_of(trial, started_s)
        written = self._written.get(trial.signature)
        run_before, mark_before, seq = self._own.get(trial.signature, ("", "", -1))
        params: list[Param] = []
        if written is None:  # new, or half written: from the beginning
            params = _params(trial)
            self._client.log_dict(run_id, trial.config, "config.json")
        after = seq if (run_before, mark_before) == (run_id, written) else -1
        metrics = self._metrics(trial, attempts, after)
        tags = self._tags(attempts, outcome, mark)
        is_open = RUN_STATUS[outcome] in ("RUNNING", "SCHEDULED")
        # MLflow stores tags after all else of a batch: they say that the rest is there.
        if is_open and self._status.get(trial.signature) == RUN_STATUS[outcome]:
            self._log(run_id, metrics, params, tags)
        else:
            self._log(run_id, metrics, params, [])
            if is_open:
                self._client.update_run(run_id, status=RUN_STATUS[outcome])
            else:
                self._log_files(run_id, attempts)
                if evaluated := self.ledger.evaluation(trial.signature):
                    self._client.log_dict(run_id, evaluated, "test.json")
                ended_ms = int((attempts[-1].ended_s or 0) * 1000)
                self._client.set_terminated(run_id, RUN_STATUS[outcome], ended_ms)
            self._log(run_id, [], [], tags)
        self._status[trial.signature] = RUN_STATUS[outcome]
        self._written[trial.signature] = mark
        self._own[trial.signature] = (run_id, mark, trial.changed_seq)

    def _is_of_another_ledger(self, trial: Trial) -> bool:
        """Return whether a run shows epochs that the ledger does not know.

        So it is when the ledger is an older copy: the first values stay, and they are other ones.
        """
        last_ms = int(self._written.get(trial.signature, "0").split()[-1])
        rows = self.ledger.epochs(trial.signature)
        return last_ms > 0 and last_ms not in {int(row.arrived_s * 1000) for row in rows}

    def _metrics(self, trial: Trial, attempts: Sequence[Attempt], after: int) -> list[Metric]:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(row.arrived_s * 1000), row.epoch)
            for row in self.ledger.epochs(trial.signature, after=after)
            for name, value in row.metrics.items()
            if math.isfinite(value)
        ]
        ended_ms = int((attempts[-1].ended_s or 0) * 1000) if attempts else 0
        evaluated = self.ledger.evaluation(trial.signature) if trial.ended_seq is not None else None
        if evaluated is not None:
            metrics += [Metric(*one, ended_ms, 0) for one in evaluation_metrics(evaluated).items()]
        if trial.best_value is not None and trial.ended_seq is not None:
            name = self.header.plan.space.metric
            metrics.append(Metric(f"best_{name}", trial.best_value, ended_ms, 0))
        return metrics

    def _tags(self, attempts: Sequence[Attempt], outcome: str, mark: str) -> list[RunTag]:
        from mlflow.entities import RunTag

        assert self._parent is not None
        tags = {
            OUTCOME: outcome,
            MARK: mark,
            PARENT_RUN_ID: self._parent.info.run_id,
            "attempts": str(len(attempts)),
        }
        if attempts and attempts[-1].micro_batch_size:
            tags["micro_batch_size"] = str(attempts[-1].micro_batch_size)
        failed = [attempt for attempt in attempts if attempt.outcome == "failed"]
        if failed:
            tags["failure.class"] = str(failed[-1].failure_class)
        return [RunTag(name, value) for name, value in tags.items()]

    def _log(
        self, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]
    ) -> None:
        """Write in batches, the tags with the last of them."""
        while len(metrics) > _PER_BATCH:
            self._client.log_batch(run_id, metrics=metrics[:_PER_BATCH], params=params)
            metrics, params = metrics[_PER_BATCH:], []
            self.answered_s = time.monotonic()
        if metrics or params or tags:
            self._client.log_batch(run_id, metrics=metrics, params=params, tags=tags)

    def _log_files(self, run_id: str, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            path = sweeps.local_file(self.paths, attempt.log) if attempt.log else None
            if path is not None:
                self._client.log_artifact(run_id, str(path), "logs")
            if attempt.failure_text:
                self._client.log_text(
                    run_id, attempt.failure_text, f"logs/attempt_{attempt.attempt}_failure.txt"
                )

    def _place_weights(self, last: bool) -> None:
        """Put the weights of the best trials of each variant into MLflow, and take others out."""
        trials = self._told(self.ledger.trials())
        best = ranking.top_k(trials, self.header.num_best, self.header.plan.space.mode)
        for trial in trials:
            key = trial.signature
            wanted = f"epoch {trial.best_epoch}" if key in best else NO_WEIGHTS
            if key not in self._runs:
                continue
            if self._weights.get(key, NO_WEIGHTS) == wanted:
                if key in self.behind and self._written.get(key) == self._mark(trial):
                    del self.behind[key]  # what failed had been done
                continue
            if last or self._is_due(key):
                write = self._log_weights if key in best else self._delete_weights
                self._isolated(write, trial)

    def _log_weights(self, trial: Trial) -> None:
        run_id = self._runs[trial.signature]
        source = retention.best_weights(self.ledger, self.paths, trial)
        if source is not None:
            self._clear(run_id, WEIGHTS_FOLDER, WEIGHTS_TAG)
            with tempfile.TemporaryDirectory() as folder:
                link = Path(folder) / "model.safetensors"
                link.symlink_to(source.absolute())
                self._client.log_artifact(run_id, str(link), WEIGHTS_FOLDER)
            # Last: weights without it are not whole.
            recipe = rebuild_recipe(self.ledger, trial)
            self._client.log_dict(run_id, recipe, f"{WEIGHTS_FOLDER}/model.json")
            self._client.set_tag(run_id, WEIGHTS_TAG, f"epoch {trial.best_epoch}")
        self._weights[trial.signature] = f"epoch {trial.best_epoch}"

    def _delete_weights(self, trial: Trial) -> None:
        run_id = self._runs[trial.signature]
        self._clear(run_id, WEIGHTS_FOLDER, WEIGHTS_TAG)
        self._client.delete_tag(run_id, WEIGHTS_TAG)
        self._weights[trial.signature] = NO_WEIGHTS

    def _clear(self, run_id: str, folder: str, tag: str) -> None:
        """Empty a folder of a run's artifacts, having said in a tag that it is not whole."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._client.set_tag(run_id, tag, INCOMPLETE)
        uri = self._client.get_run(run_id).info.artifact_uri
        files = get_artifact_repository(uri, tracking_uri=self.uri)
        if patiently(files.list_artifacts)(folder):
            patiently(files.delete_artifacts)(folder)


def evaluation_metrics(evaluated: Mapping[str, Any]) -> dict[str, float]:
    """Return what MLflow shows of the test split's evaluation, by name."""
    metrics = {f"test_{name}": evaluated[name] for name in ("top1", "top5", "loss", "ece")}
    if evaluated["superclass_top1"] is not None:
        metrics["test_superclass_top1"] = evaluated["superclass_top1"]
    for name in ("precision", "recall", "f1"):
        metrics[f"test_{name}_macro"] = evaluated[name]["macro"]
        metrics[f"test_{name}_weighted"] = evaluated[name]["weighted"]
    metrics["inference_ms"] = evaluated["inference_ms"]
    metrics["inference_images_per_s"] = evaluated["inference_images_per_s"]
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _params(trial: Trial) -> list[Param]:
    from mlflow.entities import Param

    return [Param(name, str(value)) for name, value in trial.config.items()]


def _outcome(trial: Trial, attempts: Sequence[Attempt]) -> str:
    """Return how a trial stands; one that waits for its next attempt is interrupted."""
    if trial.status == "running" and (not attempts or attempts[-1].outcome is not None):
        return "interrupted"
    return trial.status
