"""Decisions about trials, as pure functions of the ledger's rows and the plan.

`scheduler` reads the rows, calls these functions and writes the outcome to the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from orchestrator.ledger import ranking
from orchestrator.ledger.records import Attempt, EpochRow, Trial
from orchestrator.plan.plan import Plan
from orchestrator.search import retry_policy
from orchestrator.storage.paths import checkpoint_path
from trainables.config import TrainConfig


def missing_final(plan: Plan, best: Trial, planned: Collection[str]) -> TrainConfig | None:
    """Return the configuration of the first final trial that is not planned yet, or None.

    Final trials repeat `best`, the best search trial of a variant, with other seeds. `planned` are
    the signatures of all final trials in the ledger.
    """
    finals = (
        plan.train_config(best.variant, number, best.params, "final")
        for number in range(plan.final_seeds)
    )
    return next((config for config in finals if config.signature() not in planned), None)


def resume_point(
    attempts: Sequence[Attempt], rows: Sequence[EpochRow], is_loadable: Callable[[str], bool]
) -> str | None:
    """Return the newest loadable checkpoint of a trial whose epoch is in the ledger, or None.

    Checkpoints from before the last attempt that started from scratch do not count. An epoch that
    was trained again also has a checkpoint in the folder of a later attempt; either may be used.
    `is_loadable` tests a checkpoint given relative to the sweep's folder.
    """
    first = max((each.attempt for each in attempts if each.resumed_from is None), default=0)
    numbers = [each.attempt for each in attempts if each.attempt >= first]
    for row in reversed(rows):
        if row.checkpoint is None:
            continue
        # The attempt that wrote the row comes first.
        for number in sorted(numbers, key=lambda number: number != row.attempt):
            path = checkpoint_path(row.signature, number, row.epoch)
            if is_loadable(path):
                return path
    return None


def epochs_left(trial: Trial, rows: Sequence[EpochRow]) -> int:
    """Return how many epochs a trial still has to train after its last row."""
    return int(trial.config["epochs"]) - (rows[-1].epoch + 1 if rows else 0)


def best_epoch(trial: Trial, rows: Sequence[EpochRow], metric: str) -> tuple[int, float] | None:
    """Return the epoch whose weights stand for the trial, and the sweep's metric there.

    It is the best epoch by the trial's `select_by`, the earliest of equals; None if that metric is
    NaN in all epochs. Without a validation split it is the last epoch, and the value is NaN.
    """
    if not trial.config["validation_fraction"]:
        return rows[-1].epoch, math.nan
    select_by = trial.config["select_by"]
    row = ranking.best_row(rows, select_by)
    if row is None or math.isnan(row.metrics[select_by]):
        return None
    return row.epoch, row.metrics[metric]


def after_failure(
    trial: Trial, attempts: Sequence[Attempt], rows: Sequence[EpochRow], max_attempts: int
) -> retry_policy.Decision:
    """Return whether a trial is retried after its last attempt failed, and how."""
    return retry_policy.decide(
        attempts,
        productive={row.attempt for row in rows},
        batch_size=trial.config["batch_size"] // trial.config["workers"],
        max_attempts=max_attempts,
    )


def next_micro_batch(
    trial: Trial, attempts: Sequence[Attempt], rows: Sequence[EpochRow], max_attempts: int
) -> int:
    """Return the micro-batch size of a trial's next attempt; 0 means the whole batch at once."""
    if not attempts:
        return 0
    if attempts[-1].outcome == "failed":
        decision = after_failure(trial, attempts, rows, max_attempts)
        if decision.retry:
            return decision.micro_batch_size
    return attempts[-1].micro_batch_size
