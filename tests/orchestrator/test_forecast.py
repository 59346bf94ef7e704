"""How long a sweep will take."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.conductor import Conductor
from orchestrator.forecast import epochs_s, left_s
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space

OPERATIONS = {"cnn2": 100, "cnn3": 300}


@pytest.fixture
def of_plan() -> Plan:
    return plan(space(trials=3, base={"epochs": 4}, first_rung_epochs=0))


@pytest.fixture
def ledger(tmp_path: Path, of_plan: Plan) -> Ledger:
    return new_ledger(tmp_path / "ledger.sqlite", of_plan)


def train(conductor: Conductor, epoch_s: float, epochs: int = 4) -> str | None:
    """Play the next trial for some epochs; return its variant, None when nothing is left."""
    start = conductor.next_start()
    if start is None:
        return None
    address = start.signature, start.attempt
    for epoch in range(epochs):
        row = metrics(epoch_s=epoch_s, val_s=epoch_s / 4, checkpoint_s=1.0, val_top1=0.5)
        conductor.on_epoch(*address, epoch, row, None)
    if epochs == start.config.epochs:
        conductor.on_end(*address, outcome="complete")
    return start.variant


def test_an_epoch_takes_its_training_validation_and_checkpoint_once(ledger, of_plan):
    train(Conductor(ledger, of_plan), 9.0)
    found = epochs_s(of_plan, ledger.trials(), ledger.latest_epochs(), OPERATIONS)
    assert found == {"cnn2": 10.0, "cnn3": 30.0}  # the one without epochs, by its operations
    left = left_s(of_plan, ledger.trials(), ledger.latest_epochs(), OPERATIONS)
    assert left == 2 * 4 * 10 + 3 * 4 * 30


def test_nothing_is_foreseen_before_the_first_epoch(ledger, of_plan):
    assert left_s(of_plan, ledger.trials(), ledger.latest_epochs(), OPERATIONS) is None
