"""Checks that MLflow has one run per trial and every value of the ledger exactly once.

It reads MLflow through its client and shares no code with `tracking`. The names of tags and the
statuses are repeated here on purpose: users of MLflow rely on them.
"""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from orchestrator.ledger.records import ENDED, Trial
from orchestrator.redaction import redacted
from orchestrator.storage.tracking_uri import sqlite_file
from orchestrator.tracking.database import upgrade_from
from orchestrator.verify.snapshot import Result, Snapshot, is_open, problems_of
from trainables.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_WHAT = "one run per trial, every value once"
_STATUS = {
    "complete": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "running": "KILLED",  # between two attempts
    "planned": "SCHEDULED",
}


def check_tracking(snapshot: Snapshot, uri: str) -> Result:
    """Compare MLflow with the ledger; while a driver runs, only what both have so far.

    A missing MLflow database is not created.
    """
    if (result := _unreadable(snapshot, uri)) is not None:
        return result
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow

    found: list[str] = []
    checked, note = 0, ""
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        by_trial, note = _runs(client, snapshot)
        alone = [trial for trial in snapshot.trials if len(by_trial.get(trial.signature, [])) == 1]
        checked = sum(len(snapshot.rows[trial.signature]) for trial in alone) * len(METRIC_NAMES)
        found.extend(_problems(client, snapshot, by_trial))
    except Exception as error:  # MLflow's own and its database's; what was found before stays
        line = (str(error).splitlines() or [""])[0]
        found.append(f"MLflow: {redacted(uri)} cannot be read: {type(error).__name__}: {line}")
    return Result("MLflow", _WHAT, checked, found, note)


def _unreadable(snapshot: Snapshot, uri: str) -> Result | None:
    """Return the result of a check that cannot be made, None if there is a store to read."""
    store = sqlite_file(uri)
    if store is not None and not (store.exists() and store.stat().st_size):
        if snapshot.paths.remote and uri == snapshot.paths.default_tracking_uri:
            elsewhere = "MLflow: the store is on the machine that ran this sweep last."
            return Result("MLflow", _WHAT, 0, [], elsewhere)
        return Result("MLflow", _WHAT, 0, [f"MLflow: there is no MLflow store at {uri}."])
    if upgrade_from(uri) is not None:
        older = "MLflow: the database is of an older version; --resume keeps a copy of it."
        return Result("MLflow", _WHAT, 0, [], older)
    return None


def _problems(
    client: MlflowClient, snapshot: Snapshot, by_trial: dict[str, list[Run]]
) -> Iterator[str]:
    yield from (f"MLflow: {text}" for text in _parent_problems(snapshot, by_trial))
    for trial in snapshot.trials:
        runs = by_trial.get(trial.signature, [])
        if len(runs) == 1:
            yield from problems_of("MLflow", trial, _run_problems(client, snapshot, trial, runs[0]))
        elif runs or snapshot.driver is None:
            yield from problems_of("MLflow", trial, [f"it has {len(runs)} runs, not 1."])
    strangers = set(by_trial) - {trial.signature for trial in snapshot.trials} - {""}
    if snapshot.driver is None:
        text = "there is a run of a trial that the ledger does not have."
        yield from (f"MLflow: {signature}: {text}" for signature in sorted(strangers))


def _runs(client: MlflowClient, snapshot: Snapshot) -> tuple[dict[str, list[Run]], str]:
    """Return the sweep's runs by their trial's signature; "" has the sweep's own run.

    They may be in any experiment. Copies of runs in other experiments than the sweep's are only
    counted, in the text.
    """
    experiments = {one.experiment_id: one for one in _all_pages(client.search_experiments)}
    wanted = f"tags.`sweep.id` = '{snapshot.header.sweep_id}'"
    numbers = list(experiments)
    runs: list[Run] = []
    for first in range(0, len(numbers), 100):
        among = numbers[first : first + 100]
        runs += _all_pages(client.search_runs, experiment_ids=among, filter_string=wanted)

    def order(number: str) -> tuple[bool, bool, int]:
        one = experiments[number]
        is_ours = number == snapshot.header.mlflow_experiment
        return not is_ours, one.name != snapshot.paths.name, one.creation_time or 0

    own = min({run.info.experiment_id for run in runs}, key=order, default="")
    of_trial: dict[str, list[Run]] = collections.defaultdict(list)
    for run in runs:
        of_trial[run.data.tags.get("sweep.signature", "")].append(run)
    found = {
        signature: [run for run in each if run.info.experiment_id == own] or each
        for signature, each in of_trial.items()
    }
    copies = len(runs) - sum(map(len, found.values()))
    note = f"MLflow: {copies} copies of this sweep's runs, in other experiments than its own."
    return found, note if copies else ""


