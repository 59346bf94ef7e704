"""The answer at the top of the report, and the sections that a report leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.report.document.blocks import Card, Cards, Table
from orchestrator.report.facts import SweepData, read_sweep
from orchestrator.report.render import _sections
from orchestrator.report.sections.leaderboard import leaderboard
from orchestrator.report.sections.overview import overview
from orchestrator.report.sections.result import result
from orchestrator.report.statistics import estimate, wilson
from tests.orchestrator import sweeps
from tests.orchestrator.report.parts import read, table, words
from tests.orchestrator.report.played_report import build


def cards(sweep: SweepData) -> dict[str, Card]:
    """Return the cards of a sweep with one group of variants by their titles."""
    [block] = [block for block in result(sweep).blocks if isinstance(block, Cards)]
    return {card.title: card for card in block.cards}


def set_top1(ledger: Ledger, variant: str, top1: float) -> None:
    ledger.database.connection.execute(
        "UPDATE evaluations SET result = json_set(result, '$.top1', ?)"
        " WHERE signature IN (SELECT signature FROM trials WHERE variant = ?)",
        (top1, variant),
    )


def test_the_answer_is_one_card_each_for_variant_accuracy_hyperparameters_and_cost(
    tmp_path: Path,
) -> None:
    build(tmp_path / "l", trials=6, variants=("cnn2", "cnn3")).close()
    sweep = read(tmp_path / "l")
    found = cards(sweep)
    assert list(found) == ["Best variant", "Test top-1", "Hyperparameters", "Cost"]
    assert found["Best variant"].value == "cnn3"
    assert found["Best variant"].lines == [
        *("trained from scratch", "images of 32 px", "compared with 1 other variant"),
    ]
    top1 = estimate([r.evaluation["top1"] for r in sweep.evaluated("cnn3")])
    assert top1.mean is not None
    assert top1.low is not None
    assert top1.high is not None
    low, high = wilson(top1.mean, 200)
    assert found["Test top-1"].value == f"{100 * top1.mean:.1f} %"
    assert found["Test top-1"].lines[:2] == [
        f"95 % interval over test images: {100 * low:.1f} to {100 * high:.1f} %, n = 200",
        f"95 % interval over seeds: {100 * top1.low:.1f} to {100 * top1.high:.1f} %, n = 3",
    ]
    # A tenth of 1,438 training images.
    assert found["Test top-1"].lines[2].endswith(" %, n = 144 images")
    params = sweep.seeds("cnn3")[0].trial.params
    assert found["Hyperparameters"].lines == [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in params.items()
    ]
    # One second of start, six epochs of 2.5 s and half a second of evaluation.
    assert found["Cost"].value == "16.5 s per training"
    search_s, whole_s = (
        sum(r.device_s for r in of) for of in (sweep.of("cnn3", "search"), sweep.records)
    )
    spent = f"device time; its search {search_s:.1f} s, whole sweep {whole_s / 60:.1f} min"
    assert found["Cost"].lines[0] == spent
    assert "2,000,000 parameters" in found["Cost"].lines
    assert "30.00 M multiply-accumulates, 60.00 M FLOPs per image" in found["Cost"].lines


def test_the_best_variant_is_chosen_on_the_validation_split(tmp_path: Path) -> None:
    """The other variant's better test result is named, and changes nothing."""
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2", "cnn3"))
    assert "has a higher test top-1" not in words(result(read_sweep(ledger)))
    set_top1(ledger, "cnn2", 0.995)
    sweep = read_sweep(ledger)
    assert cards(sweep)["Best variant"].value == "cnn3"
    assert "chosen by val_top1 on the validation split (144 images), not by" in words(result(sweep))
    expected = 'cnn2 has a higher test top-1, 99.5 %; see "Are the differences significant?".'
    assert expected in words(result(sweep))
    ledger.close()


