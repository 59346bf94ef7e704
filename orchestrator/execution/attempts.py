"""Translates between the scheduler's attempts and Ray Tune's trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.execution import ray_internals
from orchestrator.execution.cluster import Capacity
from orchestrator.execution.failure_class import classify_death
from orchestrator.execution.job import Job, Report
from orchestrator.execution.watchdog import Watchdog
from orchestrator.search.scheduler import AttemptStart, TrialScheduler
from orchestrator.storage.paths import attempt_log

# Ray's words about an actor whose process did not start. Its own retries are over by then.
NEVER_RAN, MOST_NEVER_RAN = "The actor never ran", 5


class AttemptRunner:
    """What Tune's searcher and scheduler share. Decides nothing: that is the scheduler's part."""

    def __init__(
        self,
        scheduler: TrialScheduler,
        *,
        new_job: Callable[..., Job],  # from the fields that differ between attempts
        capacity: Capacity,
        watchdog: Watchdog,
        block_if_stopping: Callable[[], None] = lambda: None,
    ) -> None:
        self.scheduler, self.capacity, self.watchdog = scheduler, capacity, watchdog
        self.processes = TrialProcesses()
        # Ends the sweep. Raised inside Tune's loop, it would not reach the driver.
        self.error: BaseException | None = None
        self._new_job, self._block_if_stopping = new_job, block_if_stopping
        self._never_ran = 0  # attempts in a row whose process did not start

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher and scheduler at the start, but nothing reads that."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> AttemptRunner:
        """Tune may copy its searcher and scheduler; the copies share this runner."""
        return self

    @contextmanager
    def keeping_error(self) -> Iterator[None]:
        """Keep an exception of the block in `error` instead of raising it."""
        try:
            yield
        except BaseException as error:
            self.error = error

    def next_config(self) -> dict[str, Any] | str | None:
        """Return the next attempt as a Tune configuration, "finished", or None to ask later."""
        self._block_if_stopping()
        if self.error is not None:
            return "finished"
        # The limit counts Tune's trials, because a trial frees its resources only when Tune is done
        # with it. The next trial, if offered earlier, requests a placement group only to cancel it,
        # and Ray 2.60 sometimes leaks the resources of a group that is cancelled during placement
        # (seen once in 100 trials, with free CPUs).
        self.capacity.refresh()
        if len(self.processes.trials) >= self.capacity.limit:
            return None
        start = self.scheduler.next_start()
        if start is None:
            is_waiting = self.processes.trials or self.scheduler.is_paused()
            return None if is_waiting else "finished"
        address = {"signature": start.signature, "attempt": start.attempt}
        return {**address, "job": self._job(start).to_json()}

    def on_report(self, tune_id: str, report: Report) -> bool:
        """Process a worker's report and return whether its trial must stop."""
        if "kind" not in report:  # Tune's own last result for a function that returned
            return False
        self._never_ran = 0
        self.watchdog.on_report(tune_id, report.get("epoch_s"))
        is_new = self.processes.locate(tune_id, report)
        # A trial leaves a draining node at the end of an epoch, and a new trial leaves at once.
        match report["kind"]:
            case "alive" | "start":
                if is_new:
                    self._leave_draining(tune_id)
            case "epoch":
                if self._on_epoch(report):
                    return True
                self._leave_draining(tune_id)
            case "evaluation":
                result = json.loads(report["result"])
                return self.scheduler.on_evaluation(report["signature"], report["attempt"], result)
            case "end":
                failure = {name: report.get(name) for name in ("failure_class", "failure_text")}
                self._on_end(report, report["outcome"], **failure)
                # Stopping a complete trial saves a round trip before the next may use the process.
                # A diverged trial still has to upload its log, and a failed one may raise to have
                # its process replaced. A worker group ends by itself.
                return self.watchdog.by_step and report["outcome"] == "complete"
        return False

    def _on_epoch(self, report: Report) -> bool:
        """Store an epoch; return whether the trial must stop, or has ended with it."""
        address = report["signature"], report["attempt"]
        epoch: Any = report.get("epoch")  # the scheduler rejects an unusable one
        if self.scheduler.on_epoch(*address, epoch, report, report.get("checkpoint")):
            return True
        is_complete = report.get("outcome") == "complete"
        if is_complete:
            self._on_end(report, "complete")
        return is_complete

    def _on_end(self, address: Mapping[str, Any], outcome: Any, **failure: str | None) -> None:
        self.scheduler.on_end(address["signature"], address["attempt"], outcome=outcome, **failure)

    def on_removal(self, trial: Any, text: str) -> None:
        """Process the end of a Tune trial.

        If its attempt has not reported its own end, its process died and `text` says how.
        """
        self.watchdog.forget(trial.trial_id)
        self.processes.remove(trial.trial_id)
        failure_class = classify_death(text)
        self._on_end(trial.config, "failed", failure_class=failure_class, failure_text=text)
        self._never_ran += failure_class == "killed" and NEVER_RAN in text
        if self._never_ran > MOST_NEVER_RAN + self.capacity.limit:
            raise OrchestratorError(
                f"Ray started no process for {self._never_ran} attempts in a row, and more would "
                "end alike: the cluster's machines may lack this package or its environment, or "
                "may have another version of Ray."
            )

    def check(self) -> None:
        """Process what no report announces: failed resets, a changed cluster, hanging trials."""
        self._block_if_stopping()
        # When Tune cannot reuse an actor for a trial, it ends the trial without calling any hook.
        trials = list(self.processes.trials.values())
        for trial in trials:
            if trial.status == "ERROR":
                self.on_removal(trial, "A worker could not be reused for this trial.")
        self.capacity.refresh()
        running = [trial.trial_id for trial in trials if trial.status == "RUNNING"]
        for tune_id, silent_s in self.watchdog.hanging(running).items():
            text = (
                f"The trial did not report for {silent_s:.0f} s, so its process was ended. "
                "If its steps or epochs take that long, raise --hang-timeout."
            )
            self._kill(tune_id, "hung", text)

    def _leave_draining(self, tune_id: str) -> None:
        """End an attempt whose node will stop soon; its next attempt resumes on another node."""
        leaving = self.capacity.draining & self.processes.nodes[tune_id]
        if leaving and tune_id in self.processes.trials:
            text = f"Its node {min(leaving)} will stop soon, so the attempt ended early."
            self._kill(tune_id, "preempted", text)

    def _kill(self, tune_id: str, failure_class: str, text: str) -> None:
        config = self.processes.trials[tune_id].config
        self._on_end(config, "failed", failure_class=failure_class, failure_text=text)
        self.processes.kill(tune_id)

    def _job(self, start: AttemptStart) -> Job:
        cpus, gpus = self.capacity.shapes[start.variant]
        return self._new_job(
            signature=start.signature,
            attempt=start.attempt,
            config=start.config.to_dict(),
            log=attempt_log(start.signature, start.attempt),
            resume_from=start.resume_from,
            is_evaluated=start.is_evaluated,
            reports_first_step=bool(self.capacity.draining),
            cpus=cpus,
            gpus=gpus,
        )


