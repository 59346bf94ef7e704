"""The report's sections against the ledger they were made from."""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.report.deviations import deviations
from orchestrator.report.document.blocks import Figure, Matrix, Pictures, Section, Table
from orchestrator.report.facts import SweepData, read_sweep
from orchestrator.report.sections.calibration import calibration
from orchestrator.report.sections.classes import classes
from orchestrator.report.sections.curves import curves
from orchestrator.report.sections.failures import failures
from orchestrator.report.sections.fronts import fronts
from orchestrator.report.sections.leaderboard import leaderboard
from orchestrator.report.sections.pairs import COMPUTE, TRIALS, compare, pairs
from orchestrator.report.sections.pictures import pictures
from orchestrator.report.sections.search import Suggested, search, suggested
from orchestrator.report.sections.time_spent import time_spent
from orchestrator.report.sections.validation import validation
from orchestrator.report.statistics import paired, wilson
from tests.orchestrator import sweeps
from tests.orchestrator.report.parts import blocks_of, figure, read, table, words
from tests.orchestrator.report.played_report import TRACEBACK, build


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepData:
    path = tmp_path_factory.mktemp("sweep") / "ledger.sqlite"
    build(path, trials=12).close()
    return read(path)


def change(ledger: Ledger, statement: str) -> None:
    """Change rows of trials without a sequence number, which no sweep does."""
    ledger.database.connection.execute(statement)
    ledger._trials.clear()
    ledger._trials_seq = -1


def test_the_leaderboard_has_means_over_the_final_seeds(sweep: SweepData) -> None:
    section = leaderboard(sweep)
    rows = table(section, "leaderboard")
    assert [row["variant"] for row in rows] == ["cnn3", "cnn2"]  # the better one first
    [pretrained] = table(section, "leaderboard_pretrained")
    assert pretrained["variant"] == "resnet50"
    top1 = [r.evaluation["top1"] for r in sweep.of("cnn3", "final") if r.evaluation is not None]
    assert rows[0]["seeds"] == len(top1) == 3
    assert rows[0]["test_top1_mean"] == pytest.approx(statistics.mean(top1))
    assert rows[0]["test_top1_sd"] == pytest.approx(statistics.stdev(top1))
    half = 4.302653 * statistics.stdev(top1) / 3**0.5
    low, high = rows[0]["test_top1"]
    assert high - rows[0]["test_top1_mean"] == pytest.approx(half)
    assert rows[0]["test_top1_mean"] - low == pytest.approx(half)
    images = int(sweep.evaluated("cnn3")[0].evaluation["images"])
    assert rows[0]["test_top1_images"] == wilson(rows[0]["test_top1_mean"], images)
    [counts] = [row for row in table(section, "searches") if row["variant"] == "cnn2"]
    assert [counts[key] for key in ("trials", "complete", "stopped", "diverged", "failed")] == [
        *(12, 4, 4, 2, 2),
    ]


def test_final_trials_of_a_configuration_that_is_no_longer_the_best_are_left_out(
    tmp_path: Path,
) -> None:
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",))
    [final, *_] = ledger.trials("final")
    better = {**final.params, "lr": 0.012345}
    config = {**final.config, "lr": 0.012345}
    ledger.plan_trial(
        signature="better", variant="cnn2", number=6, config=config, params=better, seen_seq=0
    )
    ledger.start_attempt("better", resumed_from=None, micro_batch_size=0)
    ledger.end_attempt("better", 1, outcome="complete", trial_status="complete", best=(0, 0.99))
    sweep = read_sweep(ledger)
    assert sweep.evaluated("cnn2") == []
    [row] = table(leaderboard(sweep), "leaderboard")
    assert (row["best_val_top1"], row["seeds"], row["test_top1_mean"]) == (0.99, 0, None)
    ledger.close()


def test_the_trials_of_a_variant_with_nothing_to_search_are_its_seeds(tmp_path: Path) -> None:
    build(tmp_path / "l", trials=4, searched=False, variants=("cnn2", "cnn3")).close()
    sweep = read(tmp_path / "l")
    assert [len(sweep.evaluated(variant)) for variant in sweep.variants] == [4, 4]
    assert search(sweep).blocks == ()
    found = compare(sweep)
    assert [(pair.by, pair.seeds) for pair in found] == [(TRIALS, (4, 4)), (COMPUTE, (4, 4))]


