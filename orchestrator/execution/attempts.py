"""The attempts that Ray Tune runs now."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from orchestrator.execution import cluster, ray_internals
from orchestrator.execution.failure_class import classify_death
from orchestrator.execution.job import Job
from orchestrator.execution.watchdog import Watchdog
from orchestrator.plan.machines import Shape, fitting, have_gpus, shapes
from orchestrator.search.scheduler import AttemptStart, TrialScheduler
from orchestrator.storage.paths import DataLocation

LOOK_EVERY_S = 1.0  # at the cluster


class AttemptRunner:
    """What searcher and scheduler share: the scheduler, and what an attempt needs to start."""

    def __init__(
        self,
        scheduler: TrialScheduler,
        gpus_per_trial: float | None,
        sweep_dir: Path,
        dataset: DataLocation,
        max_concurrent: int | None,
        watchdog: Watchdog,
        keep_all: bool,
        storage: str | None,
    ) -> None:
        self.watchdog, self.keep_all, self.storage = watchdog, keep_all, storage
        self.scheduler, self.gpus_per_trial = scheduler, gpus_per_trial
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

    def __deepcopy__(self, memo: dict[int, Any]) -> AttemptRunner:
        """Tune may copy its searcher and scheduler; the sweep's state is one."""
        return self

    def next_config(self) -> dict[str, Any] | str | None:
        """Return the next attempt as a Tune configuration, "finished", or None to ask later."""
        if self.error is not None:
            return "finished"
        # Tune's own trials count, not the scheduler's: one is over only when its worker is free
        # again. Offered earlier, the next trial would ask for a placement group only to cancel it,
        # and Ray 2.60 now and then leaks the resources of a group that is cancelled while it is
        # placed (seen once in 100 trials, with CPUs to spare).
        self.look_around()
        if len(self.live) >= self.limit:
            return None
        start = self.scheduler.next_start()
        if start is None:
            return None if self.live or self.scheduler.is_paused() else "finished"
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
            self.nodes[tune_id] = ray_internals.nodes_of_place(result["placement_group"])
        elif is_first:
            self.nodes[tune_id] = {result.get("node", "")}
        if kind == "epoch":
            epoch: Any = result.get("epoch")
            if self.scheduler.on_epoch(*address, epoch, result, result.get("checkpoint")):
                return True
            if result.get("outcome") == "complete":
                self.scheduler.on_end(*address, outcome="complete")
                return True
        # A node that is about to go is left at the end of an epoch, and at once by a new trial.
        if kind == "epoch" or (is_first and kind in ("alive", "start")):
            self._leave_draining(tune_id)
        if kind == "evaluation":
            return self.scheduler.on_evaluation(*address, json.loads(result["result"]))
        if kind == "end":
            self.scheduler.on_end(
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
        plan, machines = self.scheduler.plan, cluster.machines()
        self.has_gpus = self.has_gpus or have_gpus(machines)
        self.shapes = shapes(plan, has_gpus=self.has_gpus, gpus_per_trial=self.gpus_per_trial)
        fits = max(fitting(plan, machines, self.shapes).values())
        # One may wait for a machine: that is what makes an autoscaler bring it.
        self.limit = max(1, min(self.max_concurrent or fits, fits))
        self.draining = ray_internals.draining_nodes()

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
        self.scheduler.on_end(
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
        self.scheduler.on_end(
            config["signature"],
            config["attempt"],
            outcome="failed",
            failure_class=classify_death(text),
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
            is_evaluated=start.is_evaluated,
            says_where=bool(self.draining),
            cpus=cpus,
            gpus=gpus,
        )


def _failure_class(result: dict[str, Any]) -> str | None:
    """Return the class of a failure that a worker reported; of a death Ray's words decide."""
    if "death" in result:
        return classify_death(result["death"])
    kind: str | None = result.get("failure_class")
    return kind
