"""What MLflow shows of the sweep's own run and of its dataset. Uses a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking import sweep_run
from orchestrator.tracking.sweep_run import figures, note, parameters
from tests.orchestrator.sweeps import evaluation, metrics, new_ledger, plan, space
from tests.orchestrator.tracking.tracked import Sweep

MANIFEST = {"images": {"train": 100, "test": 20}, "class_names": ["a", "b", "c"]}


def trial(
    ledger: Ledger, variant: str, number: int, value: float, test: float | None = None
) -> str:
    """Record a complete search trial, or a final one with its result on the test split."""
    key = f"{variant}{number}{'t' if test else ''}"
    config = {"validation_fraction": 0.1, "lr": 0.0123456, "optimizer": "sgd"}
    ledger.plan_trial(
        signature=key,
        variant=variant,
        number=number,
        config=config,
        params={"lr": 0.0123456, "optimizer": "sgd"},
        seen_seq=ledger.seq,
        stage="search" if test is None else "final",
    )
    ledger.start_attempt(key, resumed_from=None, micro_batch_size=0)
    ledger.record_epoch(key, 1, 0, metrics(val_top1=value), None)
    if test is not None:
        ledger.record_evaluation(key, 1, evaluation(0, top1=test))
    ledger.end_attempt(key, 1, outcome="complete", trial_status="complete", best=(0, value))
    return key


@pytest.fixture
def two(tmp_path: Path) -> Ledger:
    """Two variants, of which the first, `cnn2`, also has two final trials."""
    ledger = new_ledger(tmp_path / "ledger.sqlite", plan(space()))
    trial(ledger, "cnn2", 0, 0.5)
    trial(ledger, "cnn2", 1, 0.75)
    trial(ledger, "cnn3", 0, 0.8)
    trial(ledger, "cnn2", 0, 0.7, test=0.6)
    trial(ledger, "cnn2", 1, 0.7, test=0.8)
    return ledger


def test_the_parameters_say_what_is_searched_and_what_is_fixed(tmp_path: Path) -> None:
    narrow = {"dropout": 0.25, "epochs": 3}
    of_plan = plan(space(by_variant={"cnn3": narrow}), seed=7)
    facts = {"asked": {"cnn2": 4, "cnn3": 6}, "options": {"final_seeds": 2}}
    ledger = new_ledger(tmp_path / "ledger.sqlite", of_plan, **facts)
    assert parameters(ledger.header()) == {
        "space": "test",
        "dataset": "digits",
        "variants": "cnn2, cnn3",
        "trials": "cnn2: 4, cnn3: 6",
        "final_seeds": "2",
        "seed": "7",
        "image_size_px": "32",
        "metric": "val_top1",
        "mode": "max",
        "range.batch_size": "32, 64, 128",
        "range.dropout": "cnn2: 0 to 0.5",
        "range.lr": "0.0001 to 0.1, logarithmic",
        "range.optimizer": "sgd, adamw",
        "fixed.dropout": "cnn3: 0.25",
        "fixed.epochs": "cnn2: 9, cnn3: 3",
    }


def test_the_metrics_are_the_best_of_each_variant(two: Ledger) -> None:
    assert figures(two) == {
        "trials": 5,
        "best_val_top1.cnn2": 0.75,
        "best_val_top1.cnn3": 0.8,
        "test_top1.cnn2": pytest.approx(0.7),
    }


def test_the_note_has_the_leaderboards_with_links(two: Ledger) -> None:
    text = note(two, "mine", {"cnn21": "#/run"}, "#/model")
    assert text.startswith(
        "Best trial: cnn3-000, val_top1 80.0 %. [Its model](#/model) is ready to serve.\n\n"
    )
    assert "| variant | seeds | test top-1, % | test top-5, % | test loss | ECE, % |" in text
    assert "| cnn2 | 2 | 70.0 ± 14.1 | 100.0 ± 0.0 | 1.2000 ± 0.0000 | 10.0 ± 0.0 |" in text
    assert "| variant | best val_top1, % | best epoch | trials | trial | best hyper" in text
    first = "| cnn3 | 80.0 | 1 | 1 | cnn3-000 | lr 0.0123, optimizer sgd |"
    second = "| cnn2 | 75.0 | 1 | 2 | [cnn2-001](#/run) | lr 0.0123, optimizer sgd |"
    assert text.index(first) < text.index(second)


def test_the_note_of_very_many_variants_is_cut_to_mlflows_limit(
    two: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = note(two, "mine", {}, None)
    monkeypatch.setattr(sweep_run, "_LONGEST_NOTE", len(whole) - 1)
    text = note(two, "mine", {}, None)
    assert len(text) < len(whole)
    assert "cnn3-000" in text
    assert "cnn2-001" not in text
    assert "| cnn3-000 | lr 0.0123, optimizer sgd |\n\n1 more rows.\n\nThe sweep mine" in text


def test_the_run_of_the_sweep_has_parameters_dataset_and_note(sweep: Sweep) -> None:
    sweep.ledger.put("manifest", MANIFEST)
    sweep.ledger.put("data_dir", "/data")
    sweep.ledger.put("git_commit", "a" * 40)
    sweep.tracker = sweep.new_tracker()
    key = sweep.run_trial(0, 0.5)
    for _ in range(2):
        sweep.tracker.finish("complete", figures(sweep.ledger))
        sweep.tracker = sweep.new_tracker()
    runs = sweep.runs()
    parent = runs["sweep"]
    assert parent.data.params == parameters(sweep.ledger.header())
    assert parent.data.metrics == {"trials": 1, "best_val_top1.cnn2": 0.5}
    link = f"#/experiments/{sweep.tracker.experiment or parent.info.experiment_id}/runs/"
    link += f"{runs[key].info.run_id}?workflowType=machine_learning"
    assert f"[cnn2-000]({link})" in parent.data.tags["mlflow.note.content"]
    for run in runs.values():
        assert run.data.tags["mlflow.source.git.commit"] == "a" * 40
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("digits", "f" * 8)
        assert json.loads(given.dataset.source) == {"uri": "/data/digits"}
        profile = {"train_images": 100, "test_images": 20, "classes": 3}
        assert json.loads(given.dataset.profile) == profile
        assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    experiment = sweep.client.get_experiment(parent.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_note_and_a_kind_that_the_user_chose_are_kept(sweep: Sweep) -> None:
    sweep.run_trial(0, 0.5)
    sweep.tracker.finish("complete", {})
    parent = sweep.runs()["sweep"].info
    sweep.client.set_experiment_tag(parent.experiment_id, "mlflow.experimentKind", "mine")
    sweep.client.set_tag(parent.run_id, "mlflow.note.content", "my note")
    sweep.run_trial(1, 0.75)
    sweep.tracker = sweep.new_tracker()
    sweep.tracker.finish("complete", {})
    assert sweep.runs()["sweep"].data.tags["mlflow.note.content"] == "my note"
    kind = sweep.client.get_experiment(parent.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "mine"


def test_a_longer_search_keeps_the_parameters_and_renews_the_note(sweep: Sweep) -> None:
    sweep.ledger.put("asked", {"cnn2": 1, "cnn3": 1})
    sweep.run_trial(0, 0.5)
    sweep.tracker.finish("complete", figures(sweep.ledger))
    sweep.ledger.put("asked", {"cnn2": 2, "cnn3": 2})
    sweep.run_trial(1, 0.75)
    sweep.tracker = sweep.new_tracker()
    sweep.tracker.finish("complete", figures(sweep.ledger))
    parent = sweep.runs()["sweep"]
    assert parent.data.params["trials"] == "1"
    assert "| cnn2 | 75.0 | 2 | 2 | [cnn2-001]" in parent.data.tags["mlflow.note.content"]
    assert sweep.values("sweep", "best_val_top1.cnn2") == [(1, 0.5), (2, 0.75)]


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (1, 2, 3)])
def test_a_sweep_that_is_given_more_trials_has_the_metrics_of_an_unbroken_one(
    sweep: Sweep, sizes: tuple[int, ...]
) -> None:
    for first, last in zip((0, *sizes), sizes, strict=False):
        for number in range(first, last):
            sweep.run_trial(number, (0.5, 0.75, 0.25)[number])
        for _ in range(2):  # the second is a resume without work
            sweep.tracker = sweep.new_tracker()
            sweep.tracker.finish("complete", figures(sweep.ledger))
    assert sweep.values("sweep", "trials") == [(1, 1), (2, 2), (3, 3)]
    best = sweep.values("sweep", "best_val_top1.cnn2")
    assert best == [(1, 0.5), (2, 0.75), (3, 0.75)]
    assert sweep.runs()["sweep"].data.metrics == {"trials": 3, "best_val_top1.cnn2": 0.75}


def test_runs_of_an_earlier_version_are_found_and_continued(sweep: Sweep) -> None:
    """They have all hyperparameters as parameters, and tags without a prefix."""
    key = sweep.start(0)
    sweep.epoch(key, 0, 0.25)
    sweep.tracker.sync()
    run_id = as_earlier_version(sweep, key)
    sweep.tracker = sweep.new_tracker()
    assert sweep.tracker.sync() == 0
    sweep.epoch(key, 1, 0.5)
    sweep.end(key, "complete", (1, 0.5))
    assert sweep.tracker.sync() == 1
    run = sweep.runs()[key]
    assert run.info.run_id == run_id
    config = sweep.config(0).to_dict()
    assert run.data.params == {name: str(value) for name, value in config.items()}
    assert sweep.values(key, "val_top1") == [(1, 0.25), (2, 0.5)]
    tags = run.data.tags
    assert {name for name in tags if not name.startswith(("sweep.", "mlflow."))} == {"my tag"}
    assert (tags["sweep.stage"], tags["sweep.attempts"]) == ("search", "1")
    # A user's tag of one of these names stays on a run of this version.
    sweep.client.set_tag(run_id, "stage", "production")
    sweep.forget()
    sweep.tracker = sweep.new_tracker()
    assert sweep.tracker.sync() == 1
    assert sweep.runs()[key].data.tags["stage"] == "production"


def as_earlier_version(sweep: Sweep, key: str) -> str:
    run_id: str = sweep.runs()[key].info.run_id
    client: Any = sweep.client
    for name in ("sweep.stage", "sweep.attempts"):
        client.delete_tag(run_id, name)
    former = {"attempts": "1", "stage": "search", "variant": "cnn2", "my tag": "1"}
    for name, value in former.items():
        client.set_tag(run_id, name, value)
    for name, value in sweep.config(0).to_dict().items():
        client.log_param(run_id, name, str(value))
    return run_id
