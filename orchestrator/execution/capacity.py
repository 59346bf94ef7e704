"""How many trials the cluster can run now."""

from __future__ import annotations

from orchestrator.clock import Clock
from orchestrator.execution import cluster, ray_internals
from orchestrator.plan.machines import Shape, fitting, shapes, total
from orchestrator.plan.plan import Plan

REFRESH_EVERY_S = 1.0


class Capacity:
    """The cluster's capacity for a plan's trials, which changes as nodes join and leave."""

    def __init__(
        self, plan: Plan, *, max_concurrent: int | None, gpus_per_trial: float | None, clock: Clock
    ) -> None:
        self._plan, self._clock = plan, clock
        self._max_concurrent, self._gpus_per_trial = max_concurrent, gpus_per_trial
        self._has_gpus = False  # stays true: if the last GPU leaves, trials wait for the next
        self._refreshed_s: float | None = None
        self.shapes: dict[str, Shape] = {}  # by variant
        self.limit = 0  # trials at a time
        self.draining: set[str] = set()  # ids of the nodes that will stop soon

    def refresh(self) -> None:
        """Ask Ray for the cluster's nodes, at most once a second."""
        now_s = self._clock.monotonic_s()
        if self._refreshed_s is not None and now_s - self._refreshed_s < REFRESH_EVERY_S:
            return
        self._refreshed_s = now_s
        machines = cluster.machines()
        self._has_gpus = self._has_gpus or total(machines)[1] > 0
        self.shapes = shapes(
            self._plan, has_gpus=self._has_gpus, gpus_per_trial=self._gpus_per_trial
        )
        fits = max(fitting(self._plan, machines, self.shapes).values())
        # One trial may always wait for a machine: its request makes an autoscaler add one.
        self.limit = max(1, min(self._max_concurrent or fits, fits))
        self.draining = ray_internals.draining_nodes()
