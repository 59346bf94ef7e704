"""The rows of a ledger: trials, attempts and epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

TrialStatus = Literal["planned", "running", "complete", "stopped", "diverged", "failed"]
# A final trial trains the best configuration of its variant's search with another seed.
Stage = Literal["search", "final"]
Metrics = Mapping[str, float]  # those of one epoch, by name: the fields of `EpochMetrics`
ENDED: tuple[TrialStatus, ...] = ("complete", "stopped", "diverged", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One planned configuration and its status."""

    signature: str
    variant: str
    stage: Stage
    number: int
    origin: str | None
    config: dict[str, Any]
    params: dict[str, Any]
    seen_seq: int
    planned_seq: int
    changed_seq: int
    ended_seq: int | None
    status: TrialStatus
    best_epoch: int | None
    best_value: float | None

    @property
    def name(self) -> str:
        """The trial's name in printed text."""
        stage = "final-" if self.stage == "final" else ""
        return f"{self.variant}-{stage}{self.number:03d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One execution of a trial."""

    signature: str
    attempt: int
    started_s: float
    ended_s: float | None
    resumed_from: str | None
    micro_batch_size: int
    log: str | None
    outcome: str | None
    failure_class: str | None
    failure_text: str | None

    def span_s(self, rows: Sequence[EpochRow]) -> tuple[float, float]:
        """Return the Unix times of its start and end.

        An attempt whose driver died is closed much later, so it ends with its last epoch among its
        trial's rows; so does an attempt that is running.
        """
        end = self.ended_s
        if end is None or self.outcome == "lost":
            arrived = [row.arrived_s for row in rows if row.attempt == self.attempt]
            end = max(arrived, default=self.started_s)
        return self.started_s, max(end, self.started_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRow:
    """The metrics of one epoch of one trial, as they first arrived."""

    seq: int
    signature: str
    epoch: int
    attempt: int
    arrived_s: float
    checkpoint: str | None
    metrics: dict[str, float]