def test_final_trials_without_a_validation_split_have_no_validation_metric(tmp_path: Path) -> None:
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",))
    _without_validation(ledger)
    ledger.put("options", {"final_on_all": True})
    sweep = read_sweep(ledger)
    [row] = table(leaderboard(sweep), "leaderboard")
    assert row["seeds_val_top1"] is None
    assert row["test_top1_mean"] > 0
    assert validation(sweep).blocks == ()
    assert any("--final-on-all" in line for line in deviations(sweep))
    ledger.close()


def test_training_speed_is_that_of_the_best_configuration_without_first_epochs(
    tmp_path: Path,
) -> None:
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",))
    ledger.database.connection.execute("UPDATE epochs SET images_per_s = 10 WHERE epoch = 0")
    searched = "(SELECT signature FROM trials WHERE stage = 'search')"
    ledger.database.connection.execute(
        f"UPDATE epochs SET images_per_s = 20 WHERE signature IN {searched}"
    )
    [row] = table(leaderboard(read_sweep(ledger)), "cost")
    assert row["training_images_per_s"] == 700
    ledger.close()


def _without_validation(ledger: Ledger) -> None:
    ledger.database.connection.execute(
        "UPDATE trials SET config = json_set(config, '$.validation_fraction', 0.0)"
        " WHERE stage = 'final'"
    )


def test_trials_without_a_validation_split_have_no_validation_curves(tmp_path: Path) -> None:
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",))
    _without_validation(ledger)
    section = curves(read_sweep(ledger))
    names = {
        metric: {trace.get("name") for trace in figure(section, f"curves-{metric}")["data"]}
        for metric in ("val_top1", "val_loss", "train_loss", "best-top1", "best-loss")
    }
    finals = {metric: {n for n in names[metric] if n and "final" in n} for metric in names}
    assert finals == {
        "val_top1": set(),
        "val_loss": set(),
        "train_loss": {"complete, final: 3"},
        "best-top1": {next(n for n in finals["best-top1"] if n.endswith(", training"))},
        "best-loss": finals["best-top1"],
    }
    assert "Trained without a validation split: 3 trials." in words(section)
    ledger.close()


def test_without_any_validation_split_there_is_no_figure_of_validation_metrics(
    tmp_path: Path,
) -> None:
    ledger = build(tmp_path / "l", trials=2, variants=("cnn2",), searched=False)
    ledger.database.connection.execute(
        "UPDATE trials SET config = json_set(config, '$.validation_fraction', 0.0)"
    )
    drawn = [b.name for b in curves(read_sweep(ledger)).blocks if isinstance(b, Figure)]
    assert drawn == ["curves-train_loss", "curves-best-top1", "curves-best-loss"]
    ledger.close()


def test_pairs_are_compared_at_equal_trials_and_at_equal_compute(sweep: SweepData) -> None:
    by_trials, by_compute = compare(replace(sweep, variants=("cnn2", "cnn3")))
    assert (by_trials.by, by_trials.budget, by_trials.seeds) == (TRIALS, 12, (3, 3))
    assert by_trials.difference is not None
    means = [
        statistics.mean(r.evaluation["top1"] for r in sweep.evaluated(v) if r.evaluation)
        for v in ("cnn2", "cnn3")
    ]
    assert by_trials.difference.mean == pytest.approx(means[0] - means[1])
    spent = sum(r.device_s for r in sweep.of("cnn2", "search"))
    assert by_compute.budget == pytest.approx(spent)


def test_there_is_no_difference_if_the_best_of_fewer_trials_was_not_retrained(
    tmp_path: Path,
) -> None:
    """cnn3's best trial comes late; among its first two, another is the best and has no seeds."""
    ledger = build(tmp_path / "l", trials=12, variants=("cnn2", "cnn3"))
    late = [t for t in ledger.trials("search") if t.variant == "cnn3" and t.status == "complete"]
    final = ledger.trials("final")[-1]
    assert late[0].params != final.params
    change(ledger, "DELETE FROM trials WHERE variant = 'cnn2' AND number > 1 AND stage = 'search'")
    sweep = read_sweep(ledger)
    by_trials, _ = compare(sweep)
    assert by_trials.budget == 2
    assert by_trials.difference is None
    assert by_trials.verdict == "best not retrained"
    expected = "cnn3 #0, the best trial of cnn3 that counts, was not retrained."
    assert expected in by_trials.reason
    assert by_trials.winner is None
    ledger.close()