def test_without_a_validation_split_the_best_variant_is_called_optimistic(tmp_path: Path) -> None:
    ledger = build(tmp_path / "l", trials=2, variants=("cnn2", "cnn3"), searched=False)
    ledger.database.connection.execute(
        "UPDATE trials SET config = json_set(config, '$.validation_fraction', 0.0),"
        " best_value = NULL"
    )
    for best, other in (("cnn2", "cnn3"), ("cnn3", "cnn2")):
        set_top1(ledger, best, 0.9)
        set_top1(ledger, other, 0.8)
        sweep = read_sweep(ledger)
        found = cards(sweep)
        assert (found["Best variant"].value, found["Test top-1"].value) == (best, "90.0 %")
        assert found["Test top-1"].lines[1:] == ["equal in all 2 seeds, so no interval over seeds"]
        assert "As the best of several test results it is optimistic." in words(result(sweep))
        assert found["Hyperparameters"].value == "the recipe of the space"
    ledger.close()


def test_from_scratch_and_pretrained_variants_have_an_answer_each(tmp_path: Path) -> None:
    build(tmp_path / "l", trials=6, final_seeds=1).close()
    blocks = [b for b in result(read(tmp_path / "l")).blocks if isinstance(b, Cards)]
    assert [(b.title, b.cards[0].value) for b in blocks] == [
        ("Best variant, from scratch", "cnn3"),
        ("Best variant, pretrained", "resnet50"),
    ]
    assert blocks[1].cards[0].lines == ["pretrained", "images of 32 px", "only variant"]
    assert "one seed, so no interval over seeds" in blocks[1].cards[1].lines


def test_a_search_without_final_trials_answers_with_its_validation_result(tmp_path: Path) -> None:
    build(tmp_path / "l", trials=6, variants=("cnn2",), final_seeds=0).close()
    sweep = read(tmp_path / "l")
    best = sweep.best(sweep.records)
    assert best is not None
    assert best.trial.best_value is not None
    [_, accuracy, hyperparameters, _] = cards(sweep).values()
    assert accuracy == Card(
        "val_top1 on the validation split",
        f"{100 * best.trial.best_value:.1f} %",
        ["n = 144 images", "not evaluated on the test split yet"],
    )
    assert hyperparameters.value == f"from search trial {best.trial.number}"
    assert "The best variant is chosen" not in words(result(sweep))  # there is only one


def test_deviations_from_the_recipe_are_pointed_to_at_the_top(tmp_path: Path) -> None:
    build(tmp_path / "l", trials=2, variants=("cnn2",)).close()
    line = words(result(read(tmp_path / "l"))).splitlines()[-1]
    assert line == '2 deviations from the recipe of the space, see "About this sweep".'


def test_the_number_of_validation_images_is_stated(tmp_path: Path) -> None:
    build(tmp_path / "l", trials=6, variants=("cnn2",)).close()
    sweep = read(tmp_path / "l")
    tables = [block for block in leaderboard(sweep).blocks if isinstance(block, Table)]
    note = next(block.note for block in tables if block.name == "leaderboard")
    facts = {row["fact"]: row["value"] for row in table(overview(sweep, 0), "sweep")}
    assert facts["images"] == "1,438 train (144 of them validation), 200 test"
    assert "The validation split has 144 images." in note


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"variants": ("cnn2",)}, {"pairs", "published", "fronts"}),
        ({"variants": ("cnn2",), "searched": False}, {"pairs", "published", "fronts", "search"}),
        (
            {"variants": ("cnn2", "cnn3"), "final_seeds": 0},
            {"pairs", "published", "fronts", "validation", "classes", "calibration", "maps"}
            | {"predictions"},
        ),
    ],
)
def test_a_section_with_nothing_to_say_is_left_out(
    changes: dict[str, object], absent: set[str], tmp_path: Path
) -> None:
    build(tmp_path / "l", trials=6, **changes).close()  # type: ignore[arg-type]
    sections, _ = _sections(read(tmp_path / "l"), 0.0)
    names = [section.name for section in sections]
    every = ["result", "leaderboard", "pairs", "published", "curves", "search", "fronts"]
    every += ["validation", "classes", "calibration", "maps", "predictions", "failures", "time"]
    absent = absent | (set() if changes.get("searched", True) else {"failures"})
    assert names == [name for name in (*every, "sweep") if name not in absent]


def test_nothing_but_the_plan_is_shown_of_a_sweep_without_a_trial(tmp_path: Path) -> None:
    sweeps.new_ledger(tmp_path / "l", sweeps.plan(sweeps.space())).close()
    sections, images = _sections(read(tmp_path / "l"), 0.0)
    assert [section.name for section in sections] == ["result", "sweep"]
    assert words(sections[0]) == "No trial of this sweep has finished yet."
    assert images == {}
