"""After the search the best configuration of each variant is trained with other seeds."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import ranking
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ranking import best_trial, top_k
from orchestrator.ledger.records import Trial
from orchestrator.plan.plan import Plan, trial_seed
from orchestrator.search.scheduler import AttemptStart, TrialScheduler
from tests.orchestrator.simulated_sweeps import (
    Killed,
    failed,
    kill_at,
    results,
    run_trials,
    without_fsync,
)
from tests.orchestrator.sweeps import new_ledger, plan, space

PUBLISHED = {"lr": 0.1, "dropout": 0.5, "batch_size": 32, "optimizer": "sgd"}


def ledger_for(of: Plan, tmp_path: Path, name: str = "ledger") -> Ledger:
    return without_fsync(new_ledger(tmp_path / f"{name}.sqlite", of))


def stage(ledger: Ledger, variant: str, of: str) -> list[Trial]:
    return [trial for trial in ledger.trials(of) if trial.variant == variant]  # type: ignore[arg-type]


def evaluated(ledger: Ledger) -> set[str]:
    return set(ledger.evaluations())


def test_best_configuration_of_each_variant_is_retrained_with_new_seeds(tmp_path: Path) -> None:
    of = plan(space(trials=6), final_seeds=3)
    ledger = ledger_for(of, tmp_path)
    started = run_trials(TrialScheduler(ledger, of))
    assert len(started) == of.num_trials == 18
    for variant in of.variants:
        best = ranking.best_of(stage(ledger, variant, "search"), "max")
        assert best is not None
        again = stage(ledger, variant, "final")
        assert [trial.number for trial in again] == [0, 1, 2]
        assert {trial.status for trial in again} == {"complete"}
        assert all(trial.origin == best.signature for trial in again)
        seeds = [trial_seed(of.seed, f"{variant}/final", number) for number in range(3)]
        assert [trial.config["seed"] for trial in again] == seeds
        for trial in again:
            assert trial.params == best.params
            assert {**trial.config, "seed": 0} == {**best.config, "seed": 0}
    # The search never sees the test split.
    assert evaluated(ledger) == {trial.signature for trial in ledger.trials("final")}


def test_final_trials_start_after_the_search_of_their_variant(tmp_path: Path) -> None:
    of = plan(space(trials=5), final_seeds=2)
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of), limit=4, draws=random.Random(1))
    for variant in of.variants:
        last = max(trial.ended_seq or 0 for trial in stage(ledger, variant, "search"))
        assert all(trial.seen_seq >= last for trial in stage(ledger, variant, "final"))


def test_final_trials_are_never_stopped_early(tmp_path: Path) -> None:
    of = plan(space(trials=6, first_rung_epochs=1, rung_factor=2), final_seeds=4)
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of))
    assert "stopped" in {trial.status for trial in ledger.trials("search")}
    assert {trial.status for trial in ledger.trials("final")} == {"complete"}


def test_without_searched_parameters_all_trials_are_seeds_and_evaluated(
    tmp_path: Path,
) -> None:
    of = plan(space(trials=3, params={}), final_seeds=5)
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of))
    trials = ledger.trials()
    assert {trial.stage for trial in trials} == {"search"}
    assert len(trials) == of.num_trials == 6
    assert {trial.status for trial in trials} == {"complete"}
    assert evaluated(ledger) == {trial.signature for trial in trials}
    assert ranking.final_trials_of(trials, "cnn2", "max") == trials[:3]


def test_enqueued_configurations_run_first_to_the_end_and_are_evaluated(tmp_path: Path) -> None:
    # The first rung stops the worse half after one epoch; the enqueued recipe is the worst.
    of = plan(space(trials=8, rung_factor=2, enqueued=(PUBLISHED,)), final_seeds=1)
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of), limit=3, draws=random.Random(2))
    for variant in of.variants:
        first = stage(ledger, variant, "search")[0]
        assert first.params == PUBLISHED
        assert first.status == "complete"
        assert ledger.evaluation(first.signature) is not None
    assert len(evaluated(ledger)) == 4
    assert "stopped" in {trial.status for trial in ledger.trials("search")}


@pytest.mark.parametrize("before", [True, False])
def test_final_trials_are_the_same_after_a_driver_was_killed_at_any_change(
    tmp_path: Path, before: bool
) -> None:
    of = plan(space(trials=3, variants=("cnn2",), enqueued=(PUBLISHED,)), final_seeds=2)
    unbroken = ledger_for(of, tmp_path, "unbroken")
    run_trials(TrialScheduler(unbroken, of))
    for change in range(1, 90):
        ledger = ledger_for(of, tmp_path, f"{change}")
        original = ledger.database.change
        kill_at(ledger, change, before=before)
        try:
            run_trials(TrialScheduler(ledger, of))
            is_over = True
        except Killed:
            is_over = False
        ledger.database.change = original  # type: ignore[method-assign]
        run_trials(TrialScheduler(ledger, of))
        assert results(ledger) == results(unbroken)
        assert ledger.evaluations() == unbroken.evaluations()
        if is_over:
            break
    else:
        pytest.fail("the sweep makes more changes than this test tries")


def test_a_better_configuration_found_later_gets_final_trials_too(tmp_path: Path) -> None:
    of = plan(space(trials=2, variants=("cnn2",)), final_seeds=2)
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of))
    first = ranking.best_of(ledger.trials("search"), "max")
    run_trials(TrialScheduler(ledger, dataclasses.replace(of, trials=12)))
    best = ranking.best_of(ledger.trials("search"), "max")
    assert first is not None
    assert best is not None
    assert best.signature != first.signature  # otherwise this test is void
    assert [trial.number for trial in ledger.trials("final")] == [0, 1, 2, 3]
    now = ranking.final_trials_of(ledger.trials(), "cnn2", "max")
    assert [trial.origin for trial in now] == [best.signature] * 2
    # A larger number of seeds adds trials and keeps those that exist.
    run_trials(TrialScheduler(ledger, dataclasses.replace(of, trials=12, final_seeds=3)))
    assert len(ranking.final_trials_of(ledger.trials(), "cnn2", "max")) == 3
    assert len(ledger.trials("final")) == 5


def test_without_validation_split_the_last_epoch_is_the_best_without_value(
    tmp_path: Path,
) -> None:
    of = plan(space(trials=2, variants=("cnn2",)), final_seeds=1, final_on_all=True)
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of))
    (trial,) = ledger.trials("final")
    assert trial.config["validation_fraction"] == 0.0
    assert (trial.best_epoch, trial.best_value) == (8, None)


def test_the_first_seed_is_the_best_trial_of_a_recipe_without_validation_split(
    tmp_path: Path,
) -> None:
    recipe = space(trials=3, variants=("cnn2", "cnn3"), params={}, first_rung_epochs=0)
    of = dataclasses.replace(plan(recipe), overrides={"validation_fraction": 0.0})
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of))
    trials = ledger.trials()
    assert [(t.stage, t.status, t.best_epoch, t.best_value) for t in trials] == [
        ("search", "complete", 8, None)
    ] * 6
    assert len(ledger.evaluations()) == 6
    best = best_trial(trials, "max")
    assert best is trials[0]
    assert top_k(trials, 1, "max") == {trials[0].signature, trials[3].signature}


def test_final_trials_with_and_without_validation_split_are_not_mixed(tmp_path: Path) -> None:
    of = plan(space(trials=2, variants=("cnn2",)), final_seeds=2)
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of))
    run_trials(TrialScheduler(ledger, dataclasses.replace(of, final_on_all=True)))
    assert len(ledger.trials("final")) == 4
    now = ranking.final_trials_of(ledger.trials(), "cnn2", "max")
    assert [trial.number for trial in now] == [2, 3]
    assert {trial.config["validation_fraction"] for trial in now} == {0.0}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_weights_of_the_best_trial_are_kept(tmp_path: Path, mode: str) -> None:
    """Final trials without a validation split rank by the value of the trial that they repeat."""
    of = plan(
        space(
            trials=2,
            variants=("cnn2",),
            mode=mode,
            metric="val_top1" if mode == "max" else "val_loss",
            first_rung_epochs=0,
        ),
        final_seeds=1,
        final_on_all=True,
    )
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of))
    run_trials(TrialScheduler(ledger, dataclasses.replace(of, trials=12)))
    trials = ledger.trials()
    best = best_trial(trials, mode)
    assert best is not None
    assert best.stage == "final"
    assert best.origin == ranking.final_trials_of(trials, "cnn2", mode)[0].origin
    assert best.signature in top_k(trials, 1, mode)


def test_a_variant_whose_search_failed_has_no_final_trials(tmp_path: Path) -> None:
    def breaks(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("data") if start.variant == "cnn2" else None

    of = plan(space(trials=2), final_seeds=1)
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of), end_at=breaks)
    assert [trial.variant for trial in ledger.trials("final")] == ["cnn3"]


def test_a_failed_final_trial_is_retried_on_resume(tmp_path: Path) -> None:
    def breaks(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug") if ledger.trial(start.signature).stage == "final" else None

    of = plan(space(trials=2, variants=("cnn2",)), final_seeds=1)
    ledger = ledger_for(of, tmp_path)
    run_trials(TrialScheduler(ledger, of), end_at=breaks)
    (trial,) = ledger.trials("final")
    assert trial.status == "failed"
    run_trials(TrialScheduler(ledger, of))
    (trial,) = ledger.trials("final")
    assert trial.status == "complete"
    assert evaluated(ledger) == {trial.signature}


def test_evaluations_of_a_replaced_attempt_are_rejected(
    tmp_path: Path,
) -> None:
    of = plan(space(trials=1, variants=("cnn2",), params={}))
    ledger = ledger_for(of, tmp_path)
    scheduler = TrialScheduler(ledger, of)
    start = scheduler.next_start()
    assert start is not None
    scheduler.on_end(start.signature, start.attempt, **failed("killed"))
    again = scheduler.next_start()
    assert again is not None
    assert scheduler.on_evaluation(start.signature, start.attempt, {"epoch": 1})
    assert ledger.evaluations() == {}
    assert not scheduler.on_evaluation(again.signature, again.attempt, {"epoch": 2})
    assert not ledger.record_evaluation(again.signature, again.attempt, {"epoch": 3})
    assert ledger.evaluations() == {start.signature: {"epoch": 2}}
