"""The real command: searching, recording, resuming after a kill, exit statuses."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import (
    TRIAL,
    count_epochs,
    ledger_of,
    started,
    sweep,
    table,
    titled,
    tracking_uri,
    wait_for,
)
from trainables.config import TrainConfig
from trainables.data import batches, dataset, preprocess
from trainables.metrics import METRIC_NAMES
from trainables.models import build
from trainables.training import loop

pytestmark = pytest.mark.ray

SMALL = ("--trials", 2, "--epochs", 2, "--variants", "cnn2,cnn3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits_data_dir: Path):
    """One finished sweep over two variants, in a folder whose name has a space and a quote."""
    cwd = tmp_path_factory.mktemp("a sweep's folder")
    process = sweep(cwd, "digits", *SMALL, "--data-dir", digits_data_dir)
    assert process.returncode == 0, process.stdout + process.stderr
    return cwd, process.stdout, SweepPaths(cwd / "results", "digits")


def test_every_planned_trial_ends_once_and_variants_run_smallest_first(finished) -> None:
    _, _, paths = finished
    ledger = ledger_of(paths)
    trials = ledger.trials()
    assert [(t.variant, t.number) for t in trials] == [
        ("cnn3", 0),
        ("cnn3", 1),
        ("cnn2", 0),
        ("cnn2", 1),
    ]
    assert {t.status for t in trials} <= {"complete", "stopped"}
    assert len(ledger.attempts()) == 4
    for trial in trials:
        assert [row.epoch for row in ledger.epochs(trial.signature)] == [0, 1]


def test_mlflow_holds_one_run_per_trial_and_one_value_per_metric_and_epoch(finished) -> None:
    _, output, paths = finished
    client = mlflow.MlflowClient(tracking_uri(output))
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    children = {r.data.tags["sweep.signature"]: r for r in runs if "sweep.signature" in r.data.tags}
    (parent,) = [run for run in runs if "sweep.signature" not in run.data.tags]
    assert len(runs) == 5
    assert {run.info.status for run in runs} == {"FINISHED"}
    ledger = ledger_of(paths)
    for trial in ledger.trials():
        run = children[trial.signature]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["lr"] == str(trial.config["lr"])
        assert run.data.params["variant"] == trial.variant
        for name in METRIC_NAMES:
            history = client.get_metric_history(run.info.run_id, name)
            expected = [row.metrics[name] for row in ledger.epochs(trial.signature)]
            assert [(m.step, m.value) for m in history] == list(enumerate(expected, start=1))


def test_the_best_weights_in_mlflow_give_the_recorded_accuracy_again(
    finished, digits_dir: Path, tmp_path: Path
) -> None:
    _, output, paths = finished
    client = mlflow.MlflowClient(tracking_uri(output))
    experiment = client.get_experiment_by_name("digits").experiment_id
    ledger = ledger_of(paths)
    manifest = dataset.load_manifest(digits_dir)
    with_weights = []
    for run in client.search_runs([experiment]):
        if not any(file.path == "weights" for file in client.list_artifacts(run.info.run_id)):
            continue
        trial = ledger.trial(run.data.tags["sweep.signature"])
        with_weights.append(trial.variant)
        path = client.download_artifacts(
            run.info.run_id, "weights/model.safetensors", str(tmp_path)
        )
        config = TrainConfig.from_dict(trial.config)
        model = build.build_model(config, num_classes=10, in_channels=1)
        model.load_state_dict(load_file(path))
        store = batches.open_store(digits_dir, "train", torch.device("cpu"))
        _, val = dataset.split_indices(
            store.labels.numpy(), config.validation_fraction, config.split_seed
        )
        prepare = preprocess.preparation(config, manifest, torch.device("cpu"))
        _, top1, _ = loop.evaluate(config, model, store, torch.from_numpy(val), prepare)
        assert top1 == trial.best_value
    assert sorted(with_weights) == ["cnn2", "cnn3"]  # the best one of each, and no other


def test_checkpoints_of_all_but_the_best_are_gone(finished) -> None:
    _, _, paths = finished
    kept = sorted(path.parent.parent.name for path in paths.root.glob("trials/*/*/epoch_*"))
    best = {}
    for trial in ledger_of(paths).trials():
        held = best.get(trial.variant)
        if held is None or trial.best_value > held.best_value:
            best[trial.variant] = trial
    assert kept == sorted(trial.signature for trial in best.values())


def test_a_finished_sweep_is_not_changed_by_another_command(
    finished, digits_data_dir: Path
) -> None:
    cwd, _, paths = finished
    before = table(paths)
    refused = sweep(cwd, "digits", *SMALL, "--data-dir", digits_data_dir)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    again = sweep(cwd, "digits", *SMALL, "--data-dir", digits_data_dir, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "has ended already" in again.stdout
    assert table(paths) == before
    assert len(ledger_of(paths).attempts()) == 4


def test_resume_accepts_more_trials_and_refuses_other_epochs(
    finished, digits_data_dir: Path
) -> None:
    cwd, _, paths = finished
    more = ("digits", "--resume", "--data-dir", digits_data_dir)
    other = sweep(cwd, *more, "--epochs", 7)
    assert other.returncode == 2
    assert "overrides.epochs: 2 before, 7 now" in other.stderr
    grown = sweep(cwd, *more, "--trials", 3)
    assert grown.returncode == 0, grown.stdout + grown.stderr
    assert len(ledger_of(paths).trials()) == 6


def test_a_sweep_with_a_killed_driver_resumes_to_the_same_results(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    """SIGKILL twice, each time in the middle of a trial; compared with an uninterrupted sweep."""
    arguments = ("--trials", 3, "--epochs", 3, "--variants", "cnn3", "--max-concurrent", 1)
    options = (*arguments, "--data-dir", digits_data_dir)
    whole = sweep(tmp_path, "digits", *options, "--storage", "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    broken = SweepPaths(tmp_path / "broken", "digits")
    for epochs, resume in ((2, ()), (5, ("--resume",))):
        with started(tmp_path, "digits", *options, "--storage", "broken", *resume) as process:
            wait_for(lambda epochs=epochs: count_epochs(broken) >= epochs, f"epoch {epochs}")
            process.send_signal(signal.SIGKILL)
            process.wait()
    last = sweep(tmp_path, "digits", *options, "--storage", "broken", "--resume")
    assert last.returncode == 0, last.stdout + last.stderr
    assert table(broken) == table(SweepPaths(tmp_path / "whole", "digits"))
    client = mlflow.MlflowClient(tracking_uri(last.stdout))
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    outcomes = [attempt.outcome for attempt in ledger_of(broken).attempts()]
    assert outcomes.count("lost") >= 1


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_ends_the_sweep_without_losing_anything(
    tmp_path: Path, digits_data_dir: Path, stop: signal.Signals
) -> None:
    options = ("--trials", 2, "--epochs", 6, "--variants", "cnn3", "--data-dir", digits_data_dir)
    paths = SweepPaths(tmp_path / "results", "digits")
    with started(tmp_path, "digits", *options) as process:
        wait_for(lambda: count_epochs(paths) >= 2, "two epochs")
        os.kill(process.pid, stop)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "Nothing is lost" in output
    assert "Traceback" not in output
    client = mlflow.MlflowClient(tracking_uri(output))
    experiment = client.get_experiment_by_name("digits").experiment_id
    assert "RUNNING" not in {run.info.status for run in client.search_runs([experiment])}
    known = {(t.signature, r.epoch) for t, r in _rows(paths)}
    resumed = sweep(tmp_path, "digits", *options, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert known <= {(t.signature, r.epoch) for t, r in _rows(paths)}
    assert {run.info.status for run in client.search_runs([experiment])} == {"FINISHED"}
    assert any(attempt.resumed_from for attempt in ledger_of(paths).attempts())


def test_a_killed_worker_is_replaced_and_its_trial_resumes(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    options = ("--trials", 2, "--epochs", 8, "--variants", "cnn3", "--max-concurrent", 1)
    paths = SweepPaths(tmp_path / "results", "digits")
    with started(tmp_path, "digits", *options, "--data-dir", digits_data_dir) as process:
        wait_for(lambda: count_epochs(paths) >= 2, "two epochs")
        (pid,) = titled(process.mark, *TRIAL)
        os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    ledger = ledger_of(paths)
    attempts = ledger.attempts(ledger.trials()[0].signature)
    assert [(a.attempt, a.outcome, a.failure_class) for a in attempts] == [
        (1, "failed", "killed"),
        (2, "complete", None),
    ]
    assert attempts[1].resumed_from is not None
    assert ledger.trials()[0].status == "complete"


def test_a_second_driver_is_refused(tmp_path: Path, digits_data_dir: Path) -> None:
    options = ("--trials", 2, "--epochs", 6, "--variants", "cnn3", "--data-dir", digits_data_dir)
    paths = SweepPaths(tmp_path / "results", "digits")
    with started(tmp_path, "digits", *options) as process:
        wait_for(paths.ledger.exists, "the ledger")
        second = sweep(tmp_path, "digits", *options, "--resume")
        assert second.returncode == 2
        assert f"process {process.pid} on" in second.stderr


def test_two_sweeps_at_a_time_each_start_their_own_ray(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    options = ("--variants", "cnn3", "--data-dir", digits_data_dir)
    paths = SweepPaths(tmp_path / "results", "digits")
    with started(tmp_path, "digits", "--trials", 4, "--epochs", 2000, *options) as first:
        wait_for(lambda: count_epochs(paths) >= 1, "an epoch")
        other = sweep(
            tmp_path,
            "digits",
            *("--name", "other", "--trials", 1, "--epochs", 1, *options),
            address="",
        )
        assert other.returncode == 0, other.stdout + other.stderr
        assert "Using a local Ray" in other.stdout
        assert first.poll() is None


def test_a_variant_that_always_fails_is_stopped_and_the_others_finish(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    space = tmp_path / "half_broken.py"
    space.write_text(
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='half_broken', dataset='digits', trials=5, image_size=32,\n"
        "    variants=('cnn3', 'efficientnet_b0'), max_attempts=1,\n"
        "    base={'epochs': 1, 'steps_per_epoch': 2, 'batch_size': 64},\n"
        # Batch norm refuses a single value per channel: one image at 1 x 1 features.
        "    by_variant={'efficientnet_b0': {'batch_size': 1}})\n"
    )
    process = sweep(tmp_path, "./half_broken.py", "--data-dir", digits_data_dir)
    assert process.returncode == 1, process.stdout + process.stderr
    ledger = ledger_of(SweepPaths(tmp_path / "results", "half_broken"))
    by_status = {}
    for trial in ledger.trials():
        by_status.setdefault((trial.variant, trial.status), []).append(trial)
    assert len(by_status["cnn3", "complete"]) == 5
    assert 3 <= len(by_status["efficientnet_b0", "failed"]) <= 4  # two run at a time
    assert "efficientnet_b0 was stopped" in process.stdout
    assert "bug: ValueError: Expected more than 1 value per channel" in process.stdout
    assert "--resume" in process.stdout


def test_trials_of_two_resource_shapes_reuse_a_worker_per_shape(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    space = tmp_path / "shapes.py"
    space.write_text(
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='shapes', dataset='digits', trials=10, image_size=32,\n"
        "    variants=('cnn3', 'cnn2'), by_variant={'cnn2': {'threads': 2}},\n"
        "    base={'epochs': 1, 'steps_per_epoch': 1, 'batch_size': 32})\n"
    )
    begun = time.monotonic()
    process = sweep(tmp_path, "shapes.py", "--data-dir", digits_data_dir, "--max-concurrent", 1)
    assert process.returncode == 0, process.stdout + process.stderr
    assert time.monotonic() - begun < 120  # twenty cold starts would take longer
    attempts = ledger_of(SweepPaths(tmp_path / "results", "shapes")).attempts()
    assert len(attempts) == 20


def _rows(paths: SweepPaths):
    ledger = ledger_of(paths)
    return [(trial, row) for trial in ledger.trials() for row in ledger.epochs(trial.signature)]
