"""The published study in the report: its figures beside ours, and every deviation from it."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import IntDistribution

import search_spaces
from orchestrator.report.deviations import deviations
from orchestrator.report.document.blocks import NONE, Table, printed
from orchestrator.report.facts import read_sweep
from orchestrator.report.sections.published import published
from search_spaces.space import SearchSpace
from tests.orchestrator import sweeps
from tests.orchestrator.report.parts import read, table, words
from tests.orchestrator.report.played_report import build


def test_every_deviation_from_the_recipe_is_one_sentence(tmp_path: Path) -> None:
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
    lines = deviations(read_sweep(ledger))
    ledger.close()
    assert lines == [
        "Epochs: 2 instead of 9.",
        "weights: none instead of its default.",
        "Variants left out: cnn3.",
        "Variants that the space does not list: vgg16.",
        "Image size: 16 (--image-size) instead of 32. Sizes used: cnn2 16 px, vgg16 64 px.",
        "Trials per variant: 3 (--trials); the space's own value was not recorded.",
        "Dataset: tinyimagenet-sample (--dataset) instead of the space's own.",
        "Sweep seed: 5 instead of 0.",
        "Only a sample of the dataset was used: 500 of 100,000 training images, 100 of 10,000 test "
        "images, 10 of 200 classes. The results of this report cannot be compared with results on "
        "the whole dataset.",
    ]


def test_the_whole_dataset_and_the_recipe_as_it_is_are_no_deviations(tmp_path: Path) -> None:
    plan = sweeps.plan(sweeps.space())
    ledger = sweeps.new_ledger(tmp_path / "l", plan)
    ledger.put("plan", {**plan.identity(), "dataset": "cifar10", "overrides": {"epochs": 9}})
    manifest = {"class_names": list("0123456789"), "images": {"train": 50_000, "test": 10_000}}
    ledger.put("manifest", manifest)
    assert deviations(read_sweep(ledger)) == []
    ledger.close()


def of_sweep(path: Path, space: SearchSpace, overrides: dict[str, Any], **facts: Any) -> list[str]:
    """Return the deviations of a sweep without trials."""
    plan = replace(sweeps.plan(space), overrides=overrides)
    ledger = sweeps.new_ledger(path, plan, **facts)
    try:
        return deviations(read_sweep(ledger))
    finally:
        ledger.close()


OWN = {"trials": 4, "final_seeds": 1, "dataset": "digits"}


def test_a_flag_with_the_space_own_value_is_no_deviation(tmp_path: Path) -> None:
    same = {"trials": 4, "final_seeds": 1, "dataset": "digits", "image_size": "32"}
    assert of_sweep(tmp_path / "a", sweeps.space(), {}, options=same, space_own=OWN) == []
    by_variant = sweeps.space(
        image_size=64, image_size_by_variant=dict.fromkeys(("cnn2", "cnn3"), 32)
    )
    assert of_sweep(tmp_path / "b", by_variant, {}, options=same, space_own=OWN) == []
    # An older ledger does not record the space's own values.
    assert of_sweep(tmp_path / "c", sweeps.space(), {}, options=same) == [
        "Trials per variant: 4 (--trials); the space's own value was not recorded.",
        "Final seeds: 1 (--final-seeds); the space's own value was not recorded.",
        "Dataset: digits (--dataset) instead of the space's own.",
    ]


def test_a_flag_with_another_value_names_the_value_it_replaces(tmp_path: Path) -> None:
    other = {"trials": 2, "final_seeds": 0, "dataset": "digits-sample", "image_size": "16"}
    assert of_sweep(tmp_path / "a", sweeps.space(), {}, options=other, space_own=OWN) == [
        "Image size: 16 (--image-size) instead of 32. Sizes used: cnn2 32 px, cnn3 32 px.",
        "Trials per variant: 2 (--trials) instead of 4.",
        "Final seeds: 0 (--final-seeds) instead of 1.",
        "Dataset: digits-sample (--dataset) instead of digits.",
    ]


def test_flags_for_final_seeds_are_no_deviation_where_there_are_none(tmp_path: Path) -> None:
    given = {"final_seeds": 5, "final_on_all": True}
    assert of_sweep(tmp_path / "a", sweeps.space(params={}), {}, options=given, space_own=OWN) == []


def test_spans_that_are_shortened_with_the_epochs_are_deviations(tmp_path: Path) -> None:
    base = {"epochs": 10, "warmup_epochs": 5.0, "freeze_epochs": 3}
    assert of_sweep(tmp_path / "a", sweeps.space(base=base), {"epochs": 2}) == [
        "Epochs: 2 instead of 10.",
        "warmup_epochs, in proportion to the epochs: 1 instead of 5.",
        "freeze_epochs, in proportion to the epochs: 0 instead of 3.",
    ]
    assert of_sweep(tmp_path / "b", sweeps.space(base=base), {"epochs": 20}) == [
        "Epochs: 20 instead of 10.",
    ]
    own = {"cnn2": {"warmup_epochs": 1.0}, "cnn3": {"freeze_epochs": IntDistribution(0, 3)}}
    assert of_sweep(tmp_path / "c", sweeps.space(base=base, by_variant=own), {"epochs": 5}) == [
        "Epochs: 5 instead of 10.",
        "warmup_epochs, in proportion to the epochs: 0.5 instead of 1 (cnn2); "
        "2.5 instead of 5 (cnn3).",
        "freeze_epochs, in proportion to the epochs: 1 instead of 3 (cnn2); less than the "
        "searched value of each trial (cnn3).",
    ]


ROWS = [
    {"label": "model 1", "variant": "cnn2", "val_top1": 0.1419, "train_top1": 0.2296,
     "parameters": 13_070_472},
    {"label": "B3", "variant": "cnn3", "val_top1": 0.7698, "loss": 0.9887, "val_is_test": True,
     "note": "Section 5.2; table 1 says 89."},
    {"label": "paper's B7", "variant": None, "test_top1": 0.8433},
]  # fmt: skip


def test_published_figures_are_shown_beside_ours_with_their_contradictions(tmp_path: Path) -> None:
    study = {"source": "A study", "rows": ROWS, "recipe_notes": ["L2 is not given; 1e-4 here."]}
    build(tmp_path / "l", trials=6, variants=("cnn2", "cnn3"), published=study).close()
    sweep = read(tmp_path / "l")
    section = published(sweep)
    first, b3, paper = table(section, "published")
    assert (first["published_val_top1"], first["published_test_top1"]) == (0.1419, None)
    assert printed(first["ours_val_top1"], "estimate").endswith("n = 3)")
    assert first["difference_test_top1"] is None
    # Published as validation, on images that are our test split.
    assert (b3["published_val_top1"], b3["published_test_top1"]) == (None, 0.7698)
    ours = statistics.mean(r.evaluation["top1"] for r in sweep.evaluated("cnn3") if r.evaluation)
    assert b3["difference_test_top1"] == pytest.approx(ours - 0.7698)
    [note] = table(section, "published_notes")
    assert note == {
        "label": "B3",
        "note": "Published as validation; these images are our test split. Section 5.2; table 1 "
        "says 89.",
    }
    assert (b3["published_loss"], b3["ours_loss"]) == (
        0.9887,
        pytest.approx(
            statistics.mean(r.evaluation["loss"] for r in sweep.evaluated("cnn3") if r.evaluation)
        ),
    )
    assert (paper["variant"], paper["ours_test_top1"], paper["ours_loss"]) == (None, None, None)
    sizes = table(section, "published_size")
    assert [row["label"] for row in sizes] == ["model 1", "B3"]
    assert sizes[0]["published_parameters"] == 13_070_472
    assert sizes[0]["ours_parameters_with_statistics"] == 1_002_000
    assert sizes[0]["ours_flops"] == 2 * sizes[0]["ours_multiply_accumulates"]
    assert "L2 is not given; 1e-4 here." in words(section)
    assert "Epochs: 6 instead of 20." in words(section)


def test_published_averages_over_classes_stand_above_ours(tmp_path: Path) -> None:
    rows = [*ROWS, {"label": "table 1", "val_top1": 0.89, "precision": 0.88, "f1": 0.87}]
    study = {"source": "A study", "rows": rows, "recipe_notes": []}
    build(tmp_path / "l", trials=6, variants=("cnn2",), published=study).close()
    sweep = read(tmp_path / "l")
    theirs, ours = table(published(sweep), "published_averages")
    assert theirs == {
        "label": "table 1",
        "top1": 0.89,
        "precision": 0.88,
        "recall": None,
        "f1": 0.87,
    }
    assert ours["label"] == "ours: cnn2"
    f1 = [r.evaluation["f1"]["macro"] for r in sweep.evaluated("cnn2") if r.evaluation]
    assert ours["f1"] == pytest.approx(statistics.mean(f1))


def test_the_published_recipe_run_as_first_trial_has_its_own_row(tmp_path: Path) -> None:
    study = {"source": "", "rows": [ROWS[0]], "recipe_notes": []}
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",), published=study)
    [final, *_] = ledger.trials("final")
    result = json.dumps({**(ledger.evaluation(final.signature) or {}), "top1": 0.125})
    ledger.database.connection.execute(
        "INSERT INTO evaluations VALUES ('cnn2-s0000', 1, 0, ?)", (result,)
    )
    rows = table(published(read_sweep(ledger)), "published")
    assert [row["ours_from"] for row in rows] == ["best configuration", "recipe (first trial)"]
    assert printed(rows[1]["ours_test_top1"], "estimate") == "12.5 (n = 1)"
    ledger.close()


def test_a_published_setting_is_compared_with_its_own_trial_and_the_recipe_with_the_first(
    tmp_path: Path,
) -> None:
    """Each enqueued trial is a configuration of its own, so no mean is taken over several."""
    setting = {"label": "RMSProp", "variant": "cnn2", "test_top1": 0.81, "enqueued": 2}
    missing = {**setting, "label": "never tried", "enqueued": 3}
    study = {"source": "", "rows": [ROWS[0], setting, missing], "recipe_notes": []}
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",), published=study)
    [final, *_] = ledger.trials("final")
    for number, top1 in ((0, 0.125), (2, 0.75)):
        result = json.dumps({**(ledger.evaluation(final.signature) or {}), "top1": top1})
        ledger.database.connection.execute(
            "INSERT INTO evaluations VALUES (?, 1, 0, ?)", (f"cnn2-s000{number}", result)
        )
    section = published(read_sweep(ledger))
    rows = table(section, "published")
    assert [(row["label"], row["ours_from"]) for row in rows] == [
        ("model 1", "best configuration"),
        ("model 1", "recipe (first trial)"),
        ("RMSProp", "trial 2"),
        ("never tried", "trial 3"),
    ]
    ours = [printed(row["ours_test_top1"], "estimate") for row in rows[1:]]
    assert ours == ["12.5 (n = 1)", "75.0 (n = 1)", NONE]
    assert rows[2]["difference_test_top1"] == pytest.approx(0.75 - 0.81)
    assert [row["label"] for row in table(section, "published_size")] == ["model 1"]
    ledger.close()


def test_a_published_size_is_also_shown_for_a_model_outside_the_sweep(
    tmp_path: Path,
) -> None:
    paper = {"label": "B0, the paper", "val_top1": 0.773, "flops": 400_000_000}
    study = {"source": "", "rows": [*ROWS, paper], "recipe_notes": []}
    build(tmp_path / "l", trials=1, variants=("cnn2", "cnn3"), published=study).close()
    sizes = table(published(read(tmp_path / "l")), "published_size")
    assert [row["label"] for row in sizes] == ["model 1", "B3", "B0, the paper"]
    assert sizes[2]["published_flops"] == 400_000_000
    assert {sizes[2][key] for key in sizes[2] if key.startswith("ours")} == {None}


def test_a_source_without_figures_is_shown_with_its_notes(tmp_path: Path) -> None:
    study = search_spaces.load("scaling_grid").published_to_dict()
    build(tmp_path / "l", trials=1, variants=("cnn2",), published=study).close()
    section = published(read(tmp_path / "l"))
    assert "Source: Tan and Le, 2019" in words(section)
    assert "The paper names only its best point" in words(section)
    assert not [block for block in section.blocks if isinstance(block, Table)]
    nothing = {"source": "", "rows": [], "recipe_notes": []}
    build(tmp_path / "n", trials=1, variants=("cnn2",), published=nothing).close()
    assert published(read(tmp_path / "n")).blocks == ()


@pytest.mark.parametrize("name", ["tinyimagenet_b3", "tinyimagenet_baselines"])
def test_a_note_says_once_that_published_validation_images_are_the_test_split(
    tmp_path: Path, name: str
) -> None:
    study = search_spaces.load(name).published_to_dict()
    build(tmp_path / "l", trials=1, variants=("cnn2",), published=study).close()
    notes = [row["note"] for row in table(published(read(tmp_path / "l")), "published_notes")]
    assert [note.count("test split") for note in notes] == [1] * len(study["rows"])