def test_the_interval_of_one_seed_is_that_of_the_test_images(tmp_path: Path) -> None:
    """For a difference it is paired: computed from the images on which one of the two is right."""
    build(tmp_path / "l", trials=6, variants=("cnn2", "cnn3"), final_seeds=1).close()
    sweep = read(tmp_path / "l")
    for row in table(leaderboard(sweep), "leaderboard"):
        assert row["test_top1"] is None
        low, high = row["test_top1_images"]
        assert low < row["test_top1_mean"] < high
    by_trials, _ = compare(sweep)
    right = [sweep.evaluated(variant)[0].correct for variant in ("cnn2", "cnn3")]
    assert right[0] is not None
    assert right[1] is not None
    assert right[0].mean() == sweep.evaluated("cnn2")[0].evaluation["top1"]
    assert by_trials.images == paired(right[0], right[1])
    assert (by_trials.difference, by_trials.verdict) == (None, "too few seeds")
    assert by_trials.mean == pytest.approx(right[0].mean() - right[1].mean())


def test_evaluations_of_older_versions_have_no_interval_of_a_difference(tmp_path: Path) -> None:
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2", "cnn3"))
    change(ledger, "UPDATE evaluations SET result = json_remove(result, '$.correct')")
    by_trials, _ = compare(read_sweep(ledger))
    assert by_trials.images is None
    assert by_trials.difference is not None
    ledger.close()


def test_equal_trials_are_those_before_the_first_trial_that_has_not_ended(tmp_path: Path) -> None:
    """cnn2's trial 4 still runs while 5 has ended: trials 0 to 3 of both are compared."""
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2", "cnn3"))
    ledger.database.connection.execute(
        "UPDATE trials SET status = 'running', ended_seq = NULL WHERE signature = 'cnn2-s0004'"
    )
    sweep = read_sweep(ledger)
    by_trials, _ = compare(sweep)
    assert by_trials.budget == 4
    ledger.close()


def test_the_style_of_a_curve_shows_how_the_trial_ended(sweep: SweepData) -> None:
    lines = {
        (trace["legendgroup"], trace["name"].partition(":")[0]): trace["line"]["dash"]
        for trace in figure(curves(sweep), "curves-val_top1")["data"]
        if trace["mode"] == "lines" and not trace["showlegend"]
    }
    assert {status: lines["cnn2", status] for status in ("complete", "stopped", "diverged")} == {
        "complete": "solid",
        "stopped": "dot",
        "diverged": "dash",
    }
    assert {("resnet50", "complete, final"), ("cnn3", "failed")} <= lines.keys()
    marks = {
        trace["marker"]["symbol"]
        for trace in figure(curves(sweep), "curves-val_top1")["data"]
        if trace["mode"] == "markers"
    }
    assert marks == {"line-ew-open", "x", "square-open"}


def test_a_curve_of_a_single_epoch_has_markers(tmp_path: Path) -> None:
    build(tmp_path / "l", trials=1, epochs=1, searched=False, variants=("cnn2",)).close()
    section = curves(read(tmp_path / "l"))
    for name in ("curves-val_top1", "curves-train_loss", "curves-best-top1", "curves-best-loss"):
        drawn = [t for t in figure(section, name)["data"] if t["x"] != [None]]  # no legend entries
        assert {trace["mode"] for trace in drawn} == {"lines+markers"}


def test_the_search_has_figures_by_optuna_and_is_called_adaptive(sweep: SweepData) -> None:
    section = search(sweep)
    assert "TPE suggested some of the trials, with values similar to" in words(section)
    counts = "cnn2: no trials enqueued by the space, 3 drawn at random, 9 suggested by TPE"
    assert counts in words(section)
    drawn = figure(section, "parallel-cnn2")
    assert len(drawn["data"]) == 4  # a line for each complete trial
    # The axes are below each other. The first has the values of the trials, in percent.
    assert drawn["layout"]["yaxis"]["ticktext"] == ["val_top1, %", *sorted(sweeps.PARAMS)]
    values = sorted(
        100 * record.trial.best_value
        for record in sweep.of("cnn2", "search")
        if record.trial.status == "complete" and record.trial.best_value is not None
    )
    ends = [
        label["text"]
        for label in drawn["layout"]["annotations"]
        if label["y"] == 0 and label["x"] in (0, 1)
    ]
    assert sorted(ends) == [f"{values[0]:.3g}", f"{values[-1]:.3g}"]
    places = [(label["x"], label["y"]) for label in drawn["layout"]["annotations"]]
    assert len(places) == len(set(places))
    for name in sweeps.PARAMS:
        [points] = figure(section, f"slice-cnn2-{name}")["data"]
        assert sorted(points["y"]) == pytest.approx(values)


