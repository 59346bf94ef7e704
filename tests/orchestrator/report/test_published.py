"""What the report says of the published study: its figures beside ours, and every deviation."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import IntDistribution

import search_spaces
from orchestrator.report.document.blocks import Table
from orchestrator.report.facts import read_facts
from orchestrator.report.sections.overview import deviations
from orchestrator.report.sections.published import published
from search_spaces.space import SearchSpace
from tests.orchestrator import sweeps
from tests.orchestrator.report.parts import read, table, words
from tests.orchestrator.report.played_report import build


def test_every_deviation_from_the_recipe_is_said(tmp_path: Path) -> None:
    plan = sweeps.plan(sweeps.space())
    ledger = sweeps.new_ledger(tmp_path / "l", plan)
    identity = {
        **plan.identity(),
        "overrides": {"epochs": 2, "weights": "none"},
        "dataset": "tinyimagenet-sample",
        "image_size_px": {"cnn2": 16, "vgg16": 64},
    }
    ledger.put("plan", identity)
    options = {
        "epochs": 2,
        "trials": 3,
        "image_size": "16",
        "dataset": "tinyimagenet-sample",
        "seed": 5,
    }
    ledger.put("options", options)
    manifest = {"class_names": list("0123456789"), "images": {"train": 500, "test": 100}}
    ledger.put("manifest", manifest)
    said = deviations(read_facts(ledger))
    ledger.close()
    assert said == [
        "Epochs: 2 in place of 9.",
        "`weights`: none in place of its default.",
        "Variants left out: cnn3.",
        "Variants that the space does not list: vgg16.",
        "Image size: 16 (--image-size) in place of 32; cnn2 16 px, vgg16 64 px.",
        "Trials per variant: 3, given by --trials, not the space's.",
        "Dataset: tinyimagenet-sample (--dataset) in place of the space's.",
        "Seed of the sweep: 5 in place of 0.",
        "A sample of the dataset: 500 of 100,000 training images, 100 of 10,000 test images, 10 of "
        "200 classes. No figure of this report can be set against one of the whole dataset.",
    ]


def test_a_whole_dataset_and_the_recipe_itself_are_no_deviation(tmp_path: Path) -> None:
    plan = sweeps.plan(sweeps.space())
    ledger = sweeps.new_ledger(tmp_path / "l", plan)
    ledger.put("plan", {**plan.identity(), "dataset": "cifar10", "overrides": {"epochs": 9}})
    manifest = {"class_names": list("0123456789"), "images": {"train": 50_000, "test": 10_000}}
    ledger.put("manifest", manifest)
    assert deviations(read_facts(ledger)) == []
    ledger.close()


def told(path: Path, of: SearchSpace, overrides: dict[str, Any], **said: Any) -> list[str]:
    """Return the deviations of a sweep without trials."""
    plan = replace(sweeps.plan(of), overrides=overrides)
    ledger = sweeps.new_ledger(path, plan, **said)
    try:
        return deviations(read_facts(ledger))
    finally:
        ledger.close()


OWN = {"trials": 4, "final_seeds": 1, "dataset": "digits"}


def test_a_flag_that_says_what_the_space_says_is_no_deviation(tmp_path: Path) -> None:
    same = {"trials": 4, "final_seeds": 1, "dataset": "digits", "image_size": "32"}
    assert told(tmp_path / "a", sweeps.space(), {}, options=same, space_own=OWN) == []
    by_variant = sweeps.space(
        image_size=64, image_size_by_variant=dict.fromkeys(("cnn2", "cnn3"), 32)
    )
    assert told(tmp_path / "b", by_variant, {}, options=same, space_own=OWN) == []
    # An older ledger does not say what the space's own are.
    assert told(tmp_path / "c", sweeps.space(), {}, options=same) == [
        "Trials per variant: 4, given by --trials, not the space's.",
        "Final seeds: 1, given by --final-seeds, not the space's.",
        "Dataset: digits (--dataset) in place of the space's.",
    ]


def test_a_flag_that_says_otherwise_names_what_it_replaces(tmp_path: Path) -> None:
    other = {"trials": 2, "final_seeds": 0, "dataset": "digits-sample", "image_size": "16"}
    assert told(tmp_path / "a", sweeps.space(), {}, options=other, space_own=OWN) == [
        "Image size: 16 (--image-size) in place of 32; cnn2 32 px, cnn3 32 px.",
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


ROWS = [
    {"label": "model 1", "variant": "cnn2", "val_top1": 0.1419, "train_top1": 0.2296,
     "parameters": 13_070_472},
    {"label": "B3", "variant": "cnn3", "val_top1": 0.7698, "loss": 0.9887, "val_is_test": True,
     "note": "Section 5.2; table 1 says 89."},
    {"label": "paper's B7", "variant": None, "test_top1": 0.8433},
]  # fmt: skip


def test_published_figures_stand_beside_ours_with_their_contradiction(tmp_path: Path) -> None:
    said = {"source": "A study", "rows": ROWS, "recipe_notes": ["L2 is not given; 1e-4 here."]}
    build(tmp_path / "l", trials=6, variants=("cnn2", "cnn3"), published=said).close()
    facts = read(tmp_path / "l")
    section = published(facts)
    first, b3, paper = table(section, "published")
    assert (first["published_val_top1"], first["published_test_top1"]) == (0.1419, None)
    assert first["ours_val_top1"].endswith("n = 3)")
    assert first["difference_test_top1"] is None
    # Published as validation, on the images that are our test split.
    assert (b3["published_val_top1"], b3["published_test_top1"]) == (None, 0.7698)
    ours = statistics.mean(r.evaluation["top1"] for r in facts.evaluated("cnn3") if r.evaluation)
    assert b3["difference_test_top1"] == pytest.approx(ours - 0.7698)
    [note] = table(section, "published_notes")
    assert note == {
        "label": "B3",
        "note": "Published as validation; those images are our test split. Section 5.2; table 1 "
        "says 89.",
    }
    assert (b3["published_loss"], b3["ours_loss"]) == (
        0.9887,
        pytest.approx(
            statistics.mean(r.evaluation["loss"] for r in facts.evaluated("cnn3") if r.evaluation)
        ),
    )
    assert (paper["variant"], paper["ours_test_top1"], paper["ours_loss"]) == (None, None, None)
    sizes = table(section, "published_size")
    assert [row["label"] for row in sizes] == ["model 1", "B3"]
    assert sizes[0]["published_parameters"] == 13_070_472
    assert sizes[0]["ours_parameters_with_statistics"] == 1_002_000
    assert sizes[0]["ours_flops"] == 2 * sizes[0]["ours_multiply_accumulates"]
    assert "L2 is not given; 1e-4 here." in words(section)
    assert "Epochs: 6 in place of 20." in words(section)


def test_published_averages_over_classes_stand_above_ours(tmp_path: Path) -> None:
    rows = [*ROWS, {"label": "table 1", "val_top1": 0.89, "precision": 0.88, "f1": 0.87}]
    said = {"source": "A study", "rows": rows, "recipe_notes": []}
    build(tmp_path / "l", trials=6, variants=("cnn2",), published=said).close()
    facts = read(tmp_path / "l")
    theirs, ours = table(published(facts), "published_averages")
    assert theirs == {
        "label": "table 1",
        "top1": 0.89,
        "precision": 0.88,
        "recall": None,
        "f1": 0.87,
    }
    assert ours["label"] == "ours: cnn2"
    f1 = [r.evaluation["f1"]["macro"] for r in facts.evaluated("cnn2") if r.evaluation]
    assert ours["f1"] == pytest.approx(statistics.mean(f1))


def test_the_published_recipe_that_was_tried_first_has_a_row_of_its_own(tmp_path: Path) -> None:
    said = {"source": "", "rows": [ROWS[0]], "recipe_notes": []}
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",), published=said)
    [final, *_] = ledger.trials("final")
    result = json.dumps({**(ledger.evaluation(final.signature) or {}), "top1": 0.125})
    ledger.database.connection.execute(
        "INSERT INTO evaluations VALUES ('cnn2-s0000', 1, 0, ?)", (result,)
    )
    rows = table(published(read_facts(ledger)), "published")
    assert [row["ours_from"] for row in rows] == ["best found", "the recipe, first trial"]
    assert rows[1]["ours_test_top1"] == "12.5 (n = 1)"
    ledger.close()


def test_a_published_setting_stands_beside_its_own_trial_and_the_recipe_beside_the_first(
    tmp_path: Path,
) -> None:
    """Of several prescribed trials each is a configuration of its own; no mean is taken of them."""
    setting = {"label": "RMSProp", "variant": "cnn2", "test_top1": 0.81, "enqueued": 2}
    missing = {**setting, "label": "never tried", "enqueued": 3}
    said = {"source": "", "rows": [ROWS[0], setting, missing], "recipe_notes": []}
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",), published=said)
    [final, *_] = ledger.trials("final")
    for number, top1 in ((0, 0.125), (2, 0.75)):
        result = json.dumps({**(ledger.evaluation(final.signature) or {}), "top1": top1})
        ledger.database.connection.execute(
            "INSERT INTO evaluations VALUES (?, 1, 0, ?)", (f"cnn2-s000{number}", result)
        )
    section = published(read_facts(ledger))
    rows = table(section, "published")
    assert [(row["label"], row["ours_from"]) for row in rows] == [
        ("model 1", "best found"),
        ("model 1", "the recipe, first trial"),
        ("RMSProp", "trial 2"),
        ("never tried", "trial 3"),
    ]
    assert [row["ours_test_top1"] for row in rows[1:]] == ["12.5 (n = 1)", "75.0 (n = 1)", None]
    assert rows[2]["difference_test_top1"] == pytest.approx(0.75 - 0.81)
    assert [row["label"] for row in table(section, "published_size")] == ["model 1"]
    ledger.close()


def test_a_published_size_is_shown_also_of_a_model_that_is_not_of_this_sweep(
    tmp_path: Path,
) -> None:
    paper = {"label": "B0, the paper", "val_top1": 0.773, "flops": 400_000_000}
    said = {"source": "", "rows": [*ROWS, paper], "recipe_notes": []}
    build(tmp_path / "l", trials=1, variants=("cnn2", "cnn3"), published=said).close()
    sizes = table(published(read(tmp_path / "l")), "published_size")
    assert [row["label"] for row in sizes] == ["model 1", "B3", "B0, the paper"]
    assert sizes[2]["published_flops"] == 400_000_000
    assert {sizes[2][key] for key in sizes[2] if key.startswith("ours")} == {None}


def test_a_source_without_figures_still_says_what_was_made_of_it(tmp_path: Path) -> None:
    said = search_spaces.load("scaling_grid").published_to_dict()
    build(tmp_path / "l", trials=1, variants=("cnn2",), published=said).close()
    section = published(read(tmp_path / "l"))
    assert "Source: Tan and Le, 2019" in words(section)
    assert "The paper names its best point" in words(section)
    assert not [block for block in section.blocks if isinstance(block, Table)]
    nothing = {"source": "", "rows": [], "recipe_notes": []}
    build(tmp_path / "n", trials=1, variants=("cnn2",), published=nothing).close()
    assert words(published(read(tmp_path / "n"))).startswith("This space reproduces no")


@pytest.mark.parametrize("name", ["tinyimagenet_b3", "tinyimagenet_baselines"])
def test_that_published_validation_images_are_the_test_split_is_said_once(
    tmp_path: Path, name: str
) -> None:
    said = search_spaces.load(name).published_to_dict()
    build(tmp_path / "l", trials=1, variants=("cnn2",), published=said).close()
    notes = [row["note"] for row in table(published(read(tmp_path / "l")), "published_notes")]
    assert [note.count("test split") for note in notes] == [1] * len(said["rows"])