def _all_pages(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(**arguments, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _parent_problems(snapshot: Snapshot, by_trial: dict[str, list[Run]]) -> Iterator[str]:
    parents = by_trial.get("", [])
    if len(parents) != 1:
        if parents or snapshot.driver is None:
            yield f"the sweep has {len(parents)} parent runs, not 1."
        return
    if snapshot.driver is None and parents[0].info.status == "RUNNING":
        yield "the parent run has the status RUNNING, but no driver is running."
    for signature, runs in by_trial.items():
        for run in runs:
            parent = run.data.tags.get("mlflow.parentRunId")
            if signature and parent != parents[0].info.run_id:
                yield f"the run {run.info.run_id} is not a child of the sweep's parent run."


def _run_problems(
    client: MlflowClient, snapshot: Snapshot, trial: Trial, run: Run
) -> Iterator[str]:
    yield from _metric_problems(client, snapshot, trial, run)
    if run.data.params or snapshot.driver is None:
        # Earlier versions wrote all hyperparameters, not only those that were searched.
        searched = {"variant", *trial.params}
        for name, value in trial.config.items():
            got = run.data.params.get(name)
            if got != str(value) and (got is not None or name in searched):
                yield f"the parameter {name} is {got!r}, but {str(value)!r} in the ledger."
    if snapshot.driver is not None:
        return
    # No process runs an open attempt until the sweep is resumed.
    was_killed = is_open(snapshot.attempts[trial.signature])
    status = "KILLED" if was_killed else _STATUS[trial.status]
    if run.info.status != status:
        yield f"the status of its run is {run.info.status}, not {status}."
    outcome = run.data.tags.get("sweep.outcome")
    if trial.status in ENDED and outcome != trial.status:
        yield f"the tag sweep.outcome of its run is {outcome!r}, not {trial.status!r}."


def _metric_problems(
    client: MlflowClient, snapshot: Snapshot, trial: Trial, run: Run
) -> Iterator[str]:
    values: dict[str, list[tuple[int, float, int]]] = {
        name: [
            (row.epoch + 1, row.metrics[name], int(row.arrived_s * 1000))
            for row in snapshot.rows[trial.signature]
            if math.isfinite(row.metrics[name])
        ]
        for name in METRIC_NAMES
    }
    attempts = snapshot.attempts[trial.signature]
    if trial.best_value is not None and attempts:
        metric = snapshot.header.plan_at(trial.ended_seq or 0).space.metric
        ended_ms = int((attempts[-1].ended_s or 0) * 1000)
        values[f"best_{metric}"] = [(0, trial.best_value, ended_ms)]
    for name, recorded in values.items():
        history: list[Any] = client.get_metric_history(run.info.run_id, name)
        there = sorted((point.step, point.value, point.timestamp) for point in history)
        wanted = recorded
        if snapshot.driver is not None:  # either may be ahead of the other
            shared = min(len(there), len(wanted))
            there, wanted = there[:shared], wanted[:shared]
        if there == wanted:
            continue
        steps = [point[0] for point in there]
        repeated = sorted({step for step in steps if steps.count(step) > 1})
        missing = sorted({step for step, _, _ in wanted} - set(steps))
        differing = sorted({point[0] for point in set(there) ^ set(wanted)} - {*repeated, *missing})
        text = f"the steps of {name} differ from the ledger: repeated {repeated}"
        yield f"{text}, missing {missing}, different {differing}."