def test_the_importance_of_hyperparameters_needs_enough_complete_trials(
    sweep: SweepData, tmp_path: Path
) -> None:
    """A third of the played trials complete: 4 of 12, and 10 of 30."""

    def names(section: Section) -> set[str]:
        return {block.name for block in blocks_of(section) if isinstance(block, Figure)}

    assert "importance-cnn2" not in names(search(sweep))
    build(tmp_path / "l", trials=30, variants=("cnn2",)).close()
    section = search(read(tmp_path / "l"))
    [bars] = figure(section, "importance-cnn2")["data"]
    assert sorted(bars["y"]) == sorted(sweeps.PARAMS)
    assert sum(bars["x"]) == pytest.approx(100)
    assert bars["x"] == sorted(bars["x"])  # plotly draws the first bar at the bottom


def test_a_search_of_enqueued_and_random_trials_is_not_called_adaptive(tmp_path: Path) -> None:
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",))
    plan = ledger.facts()["plan"]
    space = {**plan["space"], "enqueued": [{}] * 4, "startup_trials": 10}
    ledger.put("plan", {**plan, "space": space})
    sweep = read_sweep(ledger)
    assert suggested(sweep, "cnn2") == Suggested(enqueued=4, random=2, adaptive=0)
    assert "TPE suggested no trial." in words(search(sweep))
    assert "TPE suggested some" not in words(search(sweep))
    ledger.put("plan", {**plan, "space": {**space, "enqueued": []}})
    sweep = read_sweep(ledger)
    assert "TPE suggested no trial: all values were drawn at random" in words(search(sweep))
    ledger.close()


def test_a_suggestion_is_adaptive_if_enough_trials_had_ended_before_it(tmp_path: Path) -> None:
    """Trials 3 and 4 were suggested before any trial had ended, trial 5 after all of them."""
    ledger = build(tmp_path / "l", trials=6, variants=("cnn2",))
    assert suggested(read_sweep(ledger), "cnn2") == Suggested(enqueued=0, random=3, adaptive=3)
    change(ledger, "UPDATE trials SET seen_seq = 0 WHERE number IN (3, 4)")
    assert suggested(read_sweep(ledger), "cnn2") == Suggested(enqueued=0, random=5, adaptive=1)
    # Failed trials do not count: the sampler learns nothing from them.
    change(ledger, "UPDATE trials SET status = 'failed' WHERE number IN (0, 1, 2)")
    assert suggested(read_sweep(ledger), "cnn2") == Suggested(enqueued=0, random=6, adaptive=0)
    ledger.close()


def test_too_few_complete_trials_have_no_figures_of_hyperparameters(tmp_path: Path) -> None:
    build(tmp_path / "l", trials=3, variants=("cnn2",)).close()
    section = search(read(tmp_path / "l"))
    expected = "cnn2 has 2 complete trials. Figures of the hyperparameters need at least 4."
    assert expected in words(section)


def test_the_fronts_compare_pretrained_variants_only_among_themselves(tmp_path: Path) -> None:
    """cnn3 costs three times as much as cnn2 and is better; resnet50 is pretrained."""
    build(tmp_path / "l", trials=6).close()
    rows = table(fronts(read(tmp_path / "l")), "fronts")
    assert [row["multiply_accumulates_front"] for row in rows] == [True, True, True]
    assert [row["multiply_accumulates"] for row in rows] == [10**7, 3 * 10**7, 9 * 10**7]


def test_the_fronts_name_the_section_on_significance(sweep: SweepData) -> None:
    assert f'significant is shown in "{pairs(sweep).title}"' in words(fronts(sweep))


def test_notes_say_that_inference_was_measured_on_a_shared_device(sweep: SweepData) -> None:
    note = "measured while other trials of the sweep may have shared the device"
    assert note in words(fronts(sweep))
    costs = [b for b in blocks_of(leaderboard(sweep)) if isinstance(b, Table) and "cost" in b.name]
    assert [note in block.note for block in costs] == [True, True]


