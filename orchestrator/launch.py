"""The door to Ray Tune: runs the conductor's attempts as Tune trials, on a cluster of `cluster`.

Tune brings actors, placement and reuse; every decision is the conductor's. Tune's own state goes
to a temporary folder and is thrown away: the ledger is the truth.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator import cluster
from orchestrator.plan.machines import Shape, fitting, have_gpus, shapes, workers_per_trial
from orchestrator.search import retry_policy
from orchestrator.search.scheduler import AttemptStart, TrialScheduler
from orchestrator.storage import sweeps
from orchestrator.storage.paths import DataLocation, SweepPaths
from orchestrator.watchdog import Watchdog
from trainables.group import group_resources, group_trial
from trainables.worker import Job, resources, run_trial

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # at the cluster


def run(
    conductor: TrialScheduler,
    *,
    paths: SweepPaths,
    dataset: DataLocation,
    max_concurrent: int | None,
    gpus_per_trial: float | None,
    hang_timeout_s: float,
    keep_all: bool,
    is_local: bool,
) -> None:
    """Run attempts on the cluster that was joined until the conductor has none left.

    Args:
        conductor: decides.
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

    _set_environment(is_local)
    workers = workers_per_trial(conductor.plan)
    # Ours is the only limit; Tune's would not grow with the cluster.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "100000"
    temporary = Path(tempfile.mkdtemp(prefix="sweep-tune-"))
    storage = sweeps.storage_of(paths)
    _let_tune_take_every_death()
    jobs = _Jobs(
        conductor,
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


def _set_environment(is_local: bool) -> None:
    """Choose what of this process's environment Tune gives the trials' processes.

    To a local Ray nothing, as its processes have it: an environment of their own would keep them
    from being those that Ray has started in advance, one per CPU (1 s of each process's start).
    """
    from ray.tune.execution import class_cache

    if is_local:
        class_cache.DEFAULT_ENV_VARS.clear()
        class_cache.ENV_VARS_TO_PROPAGATE.clear()
    else:
        # Letting go of a trial may take longer than the 2 s that a joined cluster's give it.
        class_cache.ENV_VARS_TO_PROPAGATE.add("TUNE_FUNCTION_THREAD_TIMEOUT_S")


class _Jobs:
    """What searcher and scheduler share: the conductor, and what an attempt needs to start."""

    def __init__(
        self,
        conductor: TrialScheduler,
        gpus_per_trial: float | None,
        sweep_dir: Path,
        dataset: DataLocation,
        max_concurrent: int | None,
        watchdog: Watchdog,
        keep_all: bool,
        storage: str | None,
    ) -> None:
        self.watchdog, self.keep_all, self.storage = watchdog, keep_all, storage
        self.conductor, self.gpus_per_trial = conductor, gpus_per_trial
        self.shapes: dict[str, Shape] = {}
        self.has_gpus = False  # once there was one, trials wait for the next
        self.sweep_dir, self.dataset, self.max_concurrent = sweep_dir, dataset, max_concurrent
        self.error: BaseException | None = None
        self.live: dict[str, Any] = {}  # Tune's trials, by their id
        self.places: dict[str, str] = {}  # of worker groups: their placement groups' ids in hex
        self.nodes: dict[str, set[str]] = {}  # where trials run: ids of Ray's nodes
        self.limit, self.draining = 0, set[str]()
        self._looked_s: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher and scheduler at the start; nobody ever reads that."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Jobs:
        """Tune may copy its searcher and scheduler; the sweep's state is one."""
        return self

    def next_config(self) -> dict[str, Any] | str | None:
        """Return the next attempt as a Tune configuration, "finished", or None to ask later."""
        if self.error is not None:
            return "finished"
        # Tune's own trials count, not the conductor's: one is over only when its worker is free
        # again. Offered earlier, the next trial would ask for a placement group only to cancel it,
        # and Ray 2.60 now and then leaks the resources of a group that is cancelled while it is
        # placed (seen once in 100 trials, with CPUs to spare).
        self.look_around()
        if len(self.live) >= self.limit:
            return None
        start = self.conductor.next_start()
        if start is None:
            return None if self.live or self.conductor.is_paused() else "finished"
        return {
            "job": self._job(start).to_json(),
            "signature": start.signature,
            "attempt": start.attempt,
        }

    def on_report(self, tune_id: str, result: dict[str, Any]) -> bool:
        """Take a worker's report and return whether its trial is to stop."""
        kind = result.get("kind")
        if kind is None:  # Tune's own last word on a function that returned
            return False
        address: tuple[str, int] = result["signature"], result["attempt"]
        self.watchdog.sign_of_life(tune_id, result.get("epoch_s"))
        is_first = tune_id not in self.nodes
        if kind == "start":
            self.places[tune_id] = result["placement_group"]
            self.nodes[tune_id] = cluster.nodes_of_place(result["placement_group"])
        elif is_first:
            self.nodes[tune_id] = {result.get("node", "")}
        if kind == "epoch":
            epoch: Any = result.get("epoch")
            if self.conductor.on_epoch(*address, epoch, result, result.get("checkpoint")):
                return True
            if result.get("outcome") == "complete":
                self.conductor.on_end(*address, outcome="complete")
                return True
        # A node that is about to go is left at the end of an epoch, and at once by a new trial.
        if kind == "epoch" or (is_first and kind in ("alive", "start")):
            self._leave_draining(tune_id)
        if kind == "evaluation":
            return self.conductor.on_evaluation(*address, json.loads(result["result"]))
        if kind == "end":
            self.conductor.on_end(
                *address,
                outcome=result["outcome"],
                failure_class=_failure_class(result),
                failure_text=result.get("failure_text"),
            )
            # Nothing follows: one round trip less until the next trial may have the process. Other
            # ends go on: a diverged trial's log is not stored yet, a failed one's process may be
            # spent.
            return self.watchdog.by_step and result["outcome"] == "complete"
        return False

    def free_place(self, tune_id: str) -> None:
        """Remove the placement group of a worker group that is over, should it still be there."""
        place = self.places.pop(tune_id, None)
        if place:
            from ray import PlacementGroupID
            from ray.util.placement_group import PlacementGroup, remove_placement_group

            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(place))))

    def look_around(self) -> None:
        """See every second how large the cluster is now and which of its nodes are to go."""
        now_s = time.monotonic()
        if self._looked_s is not None and now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        plan, machines = self.conductor.plan, cluster.machines()
        self.has_gpus = self.has_gpus or have_gpus(machines)
        self.shapes = shapes(plan, has_gpus=self.has_gpus, gpus_per_trial=self.gpus_per_trial)
        fits = max(fitting(plan, machines, self.shapes).values())
        # One may wait for a machine: that is what makes an autoscaler bring it.
        self.limit = max(1, min(self.max_concurrent or fits, fits))
        self.draining = cluster.draining_nodes()

    def _leave_draining(self, tune_id: str) -> None:
        """End a trial whose node is about to go; it goes on elsewhere from its last checkpoint."""
        leaving = self.draining & self.nodes[tune_id]
        if leaving and tune_id in self.live:
            self._end(
                tune_id,
                "preempted",
                f"Its node {min(leaving)} is about to go, so it was ended after its epoch.",
            )

    def _end(self, tune_id: str, failure_class: str, text: str) -> None:
        """End a trial together with its process; Tune sees it when that is gone."""
        import ray

        trial = self.live[tune_id]
        self.conductor.on_end(
            trial.config["signature"],
            trial.config["attempt"],
            outcome="failed",
            failure_class=failure_class,
            failure_text=text,
        )
        self.free_place(tune_id)
        actor = trial.temporary_state.ray_actor
        if actor is not None:
            ray.kill(actor)

    def end_hanging(self) -> None:
        """End the trials that give no sign of life; Tune sees it when their process is gone."""
        running = [key for key, trial in self.live.items() if trial.status == "RUNNING"]
        for tune_id, silent_s in self.watchdog.hanging(running).items():
            self._end(
                tune_id,
                "hung",
                f"The trial gave no sign of life for {silent_s:.0f} s, so its process was ended. "
                "If its steps or epochs take that long, raise --hang-timeout.",
            )

    def on_death(self, config: dict[str, Any], text: str) -> None:
        """Take the end of an attempt whose process said nothing."""
        self.conductor.on_end(
            config["signature"],
            config["attempt"],
            outcome="failed",
            failure_class=retry_policy.classify_death(text),
            failure_text=text,
        )

    def _job(self, start: AttemptStart) -> Job:
        cpus, gpus = self.shapes[start.variant]
        return Job(
            signature=start.signature,
            attempt=start.attempt,
            config=start.config.to_dict(),
            dataset_dir=str(self.dataset.folder),
            data_address=self.dataset.address,
            sweep_dir=str(self.sweep_dir),
            storage=self.storage,
            log=f"trials/{start.signature}/attempt_{start.attempt}.log",
            resume_from=start.resume_from,
            keep_all=self.keep_all,
            is_judged=start.is_judged,
            says_where=bool(self.draining),
            cpus=cpus,
            gpus=gpus,
        )


