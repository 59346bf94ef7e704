"""Writes the ledger of a sweep into MLflow, from a background thread.

Each trial's run has a tag, its mark, that says which state of the trial the run shows. So a store
that was down, is new, was lost or comes from an old backup is completed by the same rule, and
metrics carry the ledger's timestamps, so writing them twice changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.clock import Clock
from orchestrator.ledger import ranking
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import ENDED, Attempt, Trial
from orchestrator.redaction import redacted
from orchestrator.storage.paths import MODEL, SweepPaths
from orchestrator.tracking import artifacts, best_model, sweep_run
from orchestrator.tracking.client import http_status, model_link, reason, run_link
from orchestrator.tracking.runs import (
    NO_WEIGHTS,
    OUTCOME,
    RUN_STATUS,
    SweepRuns,
    connect,
    dataset_input,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Metric, Param, RunTag
    from mlflow.entities.model_registry import ModelVersion

# MLflow takes 1000 metrics, parameters and tags in one request (mlflow/utils/validation.py).
_PER_BATCH = 900
_LONGEST_PAUSE_S = 300.0  # before a rejected trial is written again


@dataclass(frozen=True, slots=True)
class RejectedTrial:
    """A trial whose run is not up to date because MLflow rejected a request of it."""

    reason: str
    tries: int
    due_s: float  # monotonic time of the next try


class Tracker:
    """Writes one sweep's ledger into MLflow. Used by one thread at a time."""

    def __init__(
        self,
        ledger: Ledger,
        paths: SweepPaths,
        uri: str,
        copied_seq: Callable[[], int] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare to write to the store `uri`; the first `sync` connects to it.

        `copied_seq` returns the number of the last change that is in a copy of the ledger; later
        ones are not written yet. None: all are written.
        """
        self.ledger, self.paths, self.uri, self.copied_seq = ledger, paths, uri, copied_seq
        self.header, self.clock = ledger.header(), clock or Clock()
        self.rejected: dict[str, RejectedTrial] = {}  # by signature
        self.answered_s: float | None = None  # monotonic time of MLflow's last reply
        self.experiment = ""  # its id, once known
        self.notes: list[str] = []  # to be printed once
        self.outputs: Sequence[artifacts.Output] = ()  # uploaded to the sweep's own run by `finish`
        self.register_as: str | None = None  # the name under which `finish` registers the model
        self.registered: ModelVersion | None = None  # once it is
        self._runs: SweepRuns | None = None  # None: not connected
        self._position = -1  # trials changed up to here are written or in `rejected`
        self._checks_weights = True  # the weights of all trials were not compared since connecting
        # Run id, mark and number of the last change, of what this tracker wrote, by signature.
        self._written: dict[str, tuple[str, str, int]] = {}

    def sync(self, *, last: bool = False) -> int:
        """Write what changed since the last call; return the number of trials written.

        With `last`, retry rejected trials at once and keep the status of the sweep's own run.

        Raises:
            Exception: whatever MLflow raised. The next call writes what this one did not.
        """
        try:
            runs = self._connect()
            if not last and runs.parent.info.status != "RUNNING":  # a resumed sweep
                runs.set_outcome("running")
            due = self._due_trials(runs, last)
            for trial in due:
                with self._noting_rejection(runs, trial):
                    self._write_trial(runs, trial)
            if self.rejected or self._checks_weights or any(t.status in ENDED for t in due):
                self._update_weights(runs, last)
                self._checks_weights = False
            note = {signature: trial.reason for signature, trial in sorted(self.rejected.items())}
            if note != self.ledger.header().tracking_behind:
                self.ledger.put("tracking_behind", note)
        except Exception:
            # A reply may have been lost after the server acted: read all runs again.
            self._runs = None
            raise
        return len(due)

    def finish(self, outcome: str, figures: Mapping[str, float]) -> None:
        """Write the rest, then the sweep's outputs, figures, note and status to its own run.

        `outcome` is "complete", "failed" or "interrupted"; `figures` are metrics by name.

        Raises:
            Exception: whatever MLflow raised.
        """
        self.sync(last=True)
        try:
            runs = self._connect()
            self._log_figures(runs, figures)
            model = None
            for output in self.outputs:
                if output.name == MODEL:
                    model = self._log_model(runs, output)
                else:
                    artifacts.upload_output(runs, output)
                self.answered_s = self.clock.monotonic_s()
            self._write_note(runs, model)
            runs.set_outcome(outcome)
            if model is not None and self.register_as is not None:
                self.registered = best_model.register(runs, model, self.register_as)
        finally:
            # A server that was frozen may carry out earlier requests late: read all runs again.
            self._runs = None
        self.sync(last=True)
        runs = self._connect()
        shown = runs.parent.info.status, runs.parent.data.tags.get(OUTCOME)
        if shown != (RUN_STATUS[outcome], outcome):
            runs.set_outcome(outcome)

    def _log_model(self, runs: SweepRuns, output: artifacts.Output) -> LoggedModel | None:
        """Log the best model; return None if the server is too old for logged models."""
        trial = self.ledger.trial(output.version.partition(" ")[0])
        run = runs.trials.get(trial.signature)
        metrics = self._end_metrics(trial, self.ledger.attempts(trial.signature))
        run_id = None if run is None else run.run_id
        try:
            step = len(self.ledger.trials())
            return best_model.log_model(runs, output, _searched(trial), metrics, run_id, step)
        except Exception as error:
            if http_status(error) != 404 or "logged-models" not in str(error):
                raise
        artifacts.upload_output(runs, output)
        return None

    def _write_note(self, runs: SweepRuns, model: LoggedModel | None) -> None:
        """Write the leaderboards, unless a user has changed the note."""
        links = {s: run_link(runs.experiment, run.run_id) for s, run in runs.trials.items()}
        link = None if model is None else model_link(runs.experiment, model.model_id)
        runs.set_note(sweep_run.note(self.ledger, self.paths.name, links, link))

    def _connect(self) -> SweepRuns:
        """Return the sweep's runs, read from MLflow unless they are known."""
        if self._runs is None:
            header = self.ledger.header()
            self._runs = connect(header, self.paths, self.uri, self.clock)
            self.experiment = self._runs.experiment
            if self._runs.kept is not None:
                self.notes.append(
                    f"The database at {redacted(self.uri)} was of an older version of MLflow, "
                    f"which has upgraded it. Its old state is kept as {self._runs.kept}."
                )
            if self.experiment != header.mlflow_experiment:
                self.ledger.put("mlflow_experiment", self.experiment)
            self._position, self._checks_weights = -1, True
            self.answered_s = self.clock.monotonic_s()
        return self._runs

    def _mark(self, trial: Trial) -> str:
        """Return the mark of a run that shows a trial as it is now, in this ledger.

        A ledger restored from an older copy numbers its changes again from there, so the number
        alone is not enough. The arrival time of an epoch never repeats.
        """
        rows = self.ledger.epochs(trial.signature)
        last_ms = max((int(row.arrived_s * 1000) for row in rows), default=0)
        return f"{trial.changed_seq} {trial.status} {last_ms}"

    def _due_trials(self, runs: SweepRuns, last: bool) -> list[Trial]:
        """Return the trials to write now, in the order of their last change."""
        changed = self._copied(self.ledger.trials(changed_after=self._position))
        names = {trial.signature for trial in changed}
        trials = changed + [self.ledger.trial(s) for s in self.rejected if s not in names]
        self._position = max((trial.changed_seq for trial in changed), default=self._position)
        due = [t for t in trials if last or self._is_due(t.signature)]
        due = [trial for trial in due if not self._is_up_to_date(runs, trial)]
        return sorted(due, key=lambda trial: trial.changed_seq)

    def _copied(self, trials: list[Trial]) -> list[Trial]:
        """Return the trials whose last change is in a copy of the ledger."""
        up_to = math.inf if self.copied_seq is None else self.copied_seq()
        return [trial for trial in trials if trial.changed_seq <= up_to]

    def _is_up_to_date(self, runs: SweepRuns, trial: Trial) -> bool:
        run = runs.trials.get(trial.signature)
        return run is not None and run.mark == self._mark(trial)

    def _is_due(self, signature: str) -> bool:
        rejected = self.rejected.get(signature)
        return rejected is None or self.clock.monotonic_s() >= rejected.due_s

    @contextmanager
    def _noting_rejection(self, runs: SweepRuns, trial: Trial) -> Iterator[None]:
        """Note the trial as rejected if MLflow rejects what the block writes of it.

        Raises:
            Exception: MLflow does not respond, or the sweep's own run was deleted.
        """
        before = self.rejected.pop(trial.signature, None)
        try:
            yield
        except Exception as error:
            runs.trials.pop(trial.signature, None)  # searched for again before it is used next
            if runs.reload_parent().info.lifecycle_stage == "deleted":
                raise
            tries = before.tries + 1 if before else 1
            due_s = self.clock.monotonic_s() + min(2.0**tries, _LONGEST_PAUSE_S)
            why = redacted(reason(error, self.uri))
            self.rejected[trial.signature] = RejectedTrial(why, tries, due_s)
        self.answered_s = self.clock.monotonic_s()

    def _log_figures(self, runs: SweepRuns, figures: Mapping[str, float]) -> None:
        """Write metrics of the sweep's own run, with the points that lead to their values."""
        from mlflow.entities import Metric

        known = runs.reload_parent().data.metrics
        ended_s = [attempt.ended_s or 0.0 for attempt in self.ledger.attempts()]
        at_ms = int(max(ended_s, default=self.header.created_s) * 1000)
        new = {name: value for name, value in figures.items() if known.get(name) != value}
        metrics = []
        if figures:
            for name, value, at_s, step in sweep_run.progress(self.ledger):
                metrics.append(Metric(name, value, int(at_s * 1000), step))
                new.pop(name, None)
        step = len(self.ledger.trials())
        metrics += [Metric(*figure, at_ms, step) for figure in new.items()]
        self._log(runs.parent_id, metrics, [], [])

    def _write_trial(self, runs: SweepRuns, trial: Trial) -> None:
        from mlflow.entities import Param

        attempts = self.ledger.attempts(trial.signature)
        mark, outcome = self._mark(trial), _outcome(trial, attempts)
        started_s = attempts[0].started_s if attempts else self.header.created_s
        run = runs.run_of(trial, started_s)
        if self._is_of_another_ledger(trial, run.mark):
            runs.client.delete_run(run.run_id)
            del runs.trials[trial.signature]
            run = runs.run_of(trial, started_s)
        params: list[Param] = []
        if run.mark is None:  # new or partly written
            params = [Param(*each) for each in _searched(trial).items()]
            runs.client.log_inputs(run.run_id, [dataset_input(self.header)])
            runs.client.log_dict(run.run_id, trial.config, "config.json")
        runs.delete_former_tags(run)
        *before, seq = self._written.get(trial.signature, ("", "", -1))
        after = seq if before == [run.run_id, run.mark] else -1
        metrics = self._metrics(trial, attempts, after)
        tags = runs.tags_of(trial, attempts, outcome, mark)
        status = RUN_STATUS[outcome]
        is_ended = status not in ("RUNNING", "SCHEDULED")
        # The mark must be written last. MLflow stores the tags of a batch after all else.
        if is_ended or run.status != status:
            self._log(run.run_id, metrics, params, [])
            metrics, params = [], []
            if is_ended:
                self._end_run(runs, run.run_id, trial, attempts, status)
            else:
                runs.client.update_run(run.run_id, status=status)
        self._log(run.run_id, metrics, params, tags)
        run.status, run.mark = status, mark
        self._written[trial.signature] = (run.run_id, mark, trial.changed_seq)

    def _end_run(
        self, runs: SweepRuns, run_id: str, trial: Trial, attempts: list[Attempt], status: str
    ) -> None:
        """Upload the files that belong to a trial's ended run, then set its status."""
        artifacts.upload_logs(runs, run_id, self.paths, attempts)
        if evaluated := self.ledger.evaluation(trial.signature):
            evaluated = {**evaluated, "epoch": evaluated["epoch"] + 1}
            runs.client.log_dict(run_id, evaluated, "test.json")
        runs.client.set_terminated(run_id, status, int((attempts[-1].ended_s or 0) * 1000))

    def _is_of_another_ledger(self, trial: Trial, mark: str | None) -> bool:
        """Return whether a run shows epochs that this ledger does not have.

        That happens if the ledger is an older copy: its epochs are trained again, with other
        values than those the run has.
        """
        last_ms = int((mark or "0").split()[-1])
        rows = self.ledger.epochs(trial.signature)
        return last_ms > 0 and last_ms not in {int(row.arrived_s * 1000) for row in rows}

    def _metrics(self, trial: Trial, attempts: Sequence[Attempt], after: int) -> list[Metric]:
        """Return a trial's metrics of the epochs after a change, and those of its end."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(row.arrived_s * 1000), row.epoch + 1)
            for row in self.ledger.epochs(trial.signature, after=after)
            for name, value in row.metrics.items()
            if math.isfinite(value)
        ]
        return metrics if trial.ended_seq is None else metrics + self._end_metrics(trial, attempts)

    def _end_metrics(self, trial: Trial, attempts: Sequence[Attempt]) -> list[Metric]:
        """Return the metrics of a trial's end: its best value and its evaluation."""
        from mlflow.entities import Metric

        metrics = []
        ended_ms = int((attempts[-1].ended_s or 0) * 1000) if attempts else 0
        if evaluated := self.ledger.evaluation(trial.signature):
            metrics += [Metric(*one, ended_ms, 0) for one in _evaluation_metrics(evaluated).items()]
        if trial.best_value is not None:
            name = self.header.plan.space.metric
            metrics.append(Metric(f"best_{name}", trial.best_value, ended_ms, 0))
        return metrics

    def _log(
        self, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]
    ) -> None:
        """Write in batches, the tags with the last of them."""
        client = self._connect().client
        while len(metrics) > _PER_BATCH:
            client.log_batch(run_id, metrics=metrics[:_PER_BATCH], params=params)
            metrics, params = metrics[_PER_BATCH:], []
            self.answered_s = self.clock.monotonic_s()
        if metrics or params or tags:
            client.log_batch(run_id, metrics=metrics, params=params, tags=tags)

    def _update_weights(self, runs: SweepRuns, last: bool) -> None:
        """Upload the weights of the best trials of each variant, and remove those of others."""
        trials = self._copied(self.ledger.trials())
        best = ranking.top_k(trials, self.header.num_best, self.header.plan.space.mode)
        for trial in trials:
            signature = trial.signature
            run = runs.trials.get(signature)
            if run is None:
                continue
            wanted = artifacts.weights_tag(trial) if signature in best else NO_WEIGHTS
            if run.weights == wanted:
                if signature in self.rejected and self._is_up_to_date(runs, trial):
                    del self.rejected[signature]  # the rejected request was carried out after all
            elif last or self._is_due(signature):
                with self._noting_rejection(runs, trial):
                    if wanted:
                        artifacts.upload_weights(runs, run, self.ledger, self.paths, trial)
                    else:
                        artifacts.delete_weights(runs, run)


