"""Runs the scheduler's attempts as Ray Tune trials.

Tune contributes actors, their placement and their reuse; the scheduler makes every decision. Tune's
own state goes to a temporary folder and is deleted, because the ledger is the record.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.clock import Clock
from orchestrator.execution import group, ray_internals, worker
from orchestrator.execution.attempts import AttemptRunner
from orchestrator.execution.cluster import Capacity
from orchestrator.execution.job import Job
from orchestrator.execution.watchdog import Watchdog
from orchestrator.plan.machines import workers_per_trial
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.storage import sweeps
from orchestrator.storage.paths import DataLocation, SweepPaths


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionOptions:
    """How attempts run, as the user asked."""

    max_concurrent: int | None  # None: as many as fit the cluster
    gpus_per_trial: float | None  # share of a device per worker; None: as the space says
    hang_timeout_s: float  # a trial that does not report for so long is ended and retried
    keep_all: bool  # every epoch's checkpoint, not just the last and the best


def run(
    scheduler: TrialScheduler,
    *,
    paths: SweepPaths,
    dataset: DataLocation,
    options: ExecutionOptions,
    is_local: bool,
    clock: Clock,
    block_if_stopping: Callable[[], None] = lambda: None,
) -> None:
    """Run attempts on the cluster that this process joined until the scheduler has none left.

    The prepared dataset has the same folder on every host; a host without it fetches it from the
    dataset's address. With `is_local` this process started Ray, so Ray's processes have its
    environment. `block_if_stopping` is called in each pass of Tune's loop; it blocks for good once
    the caller is about to leave the cluster.
    """
    ray_internals.set_trial_environment(is_local)
    ray_internals.accept_every_actor_death()
    # `Capacity` limits the concurrent trials; Tune's own limit would not grow with the cluster.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "100000"
    workers = workers_per_trial(scheduler.plan)
    storage = sweeps.storage_of(paths)
    runner = AttemptRunner(
        scheduler,
        new_job=functools.partial(
            Job,
            sweep_dir=str(paths.root.absolute()),
            dataset_dir=str(dataset.folder.absolute()),
            data_address=dataset.address,
            storage=storage.uri if storage else None,
            keep_all=options.keep_all,
        ),
        capacity=Capacity(
            scheduler.plan,
            max_concurrent=options.max_concurrent,
            gpus_per_trial=options.gpus_per_trial,
            clock=clock,
        ),
        watchdog=Watchdog(options.hang_timeout_s, by_step=workers == 1, clock=clock),
        block_if_stopping=block_if_stopping,
    )
    _fit(runner, workers)
    if runner.error is not None:
        raise runner.error


def _fit(runner: AttemptRunner, workers: int) -> None:
    """Run Tune until its searcher has no trial left."""
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="sweep-tune-", ignore_cleanup_errors=True) as folder:
        trial, resources = worker.run_trial, worker.resources
        if workers > 1:
            storage = f"{folder}/train"
            trial = functools.partial(group.run_group_trial, workers=workers, storage=storage)
            resources = group.group_resources
        tune.Tuner(
            tune.with_resources(trial, resources),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(runner),
                scheduler=_scheduler(runner),
                num_samples=-1,
                # With a worker group per trial, reuse makes the sweep hang after a stopped trial.
                reuse_actors=workers == 1,
                trial_dirname_creator=lambda trial: trial.trial_id,
                trial_name_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        ).fit()


def _searcher(runner: AttemptRunner) -> Any:
    """Return Tune's searcher, which offers the scheduler's next attempt."""
    from ray.tune.search import Searcher

    class OfferAttempts(Searcher):
        def suggest(self, trial_id: str) -> Any:
            config: Any = "finished"
            with runner.keeping_error():
                config = runner.next_config()
            return Searcher.FINISHED if config == "finished" else config

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

        def set_search_properties(self, *_: Any, **__: Any) -> bool:
            return True

        def save(self, path: str) -> None:
            pass

    return OfferAttempts()


def _scheduler(runner: AttemptRunner) -> Any:
    """Return Tune's scheduler, which forwards reports and stops the trials that must stop."""
    from ray.tune.experiment import Trial as TuneTrial
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class StopTrials(FIFOScheduler):
        def on_trial_add(self, controller: Any, trial: TuneTrial) -> None:
            runner.processes.add(trial)

        def on_trial_result(self, controller: Any, trial: TuneTrial, result: Any) -> str:
            must_stop = True
            with runner.keeping_error():
                must_stop = runner.error is not None or runner.on_report(trial.trial_id, result)
            return TrialScheduler.STOP if must_stop else TrialScheduler.CONTINUE

        def on_trial_complete(self, controller: Any, trial: TuneTrial, result: Any) -> None:
            self._remove(trial, "The trial's process ended without reporting why.")

        def on_trial_remove(self, controller: Any, trial: TuneTrial) -> None:
            self._remove(trial, "The trial was removed before it ended.")

        def on_trial_error(self, controller: Any, trial: TuneTrial) -> None:
            self._remove(trial, ray_internals.death_message(trial))

        def choose_trial_to_run(self, controller: Any) -> Any:
            with runner.keeping_error():
                runner.check()
            return super().choose_trial_to_run(controller)

        def _remove(self, trial: TuneTrial, text: str) -> None:
            with runner.keeping_error():
                runner.on_removal(trial, text)

    return StopTrials()  # type: ignore[no-untyped-call]
