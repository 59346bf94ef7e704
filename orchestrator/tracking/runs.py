"""Finds and creates the MLflow runs of a sweep: one parent run, and one run per trial.

Runs are found by tag before they are created, so a request whose reply was lost creates no second
run. They are found in any experiment, because users rename experiments and move and copy runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.clock import Clock
from orchestrator.ledger.header import SweepHeader
from orchestrator.ledger.records import Attempt, Trial
from orchestrator.storage.paths import SweepPaths
from orchestrator.tracking import database, sweep_run
from orchestrator.tracking.client import RetryingClient, set_environment, with_retries

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run, RunTag

# Names of the tags of a run.
SWEEP_ID, SIGNATURE, OUTCOME = "sweep.id", "sweep.signature", "sweep.outcome"
NOTE = "mlflow.note.content"  # what MLflow shows as the description, in Markdown
MARK, STAGE, PARENT_RUN_ID = "sweep.mark", "sweep.stage", "mlflow.parentRunId"
_NOTE_DIGEST = "sweep.note"  # of the note that this program wrote last
# Earlier versions wrote these to runs of trials, where they would show an outdated state.
_FORMER_TAGS = ("attempts", "micro_batch_size", "failure.class", "variant", "stage")
# MLflow 3.17 ignores this tag; later versions may open the experiment as "Model training" by it.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
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
    former_tags: Sequence[str] = ()  # of an earlier version of this program


@dataclass(slots=True)
class SweepRuns:
    """A sweep's runs in MLflow, as `connect` finds them."""

    client: RetryingClient
    uri: str
    experiment: str  # the id of the one in which runs are created
    experiments: Sequence[str]  # ids of all that hold runs of the sweep; the first is `experiment`
    identity: Mapping[str, str]  # tags that all runs of the sweep have when they are created
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
            tags = {**self.identity, SIGNATURE: signature, PARENT_RUN_ID: self.parent_id}
            tags[STAGE] = trial.stage
            run = _find_or_create(self.client, self.experiments, trial.name, started_s, tags)
            self.trials[signature] = _read(run, self.parent_id)
        return self.trials[signature]

    def delete_former_tags(self, run: TrialRun) -> None:
        """Remove the tags that an earlier version of this program wrote to a trial's run."""
        for name in run.former_tags:
            self.client.delete_tag(run.run_id, name)
        run.former_tags = ()

    def tags_of(
        self, trial: Trial, attempts: Sequence[Attempt], outcome: str, mark: str
    ) -> list[RunTag]:
        """Return the tags of a trial's run that change with its attempts."""
        from mlflow.entities import RunTag

        tags = {OUTCOME: outcome, MARK: mark, PARENT_RUN_ID: self.parent_id, STAGE: trial.stage}
        tags["sweep.attempts"] = str(len(attempts))
        if attempts and attempts[-1].micro_batch_size:
            tags["sweep.micro_batch_size"] = str(attempts[-1].micro_batch_size)
        if failed := [attempt for attempt in attempts if attempt.outcome == "failed"]:
            tags["sweep.failure_class"] = str(failed[-1].failure_class)
        return [RunTag(name, value) for name, value in tags.items()]

    def reload_parent(self) -> Run:
        """Read the sweep's own run from MLflow again and return it."""
        self.parent = self.client.get_run(self.parent_id)
        return self.parent

    def set_note(self, text: str) -> None:
        """Set the note of the sweep's own run, unless a user has changed it."""
        from mlflow.entities import RunTag

        tags = self.reload_parent().data.tags
        known = tags.get(NOTE, "")
        is_ours = not known or _digest(known) == tags.get(_NOTE_DIGEST)
        if known != text and is_ours:
            new = [RunTag(NOTE, text), RunTag(_NOTE_DIGEST, _digest(text))]
            self.client.log_batch(self.parent_id, tags=new)

    def set_outcome(self, outcome: str) -> None:
        """Set outcome and status of the sweep's own run."""
        self.client.set_tag(self.parent_id, OUTCOME, outcome)
        if outcome == "running":
            self.client.update_run(self.parent_id, status="RUNNING")
        else:
            self.client.set_terminated(self.parent_id, RUN_STATUS[outcome])
        self.reload_parent()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def connect(header: SweepHeader, paths: SweepPaths, uri: str, clock: Clock) -> SweepRuns:
    """Return the sweep's runs; its experiment and its own run are created if missing.

    Raises:
        Exception: whatever MLflow or its database raised.
    """
    set_environment()
    import mlflow

    if uri == paths.default_tracking_uri:
        database.relocate(paths)
    kept = database.keep_older(uri)
    database.create(uri)
    client = RetryingClient(mlflow.MlflowClient(tracking_uri=uri), clock)
    tags = _identity(header)
    experiments = _find_or_create_experiments(client, header, paths, uri)
    runs = _search(client, experiments, tags)
    parent = runs.pop("", None)
    parent = parent or _find_or_create(client, experiments, paths.name, header.created_s, tags)
    _complete_parent(client, header, parent)
    trials = {signature: _read(run, parent.info.run_id) for signature, run in runs.items()}
    own = experiments[0]
    return SweepRuns(client, uri, own, experiments, tags, parent, trials, kept)