def _searched(trial: Trial) -> dict[str, str]:
    """Return the parameters in which the trials of a sweep differ; `config.json` has all.

    They are the variant, what was suggested, and the seed where the sweep repeats a configuration.
    """
    repeats = trial.stage == "final" or not trial.params
    names = ("variant", *(["seed"] if repeats else []), *trial.params)
    return {name: str(trial.config[name]) for name in names}


def _evaluation_metrics(evaluated: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an evaluation on the test split, by their names in MLflow."""
    names = ("top1", "top5", "loss", "ece", "superclass_top1")
    metrics = {f"test_{name}": evaluated[name] for name in names}
    for name in ("precision", "recall", "f1"):
        metrics[f"test_{name}_macro"] = evaluated[name]["macro"]
        metrics[f"test_{name}_weighted"] = evaluated[name]["weighted"]
    metrics |= {name: evaluated[name] for name in ("inference_ms", "inference_images_per_s")}
    return {name: v for name, v in metrics.items() if v is not None and math.isfinite(v)}


def _outcome(trial: Trial, attempts: Sequence[Attempt]) -> str:
    """Return a trial's status, "interrupted" if it waits for its next attempt."""
    if trial.status == "running" and (not attempts or attempts[-1].outcome is not None):
        return "interrupted"
    return trial.status
