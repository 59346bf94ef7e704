"""After the search the best of each variant is trained with other seeds and evaluated."""

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
from tests.orchestrator.search.test_scheduler import Killed, die_at, failed, play, quick, table
from tests.orchestrator.sweeps import new_ledger, plan, space

PUBLISHED = {"lr": 0.1, "dropout": 0.5, "batch_size": 32, "optimizer": "sgd"}


def ledger_for(of: Plan, tmp_path: Path, name: str = "ledger") -> Ledger:
    return quick(new_ledger(tmp_path / f"{name}.sqlite", of))


def stage(ledger: Ledger, variant: str, of: str) -> list[Trial]:
    return [trial for trial in ledger.trials(of) if trial.variant == variant]  # type: ignore[arg-type]


def evaluated(ledger: Ledger) -> set[str]:
    return set(ledger.evaluations())


def test_the_best_of_each_variant_is_trained_again_with_seeds_of_its_own(tmp_path: Path) -> None:
    of = plan(space(trials=6), final_seeds=3)
    ledger = ledger_for(of, tmp_path)
    started = play(TrialScheduler(ledger, of))
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


def test_no_final_trial_starts_before_its_variants_search_is_over(tmp_path: Path) -> None:
    of = plan(space(trials=5), final_seeds=2)
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of), limit=4, draws=random.Random(1))
    for variant in of.variants:
        last = max(trial.ended_seq or 0 for trial in stage(ledger, variant, "search"))
        assert all(trial.seen_seq >= last for trial in stage(ledger, variant, "final"))


def test_final_trials_are_never_stopped_early(tmp_path: Path) -> None:
    of = plan(space(trials=6, first_rung_epochs=1, rung_factor=2), final_seeds=4)
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of))
    assert "stopped" in {trial.status for trial in ledger.trials("search")}
    assert {trial.status for trial in ledger.trials("final")} == {"complete"}


def test_with_nothing_to_search_the_trials_are_the_seeds_and_all_are_evaluated(
    tmp_path: Path,
) -> None:
    of = plan(space(trials=3, params={}), final_seeds=5)
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of))
    trials = ledger.trials()
    assert {trial.stage for trial in trials} == {"search"}
    assert len(trials) == of.num_trials == 6
    assert {trial.status for trial in trials} == {"complete"}
    assert evaluated(ledger) == {trial.signature for trial in trials}
    assert ranking.final_trials_of(trials, "cnn2", "max") == trials[:3]


def test_what_a_space_asks_for_comes_first_in_full_and_is_evaluated(tmp_path: Path) -> None:
    # Rung 2 after one epoch stops the worse half; the published recipe is the worst there is.
    of = plan(space(trials=8, rung_factor=2, enqueued=(PUBLISHED,)), final_seeds=1)
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of), limit=3, draws=random.Random(2))
    for variant in of.variants:
        first = stage(ledger, variant, "search")[0]
        assert first.params == PUBLISHED
        assert first.status == "complete"
        assert ledger.evaluation(first.signature) is not None
    assert len(evaluated(ledger)) == 4
    assert "stopped" in {trial.status for trial in ledger.trials("search")}


@pytest.mark.parametrize("before", [True, False])
def test_a_driver_killed_at_any_change_changes_nothing(tmp_path: Path, before: bool) -> None:
    of = plan(space(trials=3, variants=("cnn2",), enqueued=(PUBLISHED,)), final_seeds=2)
    unbroken = ledger_for(of, tmp_path, "unbroken")
    play(TrialScheduler(unbroken, of))
    for change in range(1, 90):
        ledger = ledger_for(of, tmp_path, f"{change}")
        original = ledger.database.change
        die_at(ledger, change, before=before)
        try:
            play(TrialScheduler(ledger, of))
            is_over = True
        except Killed:
            is_over = False
        ledger.database.change = original  # type: ignore[method-assign]
        play(TrialScheduler(ledger, of))
        assert table(ledger) == table(unbroken)
        assert ledger.evaluations() == unbroken.evaluations()
        if is_over:
            break
    else:
        pytest.fail("the sweep has more changes than this test knows")


