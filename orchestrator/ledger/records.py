"""The rows of a ledger: trials, attempts and epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

TrialStatus = Literal["planned", "running", "complete", "stopped", "diverged", "failed"]
# A final trial trains the best configuration of its variant's search again, with another seed.
Stage = Literal["search", "final"]
ENDED: tuple[TrialStatus, ...] = ("complete", "stopped", "diverged", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One planned configuration and how it stands."""

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
        """What people call it."""
        stage = "final-" if self.stage == "final" else ""
        return f"{self.variant}-{stage}{self.number:03d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One try at a trial."""

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
        """Return when it began and ended, in seconds since 1970.

        One that was cut off with its driver is closed much later, so it counts to its last epoch;
        so does one that runs now.

        Args:
            rows: of its trial.
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
