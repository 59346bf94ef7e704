"""Finds and creates the MLflow runs of a sweep: one parent run, and one run per trial.

Runs are found by tag before they are created, so a request whose reply was lost creates no second
run. They are found in any experiment, because users rename experiments and move and copy runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.clock import Clock
from orchestrator.ledger.header import SweepHeader
from orchestrator.ledger.records import Attempt, Trial
from orchestrator.storage.paths import SweepPaths
from orchestrator.tracking import database
from orchestrator.tracking.client import RetryingClient, with_retries

if TYPE_CHECKING:
    from mlflow.entities import Run, RunTag

# Names of the tags of a run.
SWEEP_ID, SIGNATURE, OUTCOME = "sweep.id", "sweep.signature", "sweep.outcome"
MARK, PARENT_RUN_ID = "sweep.mark", "mlflow.parentRunId"
_SOURCE = {"mlflow.source.name": "orchestrator.sweep"}
# The state of a run's folder of weights: "epoch N" (from 1) once all files are there, INCOMPLETE
# while they change. A run without weights has no such tag, which reads as NO_WEIGHTS.
WEIGHTS_TAG, INCOMPLETE, NO_WEIGHTS = "sweep.weights", "incomplete", ""
_EXPERIMENTS_PER_SEARCH = 100
# MLflow's status for each outcome of a trial; the tag `sweep.outcome` holds the outcome itself.
RUN_STATUS = {
    "complete": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "planned": "SCHEDULED",
}


@dataclass(slots=True)
class TrialRun:
    """A trial's run and what its tags show."""

    run_id: str
    status: str  # MLflow's
    mark: str | None  # which state of the trial it shows; None: unknown or partly written
    weights: str  # the value of WEIGHTS_TAG


@dataclass(slots=True)
class SweepRuns:
    """A sweep's runs in MLflow, as `connect` finds them."""

    client: RetryingClient
    uri: str
    experiment: str  # the id of the one in which runs are created
    experiments: Sequence[str]  # ids of all that hold runs of the sweep; the first is `experiment`
    sweep_id: str
    parent: Run
    trials: dict[str, TrialRun]  # by signature
    kept: Path | None = None  # the copy of a database that MLflow has upgraded

    @property
    def parent_id(self) -> str:
        """The id of the sweep's own run."""
        return str(self.parent.info.run_id)

    def run_of(self, trial: Trial, started_s: float) -> TrialRun:
        """Return a trial's run; it is searched for if it is not known, and created if missing."""
        signature = trial.signature
        if signature not in self.trials:
            tags = {SWEEP_ID: self.sweep_id, SIGNATURE: signature, PARENT_RUN_ID: self.parent_id}
            tags |= {**_SOURCE, "variant": trial.variant, "stage": trial.stage}
            run = _find_or_create(self.client, self.experiments, trial.name, started_s, tags)
            self.trials[signature] = _read(run, self.parent_id)
        return self.trials[signature]

    def tags_of(self, attempts: Sequence[Attempt], outcome: str, mark: str) -> list[RunTag]:
        """Return the tags of a trial's run that change with its attempts."""
        from mlflow.entities import RunTag

        tags = {OUTCOME: outcome, MARK: mark, PARENT_RUN_ID: self.parent_id}
        tags["attempts"] = str(len(attempts))
        if attempts and attempts[-1].micro_batch_size:
            tags["micro_batch_size"] = str(attempts[-1].micro_batch_size)
        if failed := [attempt for attempt in attempts if attempt.outcome == "failed"]:
            tags["failure.class"] = str(failed[-1].failure_class)
        return [RunTag(name, value) for name, value in tags.items()]

    def reload_parent(self) -> Run:
        """Read the sweep's own run from MLflow again and return it."""
        self.parent = self.client.get_run(self.parent_id)
        return self.parent

    def set_outcome(self, outcome: str) -> None:
        """Set outcome and status of the sweep's own run."""
        self.client.set_tag(self.parent_id, OUTCOME, outcome)
        if outcome == "running":
            self.client.update_run(self.parent_id, status="RUNNING")
        else:
            self.client.set_terminated(self.parent_id, RUN_STATUS[outcome])
        self.reload_parent()


def connect(header: SweepHeader, paths: SweepPaths, uri: str, clock: Clock) -> SweepRuns:
    """Return the sweep's runs; its experiment and its own run are created if missing.

    Raises:
        Exception: whatever MLflow or its database raised.
    """
    # Time out soon: a background thread waits here, but no trial does. MLflow must not retry by
    # itself, because a request sent twice may be carried out twice: RetryingClient decides.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    if uri == paths.default_tracking_uri:
        database.relocate(paths)
    kept = database.keep_older(uri)
    database.create(uri)
    client = RetryingClient(mlflow.MlflowClient(tracking_uri=uri), clock)
    tags = {SWEEP_ID: header.sweep_id, **_SOURCE}
    experiments = _find_or_create_experiments(client, header, paths, uri)
    runs = _search(client, experiments, tags)
    parent = runs.pop("", None)
    parent = parent or _find_or_create(client, experiments, paths.name, header.created_s, tags)
    if OUTCOME not in parent.data.tags:
        client.log_dict(parent.info.run_id, header.plan.to_dict(), "plan.json")
        client.set_tag(parent.info.run_id, OUTCOME, "running")
    trials = {signature: _read(run, parent.info.run_id) for signature, run in runs.items()}
    own = experiments[0]
    return SweepRuns(client, uri, own, experiments, header.sweep_id, parent, trials, kept)