def test_a_better_one_found_later_is_trained_again_too(tmp_path: Path) -> None:
    of = plan(space(trials=2, variants=("cnn2",)), final_seeds=2)
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of))
    first = ranking.best_of(ledger.trials("search"), "max")
    play(TrialScheduler(ledger, dataclasses.replace(of, trials=12)))
    best = ranking.best_of(ledger.trials("search"), "max")
    assert first is not None
    assert best is not None
    assert best.signature != first.signature  # else this test says nothing
    assert [trial.number for trial in ledger.trials("final")] == [0, 1, 2, 3]
    now = ranking.final_trials_of(ledger.trials(), "cnn2", "max")
    assert [trial.origin for trial in now] == [best.signature] * 2
    # And more seeds are added to those that are there.
    play(TrialScheduler(ledger, dataclasses.replace(of, trials=12, final_seeds=3)))
    assert len(ranking.final_trials_of(ledger.trials(), "cnn2", "max")) == 3
    assert len(ledger.trials("final")) == 5


def test_on_the_whole_training_part_the_last_epoch_is_the_best_and_has_no_value(
    tmp_path: Path,
) -> None:
    of = plan(space(trials=2, variants=("cnn2",)), final_seeds=1, final_on_all=True)
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of))
    (trial,) = ledger.trials("final")
    assert trial.config["validation_fraction"] == 0.0
    assert (trial.best_epoch, trial.best_value) == (8, None)


def test_of_a_recipe_on_the_whole_training_part_the_first_seed_answers(tmp_path: Path) -> None:
    recipe = space(trials=3, variants=("cnn2", "cnn3"), params={}, first_rung_epochs=0)
    of = dataclasses.replace(plan(recipe), overrides={"validation_fraction": 0.0})
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of))
    trials = ledger.trials()
    assert [(t.stage, t.status, t.best_epoch, t.best_value) for t in trials] == [
        ("search", "complete", 8, None)
    ] * 6
    assert len(ledger.evaluations()) == 6
    answers = best_trial(trials, "max")
    assert answers is trials[0]
    assert top_k(trials, 1, "max") == {trials[0].signature, trials[3].signature}


def test_seeds_with_and_without_the_validation_part_are_not_mixed(tmp_path: Path) -> None:
    of = plan(space(trials=2, variants=("cnn2",)), final_seeds=2)
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of))
    play(TrialScheduler(ledger, dataclasses.replace(of, final_on_all=True)))
    assert len(ledger.trials("final")) == 4
    now = ranking.final_trials_of(ledger.trials(), "cnn2", "max")
    assert [trial.number for trial in now] == [2, 3]
    assert {trial.config["validation_fraction"] for trial in now} == {0.0}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_weights_that_stay_are_those_of_the_model_that_answers(
    tmp_path: Path, mode: str
) -> None:
    """Final trials without a validation split count with the value of what they train again."""
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
    play(TrialScheduler(ledger, of))
    play(TrialScheduler(ledger, dataclasses.replace(of, trials=12)))
    trials = ledger.trials()
    answers = best_trial(trials, mode)
    assert answers is not None
    assert answers.stage == "final"
    assert answers.origin == ranking.final_trials_of(trials, "cnn2", mode)[0].origin
    assert answers.signature in top_k(trials, 1, mode)


def test_a_failed_search_leaves_nothing_to_train_again(tmp_path: Path) -> None:
    def breaks(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("data") if start.variant == "cnn2" else None

    of = plan(space(trials=2), final_seeds=1)
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of), fate=breaks)
    assert [trial.variant for trial in ledger.trials("final")] == ["cnn3"]


def test_a_final_trial_that_failed_is_tried_again(tmp_path: Path) -> None:
    def breaks(start: AttemptStart, epoch: int) -> dict[str, Any] | None:
        return failed("bug") if ledger.trial(start.signature).stage == "final" else None

    of = plan(space(trials=2, variants=("cnn2",)), final_seeds=1)
    ledger = ledger_for(of, tmp_path)
    play(TrialScheduler(ledger, of), fate=breaks)
    (trial,) = ledger.trials("final")
    assert trial.status == "failed"
    play(TrialScheduler(ledger, of))
    (trial,) = ledger.trials("final")
    assert trial.status == "complete"
    assert evaluated(ledger) == {trial.signature}


def test_what_an_attempt_that_was_replaced_says_of_the_test_split_is_refused(
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