def test_the_fronts_have_intervals_over_test_images_also_for_one_seed(tmp_path: Path) -> None:
    build(tmp_path / "l", trials=6, variants=("cnn2", "cnn3"), final_seeds=1).close()
    sweep = read(tmp_path / "l")
    section = fronts(sweep)
    drawn = [block for block in section.blocks if isinstance(block, Figure)]
    assert [block.name for block in drawn] == [
        *("fronts-parameters", "fronts-multiply_accumulates", "fronts-inference_ms"),
        "fronts-device_s",
    ]
    points = figure(section, "fronts-parameters")["data"][-2:]
    for variant, point in zip(("cnn2", "cnn3"), points, strict=True):
        [record] = sweep.evaluated(variant)
        top1 = record.evaluation["top1"]
        low, high = wilson(top1, record.evaluation["images"])
        assert point["error_y"]["arrayminus"] == pytest.approx([100 * (top1 - low)])
        assert point["error_y"]["array"] == pytest.approx([100 * (high - top1)])


def test_correlations_give_their_number_of_points_and_need_enough_of_them(
    sweep: SweepData, tmp_path: Path
) -> None:
    """Nine trials and three variants are too few; of twelve trials of two variants, the trials."""
    assert words(validation(sweep)) == ""
    build(tmp_path / "l", trials=6, variants=("cnn2", "cnn3"), final_seeds=6).close()
    line = words(validation(read(tmp_path / "l")))
    assert line.startswith("Correlation over trials (seeds of a variant are dependent): Pearson's")
    assert line.endswith("n = 12 trials.")
    assert "\n" not in line


def test_confusions_of_all_seeds_are_summed_and_classes_averaged(sweep: SweepData) -> None:
    section = classes(sweep)
    rows = {row["class"]: row for row in table(section, "classes_cnn2")}
    evaluated = [r.evaluation for r in sweep.evaluated("cnn2") if r.evaluation]
    assert rows["class 3"]["recall"] == pytest.approx(
        statistics.mean(each["recall"]["per_class"][3] for each in evaluated)
    )
    assert rows["class 3"]["support"] == 20
    weighted = rows["(weighted mean)"]["recall"]
    assert weighted == pytest.approx(statistics.mean(each["top1"] for each in evaluated))
    [pair, *_] = table(section, "most_confused_cnn2")
    a, b = (int(pair[side].removeprefix("class ")) for side in "ab")
    assert pair["a_as_b"] == sum(each["confusion"][a][b] for each in evaluated)
    names = figure(section, "confusion-cnn2")["data"][0]["x"]
    assert names == list(sweep.class_names)  # a few classes stay in the order of the dataset
    assert names == figure(section, "confusion-resnet50")["data"][0]["x"]
    assert "The classes are in the order of the dataset." in words(section)


def test_many_classes_are_ordered_by_their_confusion(tmp_path: Path) -> None:
    build(tmp_path / "l", trials=1, variants=("cnn2",), searched=False, classes=24).close()
    sweep = read(tmp_path / "l")
    section = classes(sweep)
    names = figure(section, "confusion-cnn2")["data"][0]["x"]
    assert sorted(names) == sorted(sweep.class_names)
    assert names != list(sweep.class_names)
    assert "classes that are often confused are next to each other" in words(section)


def test_long_class_names_are_shortened_on_the_axes_and_stay_distinct(tmp_path: Path) -> None:
    ledger = build(tmp_path / "l", trials=1, variants=("cnn2",), searched=False, classes=2)
    long = "a very long name of a class with "
    manifest = {**ledger.facts()["manifest"], "class_names": [f"{long}1", f"{long}2"]}
    ledger.put("manifest", manifest)
    section = classes(read_sweep(ledger))
    ledger.close()
    assert figure(section, "confusion-cnn2")["data"][0]["x"] == [
        "a very long name of a c…",
        "a very long name of a c… (2)",
    ]
    assert [row["class"] for row in table(section, "classes_cnn2")][2:] == [f"{long}1", f"{long}2"]


