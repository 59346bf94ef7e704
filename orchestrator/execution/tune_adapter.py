"""The door to Ray Tune: runs the scheduler's attempts as Tune trials, on a cluster of `cluster`.

Tune brings actors, placement and reuse; every decision is the scheduler's. Tune's own state goes
to a temporary folder and is thrown away: the ledger is the truth.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.execution.attempts import AttemptRunner
from orchestrator.execution.group import group_resources, group_trial
from orchestrator.execution.ray_internals import (
    accept_every_actor_death,
    death_message,
    set_trial_environment,
)
from orchestrator.execution.watchdog import Watchdog
from orchestrator.execution.worker import resources, run_trial
from orchestrator.plan.machines import workers_per_trial
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.storage import sweeps
from orchestrator.storage.paths import DataLocation, SweepPaths

log = logging.getLogger(__name__)


def run(
    scheduler: TrialScheduler,
    *,
    paths: SweepPaths,
    dataset: DataLocation,
    max_concurrent: int | None,
    gpus_per_trial: float | None,
    hang_timeout_s: float,
    keep_all: bool,
    is_local: bool,
) -> None:
    """Run attempts on the cluster that was joined until the scheduler has none left.

    Args:
        scheduler: decides.
        paths: where logs and checkpoints go.
        dataset: the prepared one's folder, on every host, and where a host that lacks it
            fetches it from.
        max_concurrent: attempts at a time; None: what the cluster holds.
        gpus_per_trial: share of a device per worker; None: as the space says.
        hang_timeout_s: a trial without a sign of life for so long is ended and tried again.
        keep_all: whether trials keep every epoch's checkpoint.
        is_local: whether Ray was started by this process, and so has its environment.
    """
    from ray import tune

    set_trial_environment(is_local)
    workers = workers_per_trial(scheduler.plan)
    # Ours is the only limit; Tune's would not grow with the cluster.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "100000"
    temporary = Path(tempfile.mkdtemp(prefix="sweep-tune-"))
    storage = sweeps.storage_of(paths)
    accept_every_actor_death()
    jobs = AttemptRunner(
        scheduler,
        gpus_per_trial,
        paths.root.absolute(),
        DataLocation(dataset.folder.absolute(), dataset.address),
        max_concurrent,
        Watchdog(hang_timeout_s, by_step=workers == 1),
        keep_all,
        storage.uri if storage else None,
    )
    trial = run_trial if workers == 1 else group_trial(workers, str(temporary / "train"))
    try:
        tune.Tuner(
            tune.with_resources(trial, resources if workers == 1 else group_resources),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(jobs),
                scheduler=_scheduler(jobs),
                num_samples=-1,
                # With a worker group per trial, reuse hangs the sweep after a stopped trial.
                reuse_actors=workers == 1,
                trial_dirname_creator=lambda trial: trial.trial_id,
                trial_name_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(temporary),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if jobs.error is not None:
        raise jobs.error


def _searcher(jobs: AttemptRunner) -> Any:
    """Return Tune's searcher: it offers what the scheduler says."""
    from ray.tune.search import Searcher

    class OfferAttempts(Searcher):
        def suggest(self, trial_id: str) -> Any:
            try:
                config = jobs.next_config()
            except BaseException as error:  # a broken ledger ends the sweep, not Tune's loop
                jobs.error = error
                return Searcher.FINISHED
            return Searcher.FINISHED if config == "finished" else config

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            pass

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

        def set_search_properties(self, *_: Any, **__: Any) -> bool:
            return True

        def save(self, path: str) -> None:
            pass

        def restore(self, path: str) -> None:
            pass

    return OfferAttempts()


def _scheduler(jobs: AttemptRunner) -> Any:  # noqa: C901 - one class, six short hooks
    """Return Tune's scheduler: it passes reports on and stops what the scheduler stops."""
    from ray.tune.experiment import Trial as TuneTrial
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class StopTrials(FIFOScheduler):
        def on_trial_add(self, controller: Any, trial: TuneTrial) -> None:
            jobs.live[trial.trial_id] = trial

        def on_trial_result(self, controller: Any, trial: TuneTrial, result: Any) -> str:
            try:
                stop = jobs.error is not None or jobs.on_report(trial.trial_id, result)
            except BaseException as error:
                jobs.error, stop = error, True
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

        def on_trial_complete(self, controller: Any, trial: TuneTrial, result: Any) -> None:
            self._gone(trial, "The trial ended without a word.")

        def on_trial_remove(self, controller: Any, trial: TuneTrial) -> None:
            self._gone(trial, "The trial was removed before it ended.")

        def on_trial_error(self, controller: Any, trial: TuneTrial) -> None:
            self._gone(trial, death_message(trial))

        def choose_trial_to_run(self, controller: Any) -> Any:
            # A failed reset of a reused actor ends a Tune trial without telling anyone.
            for trial in [t for t in jobs.live.values() if t.status == TuneTrial.ERROR]:
                self._gone(trial, "A worker could not be reused for this trial.")
            try:
                jobs.look_around()
                jobs.end_hanging()
            except BaseException as error:
                jobs.error = error
            return super().choose_trial_to_run(controller)

        def _gone(self, trial: TuneTrial, text: str) -> None:
            jobs.live.pop(trial.trial_id, None)
            jobs.nodes.pop(trial.trial_id, None)
            jobs.watchdog.forget(trial.trial_id)
            try:
                jobs.free_place(trial.trial_id)
                jobs.on_death(trial.config, text)
            except BaseException as error:
                jobs.error = error

    return StopTrials()  # type: ignore[no-untyped-call]
