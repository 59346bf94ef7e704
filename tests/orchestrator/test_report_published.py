"""What the report says of the published study: its figures beside ours, and every departure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.distributions import IntDistribution

from orchestrator.report.facts import read_facts
from orchestrator.report.head import departures
from search_spaces.space import SearchSpace
from tests.orchestrator import sweeps


def test_every_departure_from_the_recipe_is_said(tmp_path: Path) -> None:
    plan = sweeps.plan(sweeps.space())
    ledger = sweeps.new_ledger(tmp_path / "l", plan)
    identity = {
        **plan.identity(),
        "overrides": {"epochs": 2, "weights": "none"},
        "dataset": "tinyimagenet-sample",
        "side_px": {"cnn2": 16, "vgg16": 64},
    }
    ledger.put("plan", identity)
    options = {"epochs": 2, "trials": 3, "side": "16", "dataset": "tinyimagenet-sample", "seed": 5}
    ledger.put("options", options)
    manifest = {"class_names": list("0123456789"), "images": {"train": 500, "test": 100}}
    ledger.put("manifest", manifest)
    said = departures(read_facts(ledger))
    ledger.close()
    assert said == [
        "Epochs: 2 in place of 9.",
        "`weights`: none in place of its default.",
        "Variants left out: cnn3.",
        "Variants that the space does not list: vgg16.",
        "Input side: 16 (--side) in place of 32; cnn2 16 px, vgg16 64 px.",
        "Trials per variant: 3, given by --trials, not the space's.",
        "Dataset: tinyimagenet-sample (--dataset) in place of the space's.",
        "Seed of the sweep: 5 in place of 0.",
        "A sample of the dataset: 500 of 100,000 training images, 100 of 10,000 test images, 10 of "
        "200 classes. No figure of this report can be set against one of the whole dataset.",
    ]


def test_a_whole_dataset_and_the_recipe_itself_are_no_departure(tmp_path: Path) -> None:
    plan = sweeps.plan(sweeps.space())
    ledger = sweeps.new_ledger(tmp_path / "l", plan)
    ledger.put("plan", {**plan.identity(), "dataset": "cifar10", "overrides": {"epochs": 9}})
    manifest = {"class_names": list("0123456789"), "images": {"train": 50_000, "test": 10_000}}
    ledger.put("manifest", manifest)
    assert departures(read_facts(ledger)) == []
    ledger.close()


def told(path: Path, of: SearchSpace, overrides: dict[str, Any], **said: Any) -> list[str]:
    """Return the departures of a sweep without trials."""
    plan = replace(sweeps.plan(of), overrides=overrides)
    ledger = sweeps.new_ledger(path, plan, **said)
    try:
        return departures(read_facts(ledger))
    finally:
        ledger.close()


OWN = {"trials": 4, "final_seeds": 1, "dataset": "digits"}


def test_a_flag_that_says_what_the_space_says_is_no_departure(tmp_path: Path) -> None:
    same = {"trials": 4, "final_seeds": 1, "dataset": "digits", "side": "32"}
    assert told(tmp_path / "a", sweeps.space(), {}, options=same, space_own=OWN) == []
    by_variant = sweeps.space(side=64, side_by_variant=dict.fromkeys(("cnn2", "cnn3"), 32))
    assert told(tmp_path / "b", by_variant, {}, options=same, space_own=OWN) == []
    # An older ledger does not say what the space's own are.
    assert told(tmp_path / "c", sweeps.space(), {}, options=same) == [
        "Trials per variant: 4, given by --trials, not the space's.",
        "Final seeds: 1, given by --final-seeds, not the space's.",
        "Dataset: digits (--dataset) in place of the space's.",
    ]


def test_a_flag_that_says_otherwise_names_what_it_replaces(tmp_path: Path) -> None:
    other = {"trials": 2, "final_seeds": 0, "dataset": "digits-sample", "side": "16"}
    assert told(tmp_path / "a", sweeps.space(), {}, options=other, space_own=OWN) == [
        "Input side: 16 (--side) in place of 32; cnn2 32 px, cnn3 32 px.",
        "Trials per variant: 2 (--trials) in place of 4.",
        "Final seeds: 0 (--final-seeds) in place of 1.",
        "Dataset: digits-sample (--dataset) in place of digits.",
    ]


def test_flags_for_final_seeds_change_nothing_where_there_are_none(tmp_path: Path) -> None:
    given = {"final_seeds": 5, "final_on_all": True}
    assert told(tmp_path / "a", sweeps.space(params={}), {}, options=given, space_own=OWN) == []


def test_what_is_shortened_with_the_epochs_is_said(tmp_path: Path) -> None:
    base = {"epochs": 10, "warmup_epochs": 5.0, "freeze_epochs": 3}
    assert told(tmp_path / "a", sweeps.space(base=base), {"epochs": 2}) == [
        "Epochs: 2 in place of 10.",
        "`warmup_epochs`, shortened with the epochs: 1 in place of 5.",
        "`freeze_epochs`, shortened with the epochs: 0 in place of 3.",
    ]
    assert told(tmp_path / "b", sweeps.space(base=base), {"epochs": 20}) == [
        "Epochs: 20 in place of 10.",
    ]
    own = {"cnn2": {"warmup_epochs": 1.0}, "cnn3": {"freeze_epochs": IntDistribution(0, 3)}}
    assert told(tmp_path / "c", sweeps.space(base=base, by_variant=own), {"epochs": 5}) == [
        "Epochs: 5 in place of 10.",
        "`warmup_epochs`, shortened with the epochs: 0.5 in place of 1 (cnn2); "
        "2.5 in place of 5 (cnn3).",
        "`freeze_epochs`, shortened with the epochs: 1 in place of 3 (cnn2); shorter than the "
        "trial's own, which is searched (cnn3).",
    ]