def test_calibration_counts_every_prediction(sweep: SweepData) -> None:
    rows = [row for row in table(calibration(sweep), "calibration") if row["variant"] == "cnn2"]
    assert sum(row["predictions"] for row in rows) == 3 * sum(10 * n for n in range(15))
    assert [row["accuracy"] / row["confidence"] for row in rows] == pytest.approx([0.9] * 14)
    [bars, *_] = figure(calibration(sweep), "calibration-counts")["data"]
    assert bars["name"] == "cnn2"
    assert bars["y"] == [row["predictions"] for row in rows]
    assert bars["x"] == pytest.approx([100 * (n + 0.5) / 15 for n in range(1, 15)], abs=0.01)


def test_maps_show_the_same_images_for_every_variant(sweep: SweepData) -> None:
    (maps, predictions), images = pictures(sweep)
    [shown] = [block for block in maps.blocks if isinstance(block, Pictures)]
    assert shown.headings == ("image, true class", "cnn2", "cnn3", "resnet50")
    marks = {picture.mark for row in shown.rows for picture in row[1:]}
    assert marks == {"right", "wrong"}
    assert all(row[0].source in images for row in shown.rows)
    mistakes = [b for b in blocks_of(maps) if getattr(b, "name", "").startswith("mistakes-")]
    assert [block.name for block in mistakes] == [f"mistakes-{v}" for v in shown.headings[1:]]
    assert [[p.mark for p in block.rows[0]] for block in mistakes] == [["wrong"] * 3] * 3
    grids = [block for block in blocks_of(predictions) if isinstance(block, Pictures)]
    assert [len(grid.rows[0]) for grid in grids] == [12, 12, 12]
    wrong = next(p for p in grids[0].rows[0] if p.mark == "wrong")
    assert "true: class" in wrong.caption
    assert wrong.detail.count("\n") == 4


def test_a_model_without_feature_maps_is_named(tmp_path: Path) -> None:
    ledger = build(tmp_path / "l", trials=1, variants=("cnn2",))
    _without_maps(ledger)
    (maps, predictions), _ = pictures(read_sweep(ledger))
    assert maps.blocks == ()
    expected = "No Grad-CAM maps, because the model has no spatial features: cnn2."
    assert expected in words(predictions)
    ledger.close()


def _without_maps(ledger: Ledger) -> None:
    for signature, result in ledger.evaluations().items():
        for example in result["examples"]:
            example["map"] = None
        ledger.database.connection.execute(
            "UPDATE evaluations SET result = ? WHERE signature = ?",
            (json.dumps(result), signature),
        )


def test_attempts_with_the_same_error_are_one_row(sweep: SweepData) -> None:
    rows = table(failures(sweep), "failures")
    assert [(row["outcome"], row["class"], row["trials"], row["variants"]) for row in rows] == [
        ("diverged", "diverged", 6, "cnn2, cnn3, resnet50"),
        ("failed", "bug", 6, "cnn2, cnn3, resnet50"),
    ]
    assert rows[1]["reason"] == TRACEBACK.splitlines()[-1]
    assert rows[1]["log"] == "trials/cnn2-s0005/attempt_1.log"


def test_the_command_that_retries_failed_trials_works_in_any_folder(sweep: SweepData) -> None:
    header = replace(sweep.header, space="./my space.py", folder="/home/me", data_dir="/data")
    mine = replace(sweep, name="mine", storage="/results of/2026", header=header)
    line = words(failures(mine)).partition("To retry failed trials: ")[2]
    assert shutil.which(shlex.split(line)[0]) is not None
    assert shlex.split(line)[1:3] == ["-m", "orchestrator.sweep"]
    config = sweeps.parse_args(shlex.split(line)[3:])
    assert (config.space, config.name, config.resume) == ("/home/me/my space.py", "mine", True)
    assert (config.storage, config.data_dir) == (Path("/results of/2026"), Path("/data"))
    built_in = replace(sweep, name="digits", header=replace(header, space="digits", data_dir=""))
    assert "python -m orchestrator.sweep digits --resume" in words(failures(built_in))


