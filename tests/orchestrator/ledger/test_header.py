"""The typed facts of a sweep."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.ledger.header import FormerPlan, RecordedPlan
from tests.orchestrator.sweeps import new_ledger, plan, space


def test_a_header_has_the_stored_facts_and_defaults_for_the_rest(tmp_path: Path) -> None:
    of_plan = plan(space(), seed=3)
    ledger = new_ledger(tmp_path / "ledger.sqlite", of_plan, asked={"cnn2": 4})
    header = ledger.header()
    assert header.plan.to_dict() == of_plan.identity()
    assert (header.plan.seed, header.plan.space.mode, header.asked) == (3, "max", {"cnn2": 4})
    assert (header.tracking_uri, header.former_plans, header.products) == (None, [], {})
    ledger.put("tracking_uri", "sqlite:///x")
    ledger.put("a fact of a later version", 1)
    assert ledger.header().tracking_uri == "sqlite:///x"


@pytest.mark.parametrize(("keep", "number"), [(None, 1), ("all", 1), ("last", 1), ("best-3", 3)])
def test_the_number_of_kept_trials_is_the_options_or_the_spaces(
    tmp_path: Path, keep: str | None, number: int
) -> None:
    ledger = new_ledger(tmp_path / "ledger.sqlite", plan(space()), options={"keep": keep})
    assert ledger.header().num_best == number


def test_the_plan_at_a_change_is_the_one_that_was_in_force(tmp_path: Path) -> None:
    first, second, third = (
        RecordedPlan.from_dict(plan(space(), seed=seed).identity()) for seed in (1, 2, 3)
    )
    former = [FormerPlan(until_seq=5, plan=first), FormerPlan(until_seq=9, plan=second)]
    ledger = new_ledger(
        tmp_path / "ledger.sqlite",
        plan(space(), seed=3),
        former_plans=[asdict(each) for each in former],
    )
    header = ledger.header()
    assert [header.plan_at(seq) for seq in (0, 5, 6, 9, 10)] == [
        *(first, first),
        *(second, second),
        third,
    ]


def test_a_recorded_plan_and_a_plan_evaluate_the_same_trials(tmp_path: Path) -> None:
    values = {name: 0.1 for name in space().params}
    for of in (space(), space(params={}), space(enqueued=(values,))):
        of_plan = plan(of)
        recorded = RecordedPlan.from_dict(of_plan.identity())
        ledger = new_ledger(tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite", of_plan)
        for number in range(3):
            ledger.plan_trial(
                signature=f"s{number}",
                variant="cnn2",
                number=number,
                config={},
                params={},
                seen_seq=0,
                stage="final" if number == 2 else "search",
            )
        for trial in ledger.trials():
            assert recorded.is_evaluated(trial) == of_plan.is_evaluated(trial)
        assert recorded.is_evaluated(ledger.trial("s2"))
