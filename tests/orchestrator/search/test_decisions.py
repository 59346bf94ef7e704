"""Decisions as functions of rows: each case is worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.ledger.records import Attempt, EpochRow, Trial
from orchestrator.search import decisions, early_stopping
from tests.orchestrator.sweeps import metrics, plan, space

PLAN = plan(space(variants=("cnn2",), first_rung_epochs=2, rung_factor=2), final_seeds=2)


def trial(**config: Any) -> Trial:
    values = PLAN.train_config("cnn2", 0, {"lr": 0.1, "batch_size": 32}).to_dict()
    return Trial(
        signature="a",
        variant="cnn2",
        stage="search",
        number=0,
        origin=None,
        config={**values, **config},
        params={"lr": 0.1, "batch_size": 32},
        seen_seq=0,
        planned_seq=1,
        changed_seq=1,
        ended_seq=None,
        status="running",
        best_epoch=None,
        best_value=None,
    )


def rows(*values: float, attempt: int = 1) -> list[EpochRow]:
    return [
        EpochRow(
            seq=epoch + 2,
            signature="a",
            epoch=epoch,
            attempt=attempt,
            arrived_s=0.0,
            checkpoint=f"trials/a/attempt_{attempt}/epoch_{epoch:04d}",
            metrics=metrics(val_top1=value, val_loss=1 - value),
        )
        for epoch, value in enumerate(values)
    ]


def attempts(*resumed_from: str | None, failure_class: str | None = None) -> list[Attempt]:
    return [
        Attempt(
            signature="a",
            attempt=number,
            started_s=0.0,
            ended_s=None,
            resumed_from=path,
            micro_batch_size=8,
            log=None,
            outcome="failed" if failure_class else "lost",
            failure_class=failure_class,
            failure_text=None,
        )
        for number, path in enumerate(resumed_from, start=1)
    ]


def test_missing_final_is_the_first_seed_that_is_not_planned() -> None:
    configs = [PLAN.train_config("cnn2", number, trial().params, "final") for number in range(2)]
    first, second = (config.signature() for config in configs)
    assert decisions.missing_final(PLAN, trial(), set()) == configs[0]
    assert decisions.missing_final(PLAN, trial(), {first}) == configs[1]
    assert decisions.missing_final(PLAN, trial(), {second}) == configs[0]
    assert decisions.missing_final(PLAN, trial(), {first, second}) is None


@pytest.mark.parametrize(
    ("resumed_from", "loadable", "expected"),
    [
        ([None], ["1/epoch_0000", "1/epoch_0001"], "1/epoch_0001"),
        ([None], ["1/epoch_0000"], "1/epoch_0000"),
        ([None], [], None),
        # The second attempt repeated an epoch of the first: the row's own checkpoint comes first.
        ([None, "x"], ["1/epoch_0001", "2/epoch_0001"], "1/epoch_0001"),
        ([None, "x"], ["1/epoch_0000", "2/epoch_0001"], "2/epoch_0001"),
        # The second attempt started from scratch.
        ([None, None], ["1/epoch_0001", "2/epoch_0000"], "2/epoch_0000"),
        ([None, None], ["1/epoch_0001"], None),
    ],
)
def test_resume_point(
    resumed_from: list[str | None], loadable: list[str], expected: str | None
) -> None:
    found = decisions.resume_point(
        attempts(*resumed_from), rows(0.1, 0.2), lambda path: path.endswith(tuple(loadable))
    )
    assert found == (expected and f"trials/a/attempt_{expected}")


def test_best_epoch_is_the_earliest_best_by_select_by() -> None:
    by_top1, by_loss = trial(select_by="val_top1"), trial(select_by="val_loss")
    values = rows(0.2, math.nan, 0.5, 0.5, 0.1)
    assert decisions.best_epoch(by_top1, values, "val_top1") == (2, 0.5)
    assert decisions.best_epoch(by_loss, values, "val_top1") == (2, 0.5)
    assert decisions.best_epoch(by_top1, rows(math.nan), "val_top1") is None
    epoch, value = decisions.best_epoch(trial(validation_fraction=0.0), values, "val_top1") or ()
    assert epoch == 4
    assert math.isnan(value)


def test_epochs_left() -> None:
    assert decisions.epochs_left(trial(epochs=9), []) == 9
    assert decisions.epochs_left(trial(epochs=9), rows(0.1, 0.2)) == 7


def test_early_stopping_compares_at_rungs_before_the_last_epoch() -> None:
    def decide(last: EpochRow, *values: float) -> bool | None:
        ledger: Any = SimpleNamespace(values_at=lambda *at, up_to: values)
        return early_stopping.decide(ledger, PLAN, trial(epochs=8), last)

    at_rung = [row.epoch + 1 for row in rows(*[0.5] * 8) if decide(row, 0.5) is not None]
    assert at_rung == [2, 4]
    row = rows(0.1, 0.5)[-1]
    assert decide(row, 0.6, 0.5) is True
    assert decide(row, 0.4, 0.5) is False


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], 0),
        (attempts(None), 8),
        (attempts(None, failure_class="killed"), 8),
        (attempts(None, failure_class="out_of_memory"), 4),
        (attempts(None, failure_class="data"), 8),
    ],
)
def test_next_micro_batch(history: list[Attempt], expected: int) -> None:
    assert decisions.next_micro_batch(trial(), history, [], 3) == expected