def _identity(header: SweepHeader) -> dict[str, str]:
    """Return the tags that every run of a sweep has."""
    tags = {SWEEP_ID: header.sweep_id, "mlflow.source.name": "orchestrator.sweep"}
    if header.git_commit:
        tags["mlflow.source.git.commit"] = header.git_commit
    return tags


def _complete_parent(client: RetryingClient, header: SweepHeader, parent: Run) -> None:
    """Write what the sweep's own run has from its start on, if it is not there yet.

    Parameters cannot change in MLflow: they keep the values with which the sweep was started.
    """
    from mlflow.entities import Param

    run_id, known = parent.info.run_id, parent.data.params
    wanted = sweep_run.parameters(header).items()
    if new := [Param(name, value) for name, value in wanted if name not in known]:
        client.log_batch(run_id, params=new)
    if OUTCOME not in parent.data.tags:
        client.log_inputs(run_id, [dataset_input(header)])
        client.log_dict(run_id, header.plan.to_dict(), "plan.json")
        client.set_tag(run_id, OUTCOME, "running")


def dataset_input(header: SweepHeader) -> DatasetInput:
    """Return the sweep's dataset as an input of runs; MLflow stores it once per experiment."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    manifest = header.manifest or {}
    place, name = header.data_dir.rstrip("/"), header.plan.dataset
    profile = {f"{split}_images": count for split, count in manifest.get("images", {}).items()}
    profile |= {"classes": len(manifest["class_names"])} if "class_names" in manifest else {}
    dataset = Dataset(
        name=name,
        digest=header.plan.fingerprint,
        source_type="s3" if place.startswith("s3:") else "local",
        source=json.dumps({"uri": f"{place}/{name}" if place else name}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _read(run: Run, parent_id: str) -> TrialRun:
    """Return what a trial's run shows. Its mark counts only if its other tags agree."""
    tags, status = run.data.tags, run.info.status
    shown, expected = (status, tags.get(PARENT_RUN_ID)), RUN_STATUS.get(tags.get(OUTCOME, ""))
    mark = tags.get(MARK) if shown == (expected, parent_id) else None
    former = () if STAGE in tags else [name for name in _FORMER_TAGS if name in tags]
    return TrialRun(run.info.run_id, status, mark, tags.get(WEIGHTS_TAG, NO_WEIGHTS), former)


def _find_or_create_experiments(
    client: RetryingClient, header: SweepHeader, paths: SweepPaths, uri: str
) -> list[str]:
    """Return the ids of the experiments that hold runs of the sweep; the first is its own.

    Its own is the one that the ledger remembers, if that still holds runs of the sweep. An
    experiment that was deleted is restored, with its runs, unless another one has active runs.
    """
    from mlflow.entities import ViewType

    known = {one.experiment_id: one for one in pages(client.search_experiments, ViewType.ALL)}
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
        new = client.create_experiment(paths.name, location, tags=_EXPERIMENT_TAGS)
        return [str(new)]
    if own.lifecycle_stage == "deleted":
        client.restore_experiment(own.experiment_id)
    for name, value in _EXPERIMENT_TAGS.items():
        if name not in own.tags:
            client.set_experiment_tag(own.experiment_id, name, value)
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
        for run in pages(
            client.search_runs,
            experiments[first : first + _EXPERIMENTS_PER_SEARCH],
            wanted,
            view,
        )
    ]


def pages(search: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """Yield the results of a search on all its pages."""
    page = search(*arguments)
    yield from page
    while page.token:
        page = search(*arguments, page_token=page.token)
        yield from page