def _failure_class(result: dict[str, Any]) -> str | None:
    """Return the class of a failure that a worker reported; of a death Ray's words decide."""
    if "death" in result:
        return retry_policy.classify_death(result["death"])
    kind: str | None = result.get("failure_class")
    return kind


def _searcher(jobs: _Jobs) -> Any:
    """Return Tune's searcher: it offers what the conductor says."""
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


def _scheduler(jobs: _Jobs) -> Any:  # noqa: C901 - one class, six short hooks
    """Return Tune's scheduler: it passes reports on and stops what the conductor stops."""
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
            self._gone(trial, _death_of(trial))

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


def _death_of(trial: Any) -> str:
    """Return what Ray says of the death of a trial's process.

    `trial.get_error()` looks where Tune has not copied it yet.
    """
    try:
        return Path(trial.error_file).read_text()
    except (OSError, TypeError):
        return "The worker process died."


def _let_tune_take_every_death() -> None:
    """Make an actor's death of any cause the end of its trial, not of all of Tune.

    Ray says of an actor that it killed for want of memory `OutOfMemoryError`, of others
    `NodeDiedError` or `WorkerCrashedError`; Tune 2.60 knows `RayActorError` only and raises at the
    rest (`ray/air/execution/_internal/actor_manager.py`).
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import RayActorError, RayError, RayTaskError

    original = RayActorManager._actor_task_failed
    if getattr(original, "takes_every_death", False):
        return

    def take(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(
            exception, RayActorError | RayTaskError
        ):
            text = f"{type(exception).__name__}: {exception}"
            exception = RayActorError(error_msg=text)
        original(self, tracked_actor_task, exception)

    take.takes_every_death = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = take  # type: ignore[method-assign]
