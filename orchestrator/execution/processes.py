"""The processes of Tune's live trials: where they run, and how to end them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.execution import ray_internals


class TrialProcesses:
    """Tune's live trials with their nodes and placement groups, by Tune's trial id."""

    def __init__(self) -> None:
        self.trials: dict[str, Any] = {}
        self._nodes: dict[str, set[str]] = {}  # ids of Ray's nodes
        self._groups: dict[str, str] = {}  # placement groups of worker groups: their ids in hex

    def add(self, trial: Any) -> None:
        """Add a trial that Tune has accepted."""
        self.trials[trial.trial_id] = trial

    def remove(self, tune_id: str) -> None:
        """Remove a trial that is over."""
        self.trials.pop(tune_id, None)
        self._nodes.pop(tune_id, None)
        self._remove_group(tune_id)

    def with_status(self, status: str) -> list[str]:
        """Return the ids of the trials whose status in Tune is this one."""
        return [tune_id for tune_id, trial in self.trials.items() if trial.status == status]

    def locate(self, tune_id: str, report: Mapping[str, Any]) -> bool:
        """Note from a report where its trial runs; return whether this was unknown before."""
        is_new = tune_id not in self._nodes
        if report["kind"] == "start":
            self._groups[tune_id] = report["placement_group"]
            self._nodes[tune_id] = ray_internals.nodes_of_group(report["placement_group"])
        elif is_new:
            self._nodes[tune_id] = {report.get("node", "")}
        return is_new

    def nodes(self, tune_id: str) -> set[str]:
        """Return the ids of the nodes on which a located trial runs."""
        return self._nodes[tune_id]

    def kill(self, tune_id: str) -> None:
        """Kill a trial's processes; Tune notices when they are gone."""
        self._remove_group(tune_id)
        ray_internals.kill_process(self.trials[tune_id])

    def _remove_group(self, tune_id: str) -> None:
        if group_id := self._groups.pop(tune_id, None):
            ray_internals.remove_group(group_id)