def test_the_retry_command_names_the_environment_if_it_is_not_activated(
    sweep: SweepData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(path: Path) -> str:
        monkeypatch.setenv("PATH", str(path))
        return shlex.split(words(failures(sweep)).partition("To retry failed trials: ")[2])[0]

    assert first(tmp_path) == sys.executable
    python = Path(sys.executable).with_name("python")
    if python.exists():
        assert first(python.parent) == "python"


def test_time_by_activity_adds_up(sweep: SweepData) -> None:
    """An attempt: 1 s of start, 2.5 s per epoch (0.25 s of them to report), and 0.5 s of test."""
    section = time_spent(sweep)
    *variants, whole = table(section, "time")
    assert [row["variant"] for row in variants] == ["cnn2", "cnn3", "resnet50"]
    epochs = sum(len(record.rows) for record in sweep.of("cnn2"))
    has_split = "val_s" in sweep.records[0].rows[0].metrics
    first = variants[0]
    assert first["data_s"] == pytest.approx(0.5 * epochs)
    assert first["data_s"] + first["train_s"] + first["validate_s"] == pytest.approx(2 * epochs)
    assert first["validate_s"] == pytest.approx(0.5 * epochs if has_split else 0)
    assert first["test_s"] == pytest.approx(0.5 * 3)
    assert first["sum_s"] == pytest.approx(15 * 1 + 2.5 * epochs + 0.5 * 3)
    wall = max(a.ended_s or 0 for r in sweep.records for a in r.attempts) - min(
        a.started_s for r in sweep.records for a in r.attempts
    )
    assert whole["sum_s"] == pytest.approx(wall)  # one slot, never idle
    assert whole["idle_s"] == pytest.approx(0)
    assert whole["variant"] == "all"
    shares = {row["activity"]: row["share"] for row in table(section, "time_by_activity")}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["data"] == pytest.approx(whole["data_s"] / whole["sum_s"])


def test_the_forecast_is_shown_beside_the_measured_values(tmp_path: Path) -> None:
    whole = {
        **{"concurrent": 2, "epochs": 36, "wall_s": 36.0, "device_s": 72.0},
        **{"disk_bytes": 2**31, "devices": {"cnn2": 0.5}},
    }
    ledger = build(
        tmp_path / "ledger.sqlite",
        variants=("cnn2",),
        trials=6,
        final_seeds=0,
        forecast={"cnn2": {"step_s": 0.1, "epoch_s": 1.5, "peak_gib": 0.25}},
        forecast_whole=whole,
        disk_used_bytes=2**30,
    )
    section = time_spent(read_sweep(ledger))
    [row] = table(section, "forecast")
    assert [row[key] for key in ("forecast_epoch_s", "epoch_s")] == [1.5, 2.25]
    assert row["measured_over_forecast"] == 1.5
    found = {row["quantity"]: row for row in table(section, "forecast_whole")}
    spans = [end - start for start, end in map(tuple, _spans(ledger))]
    assert found["wall time, h"]["measured"] == pytest.approx(sum(spans) / 3600)  # one at a time
    assert found["device time, h"]["measured"] == pytest.approx(sum(spans) / 2 / 3600)
    assert found["device time, h"]["forecast"] == pytest.approx(0.02)
    assert found["epochs"]["measured"] == 6 + 2 + 6 + 2 + 1 + 2
    assert found["files on disk, GiB"]["measured_over_forecast"] == 0.5


def _spans(ledger: Ledger) -> list[tuple[float, float]]:
    return [(a.started_s, a.ended_s or 0.0) for a in ledger.attempts()]


def test_a_pause_between_commands_is_no_idle_time(tmp_path: Path) -> None:
    ledger = build(tmp_path / "l", trials=2, variants=("cnn2",), searched=False)
    ledger.database.connection.execute(
        "UPDATE attempts SET started_s = started_s + 5000, ended_s = ended_s + 5000"
        " WHERE signature = 'cnn2-s0001'"
    )
    ledger.database.connection.execute(
        "UPDATE epochs SET arrived_s = arrived_s + 5000 WHERE signature = 'cnn2-s0001'"
    )
    section = time_spent(read_sweep(ledger))
    *_, whole = table(section, "time")
    assert whole["idle_s"] == pytest.approx(0)
    assert "(5,000.0 s in total)" in words(section)
    ledger.close()


def test_the_matrix_of_pairs_has_both_directions(sweep: SweepData) -> None:
    matrices = [block for block in pairs(sweep).blocks if isinstance(block, Matrix)]
    assert [asdict(m)["names"] for m in matrices] == [("cnn2", "cnn3")] * 2
    (_, loses), (wins, _) = matrices[0].cells
    if loses[1] != "open":
        assert (loses[1], wins[1]) == ("loses", "wins")
    assert loses[0].split("|")[0] in ("significant", "not significant")