class TrialProcesses:
    """Tune's live trials with their nodes and placement groups, by Tune's trial id."""

    def __init__(self) -> None:
        self.trials: dict[str, Any] = {}
        self.nodes: dict[str, set[str]] = {}  # ids of the Ray nodes of each located trial
        self._groups: dict[str, str] = {}  # placement groups of worker groups: their ids in hex

    def add(self, trial: Any) -> None:
        """Add a trial that Tune has accepted."""
        self.trials[trial.trial_id] = trial

    def remove(self, tune_id: str) -> None:
        """Remove a trial that is over."""
        self.trials.pop(tune_id, None)
        self.nodes.pop(tune_id, None)
        self._remove_group(tune_id)

    def locate(self, tune_id: str, report: Report) -> bool:
        """Note from a report where its trial runs; return whether this was unknown before."""
        is_new = tune_id not in self.nodes
        if report["kind"] == "start":
            self._groups[tune_id] = report["placement_group"]
            self.nodes[tune_id] = ray_internals.nodes_of_group(report["placement_group"])
        elif is_new:
            self.nodes[tune_id] = {report.get("node", "")}
        return is_new

    def kill(self, tune_id: str) -> None:
        """Kill a trial's processes; Tune notices when they are gone."""
        self._remove_group(tune_id)
        ray_internals.kill_process(self.trials[tune_id])

    def _remove_group(self, tune_id: str) -> None:
        if group_id := self._groups.pop(tune_id, None):
            ray_internals.remove_group(group_id)