def _read(run: Run, parent_id: str) -> TrialRun:
    """Return what a trial's run shows. Its mark counts only if its other tags agree."""
    tags, status = run.data.tags, run.info.status
    shown, expected = (status, tags.get(PARENT_RUN_ID)), RUN_STATUS.get(tags.get(OUTCOME, ""))
    mark = tags.get(MARK) if shown == (expected, parent_id) else None
    return TrialRun(run.info.run_id, status, mark, tags.get(WEIGHTS_TAG, NO_WEIGHTS))


def _find_or_create_experiments(
    client: RetryingClient, header: SweepHeader, paths: SweepPaths, uri: str
) -> list[str]:
    """Return the ids of the experiments that hold runs of the sweep; the first is its own.

    Its own is the one that the ledger remembers, if that still holds runs of the sweep. An
    experiment that was deleted is restored, with its runs, unless another one has active runs.
    """
    from mlflow.entities import ViewType

    known = {one.experiment_id: one for one in _pages(client.search_experiments, ViewType.ALL)}
    runs = _tagged(client, list(known), {SWEEP_ID: header.sweep_id}, ViewType.ALL)
    holding = {run.info.experiment_id for run in runs}
    active = {run.info.experiment_id for run in runs if run.info.lifecycle_stage == "active"}

    def order(number: str) -> tuple[bool, bool, bool, int]:
        """A copy is made later than its original, and seldom has its name."""
        one = known[number]
        is_ours = number == header.mlflow_experiment
        return not is_ours, number not in active, one.name != paths.name, one.creation_time or 0

    own = client.get_experiment_by_name(paths.name)
    if holding:
        own = known[min(holding, key=order)]
    if own is None:
        # A server has its own place for artifacts; a database file has none.
        folder = (paths.artifacts / paths.name).absolute().as_uri()
        location = folder if uri.startswith("sqlite") else None
        return [str(client.create_experiment(paths.name, artifact_location=location))]
    if own.lifecycle_stage == "deleted":
        client.restore_experiment(own.experiment_id)
    return [str(own.experiment_id), *sorted(active - {own.experiment_id})]


def _find_or_create(
    client: RetryingClient,
    experiments: Sequence[str],
    name: str,
    started_s: float,
    tags: Mapping[str, str],
) -> Run:
    """Return the run with these tags; a sweep's own run has no signature."""

    def once() -> Run:
        """Search first: an earlier request may have been carried out and its reply lost."""
        found = _search(client.without_retries, experiments, tags).get(tags.get(SIGNATURE, ""))
        start_ms = int(started_s * 1000)
        return found or client.create_run(experiments[0], start_ms, dict(tags), name)

    run: Run = with_retries(once, client.clock)()
    return run


def _search(client: Any, experiments: Sequence[str], tags: Mapping[str, str]) -> dict[str, Run]:
    """Return the runs with this sweep id, and signature if given, by signature ("": the parent).

    A run in the sweep's own experiment, the first, is preferred: one in another experiment is a
    copy, which is left alone, or was moved there. Of several in its own experiment, from a request
    that was carried out after its caller had given up, one is kept and the others are deleted.
    """
    from mlflow.entities import ViewType

    def order(run: Run) -> tuple[bool, bool, str]:
        """The one that was written to comes first."""
        info = run.info
        return info.experiment_id != experiments[0], OUTCOME not in run.data.tags, info.run_id

    found: dict[str, Run] = {}
    for run in sorted(_tagged(client, experiments, tags, ViewType.ACTIVE_ONLY), key=order):
        if found.setdefault(run.data.tags.get(SIGNATURE, ""), run) is run:
            continue
        if run.info.experiment_id == experiments[0]:
            client.delete_run(run.info.run_id)
    return found


def _tagged(
    client: Any, experiments: Sequence[str], tags: Mapping[str, str], view: int
) -> list[Run]:
    """Return the runs in these experiments with the sweep id, and signature if given, of tags."""
    names = [name for name in (SWEEP_ID, SIGNATURE) if name in tags]
    wanted = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in names)
    return [
        run
        for first in range(0, len(experiments), _EXPERIMENTS_PER_SEARCH)
        for run in _pages(
            client.search_runs,
            experiments[first : first + _EXPERIMENTS_PER_SEARCH],
            wanted,
            view,
        )
    ]


def _pages(search: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """Yield the results of a search on all its pages."""
    page = search(*arguments)
    yield from page
    while page.token:
        page = search(*arguments, page_token=page.token)
        yield from page
