"""Promise C: MLflow holds one run per trial and each of the ledger's values exactly once.

It reads MLflow back through its client and knows nothing of how `tracking` writes: tags and status
words are repeated here on purpose, since they are what a reader of MLflow relies on.
"""

from __future__ import annotations

import collections
import math
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.ledger.records import ENDED, Trial
from orchestrator.redaction import redacted
from orchestrator.verify.facts import Breach, Result, Snapshot, is_open, name_of
from trainables.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_WHAT = "MLflow has one run per trial and every value once"
_STATUS = {
    "complete": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "running": "KILLED",  # it waits for its next attempt
    "planned": "SCHEDULED",
}


def check_tracking(facts: Snapshot, uri: str) -> Result:
    """C: compare MLflow with the ledger. While a driver runs, only what both have so far.

    Args:
        facts: the sweep.
        uri: MLflow's. A database that is not there is not created.
    """
    store = Path(_file_of(uri))
    if uri.startswith("sqlite:///") and not (store.exists() and store.stat().st_size):
        if facts.paths.remote and uri == facts.paths.default_tracking_uri:
            elsewhere = "C: this sweep's MLflow store lies on the machine that ran it last."
            return Result("C", _WHAT, 0, [], elsewhere)
        return Result("C", _WHAT, 0, [Breach("C", "", f"there is no MLflow store at {uri}.")])
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow

    found: list[Breach] = []
    checked = 0
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        by_trial = _runs(client, facts)
        found += [Breach("C", "", text) for text in _parent_problems(facts, by_trial)]
        for trial in facts.trials:
            runs = by_trial.get(trial.signature, [])
            if len(runs) != 1:
                if runs or facts.driver is None:
                    found.append(Breach("C", name_of(trial), f"{len(runs)} runs, not one."))
                continue
            checked += len(facts.rows[trial.signature]) * len(METRIC_NAMES)
            problems = _run_problems(client, facts, trial, runs[0])
            found += [Breach("C", name_of(trial), text) for text in problems]
        strangers = set(by_trial) - {trial.signature for trial in facts.trials} - {""}
        for signature in sorted(strangers if facts.driver is None else ()):
            found.append(Breach("C", signature, "a run of a trial that the ledger does not have."))
    except Exception as error:  # MLflow's own and its database's
        said = (str(error).splitlines() or [""])[0]
        text = f"MLflow at {redacted(uri)} cannot be read: {type(error).__name__}: {said}"
        found.append(Breach("C", "", text))
    return Result("C", _WHAT, checked, found)


def _file_of(uri: str) -> str:
    return urllib.parse.unquote(uri.removeprefix("sqlite:///").partition("?")[0])


def _runs(client: MlflowClient, facts: Snapshot) -> dict[str, list[Run]]:
    """Return the sweep's runs by their trial's signature; the parents' is empty."""
    experiment = client.get_experiment_by_name(facts.paths.name)
    found: dict[str, list[Run]] = collections.defaultdict(list)
    token = None
    while experiment is not None:
        page = client.search_runs(
            [experiment.experiment_id],
            f"tags.`sweep.id` = '{facts.header.sweep_id}'",
            max_results=1000,
            page_token=token,
        )
        for run in page:
            found[run.data.tags.get("sweep.signature", "")].append(run)
        token = page.token
        if not token:
            break
    return found


def _parent_problems(facts: Snapshot, by_trial: dict[str, list[Run]]) -> Iterator[str]:
    parents = by_trial.get("", [])
    if len(parents) != 1:
        if parents or facts.driver is None:
            yield f"{len(parents)} parent runs, not one."
        return
    if facts.driver is None and parents[0].info.status == "RUNNING":
        yield "the parent run is RUNNING, but no driver runs."
    for signature, runs in by_trial.items():
        for run in runs:
            parent = run.data.tags.get("mlflow.parentRunId")
            if signature and parent != parents[0].info.run_id:
                yield f"the run {run.info.run_id} is not a child of the sweep's parent run."


def _run_problems(client: MlflowClient, facts: Snapshot, trial: Trial, run: Run) -> Iterator[str]:
    is_live = facts.driver is not None
    rows = facts.rows[trial.signature]
    for name in METRIC_NAMES:
        wanted = [
            (row.epoch + 1, row.metrics[name], int(row.arrived_s * 1000))
            for row in rows
            if math.isfinite(row.metrics[name])
        ]
        yield from _history_problems(client, run, name, wanted, is_live)
    attempts = facts.attempts[trial.signature]
    if trial.best_value is not None and attempts:
        name = f"best_{facts.header.plan_at(trial.ended_seq or 0).space.metric}"
        ended_ms = int((attempts[-1].ended_s or 0) * 1000)
        yield from _history_problems(client, run, name, [(0, trial.best_value, ended_ms)], is_live)
    if run.data.params or not is_live:
        for name, value in trial.config.items():
            if run.data.params.get(name) != str(value):
                yield f"parameter {name} is {run.data.params.get(name)!r}, not {str(value)!r}."
    if is_live:
        return
    status = run.info.status
    wanted_status = _STATUS[trial.status]
    if is_open(attempts):
        wanted_status = "KILLED"  # nobody runs it; `--resume` goes on with it
    if status != wanted_status:
        yield f"its run is {status}, not {wanted_status}."
    if trial.status in ENDED and run.data.tags.get("sweep.outcome") != trial.status:
        yield f"its run says {run.data.tags.get('sweep.outcome')!r}, not {trial.status!r}."


def _history_problems(
    client: MlflowClient, run: Run, name: str, wanted: list[tuple[int, float, int]], is_live: bool
) -> Iterator[str]:
    history: list[Any] = client.get_metric_history(run.info.run_id, name)
    there = sorted((point.step, point.value, point.timestamp) for point in history)
    if is_live:  # either may have got further meanwhile
        shared = min(len(there), len(wanted))
        there, wanted = there[:shared], wanted[:shared]
    if there == wanted:
        return
    steps = [point[0] for point in there]
    doubled = sorted({step for step in steps if steps.count(step) > 1})
    missing = sorted({step for step, _, _ in wanted} - set(steps))
    differing = sorted({point[0] for point in set(there) ^ set(wanted)} - {*doubled, *missing})
    text = f"{name} is not equal to the ledger: steps doubled {doubled}"
    yield f"{text}, missing {missing}, differing {differing}."
