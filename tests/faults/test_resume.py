"""What `--resume` makes of failures, more work, other values, another place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pytest

from orchestrator.storage.paths import SweepPaths
from tests.faults.conftest import once_for_all
from tests.integration.sweeps import (
    command,
    count_epochs,
    environment,
    ledger_of,
    started,
    sweep,
    table,
    tracking_uri,
    wait_for,
)

pytestmark = pytest.mark.faults

SPACE = """
from optuna.distributions import FloatDistribution
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    name="mine",
    dataset="digits",
    variants=("cnn3",),
    trials=2,
    image_size=32,
    max_attempts=1,
    first_rung_epochs={rung},
    rung_factor=2,
    base={{"epochs": 4, "batch_size": 32, "optimizer": "adamw", "steps_per_epoch": 12}},
    params={{"lr": FloatDistribution({low}, 1e-2, log=True)}},
)
"""


@pytest.fixture
def options(tmp_path: Path, digits_data_dir: Path) -> tuple[Any, ...]:
    write_space(tmp_path)
    return ("mine.py", "--max-concurrent", 1, "--data-dir", digits_data_dir)


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths(tmp_path / "results", "mine")


INJECT = Path(__file__).with_name("inject")


def failing(pattern: str, error: str = "RuntimeError") -> dict[str, str]:
    """An environment in which saving fails where the checkpoint's path has the pattern."""
    return {"PYTHONPATH": str(INJECT), "FAULTS_LET_FAIL": f"{pattern}={error}"}


def write_space(cwd: Path, *, rung: int = 0, low: str = "1e-4") -> None:
    (cwd / "mine.py").write_text(SPACE.format(rung=rung, low=low))


@pytest.fixture
def whole(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, options: tuple[Any, ...]
) -> list[Any]:
    """The table of the sweep of `options`, left in peace."""

    def make(cwd: Path) -> list[Any]:
        write_space(cwd)
        return unbroken(cwd, options)

    found: list[Any] = once_for_all(tmp_path_factory, "unbroken-mine", make)
    return found


def unbroken(cwd: Path, options: tuple[Any, ...], *more: Any) -> list[Any]:
    """The table of the same sweep, left in peace."""
    process = sweep(cwd, *options, *more, "--storage", "unbroken")
    assert process.returncode == 0, process.stdout + process.stderr
    return table(SweepPaths(cwd / "unbroken", "mine"))


def test_a_failed_trial_resumes_from_its_last_checkpoint_or_starts_again_as_the_flags_say(
    tmp_path: Path, options: tuple[Any, ...], paths: SweepPaths, whole: list[Any]
) -> None:
    """Cases 27, 28, 29, 36 and 37: trials fail in their third epoch, in every attempt, for now."""
    broken = sweep(tmp_path, *options, env=failing("epoch_0002"))
    assert broken.returncode == 1
    assert "RuntimeError: injected" in broken.stdout
    assert "--resume" in broken.stdout
    assert [(t.status, len(rows_of(paths, t))) for t in trials_of(paths)] == [("failed", 2)] * 2

    left = sweep(tmp_path, *options, "--resume", "--no-retry-failed")
    assert left.returncode == 1
    assert len(ledger_of(paths).attempts()) == 2

    anew = sweep(tmp_path, *options, "--resume", "--from-scratch", env=failing("epoch_0003"))
    assert anew.returncode == 1
    second = [a for a in ledger_of(paths).attempts() if a.attempt == 2]
    assert [a.resumed_from for a in second] == [None, None]
    assert [len(rows_of(paths, t)) for t in trials_of(paths)] == [3, 3]

    mended = sweep(tmp_path, *options, "--resume")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    third = [a for a in ledger_of(paths).attempts() if a.attempt == 3]
    assert [str(a.resumed_from)[-20:] for a in third] == ["attempt_2/epoch_0002"] * 2
    assert [row.epoch for row in rows_of(paths, trials_of(paths)[0])] == [0, 1, 2, 3]
    assert curves(table(paths)) == curves(whole)[: len(whole) // 2] + curves(table(paths))[4:]
    assert one_value_per_epoch(paths) == {4}


def test_a_resumed_sweep_may_have_more_trials_and_more_at_a_time(
    tmp_path: Path, options: tuple[Any, ...], paths: SweepPaths
) -> None:
    """Case 31."""
    first = sweep(tmp_path, *options)
    assert first.returncode == 0, first.stdout + first.stderr
    before = table(paths)
    more = sweep(tmp_path, *options[:1], *options[3:], "--resume", "--trials", 4)
    assert more.returncode == 0, more.stdout + more.stderr
    assert table(paths)[: len(before)] == before
    attempts = sorted(ledger_of(paths).attempts(), key=lambda a: a.started_s)
    assert len(attempts) == 4
    assert attempts[3].started_s < (attempts[2].ended_s or 0)  # two at a time
    fewer = sweep(tmp_path, *options, "--resume", "--trials", 1)
    assert fewer.returncode == 0, fewer.stdout + fewer.stderr
    assert len(ledger_of(paths).attempts()) == 4


def with_another_fingerprint(data_dir: Path, copy: Path) -> Path:
    """Copy prepared digits as if they had been prepared from other images."""
    shutil.copytree(data_dir, copy)
    manifest = copy / "digits" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "fingerprint": "another"}))
    return copy


def test_another_space_or_dataset_is_refused_with_the_difference_unless_forced(
    tmp_path: Path, options: tuple[Any, ...], paths: SweepPaths, digits_data_dir: Path
) -> None:
    """Case 32."""
    first = sweep(tmp_path, *options, "--trials", 1)
    assert first.returncode == 0, first.stdout + first.stderr
    before = table(paths)
    write_space(tmp_path, low="1e-3")
    refused = sweep(tmp_path, *options, "--resume", "--trials", 2)
    assert refused.returncode == 2
    assert "0.0001" in refused.stderr
    assert "0.001" in refused.stderr
    assert "--force" in refused.stderr
    assert table(paths) == before
    write_space(tmp_path)
    other_images = ("--data-dir", with_another_fingerprint(digits_data_dir, tmp_path / "other"))
    refused = sweep(tmp_path, *options, "--resume", "--trials", 2, *other_images)
    assert refused.returncode == 2
    assert "fingerprint: " in refused.stderr
    assert "'another' now" in refused.stderr
    assert table(paths) == before
    write_space(tmp_path, low="1e-3")
    forced = sweep(tmp_path, *options, "--resume", "--trials", 2, "--force")
    assert forced.returncode == 0, forced.stdout + forced.stderr
    assert table(paths)[:4] == before
    assert trials_of(paths)[1].params["lr"] >= 1e-3
    again = sweep(tmp_path, *options, "--resume", "--trials", 3)  # the new space is the sweep's now
    assert again.returncode == 0, again.stdout + again.stderr


def test_early_stopping_decides_the_same_after_a_kill_at_a_rung(
    tmp_path: Path, options: tuple[Any, ...], paths: SweepPaths
) -> None:
    """Case 35: killed after each of several epochs, the sweep stops the trials it would have."""
    write_space(tmp_path, rung=1)
    more = ("--trials", 6)
    whole = unbroken(tmp_path, options, *more)
    assert {row[4] for row in whole} == {"complete", "stopped"}
    for epochs in (5, 8):
        resume = ("--resume",) if epochs > 5 else ()
        with started(tmp_path, *options, *more, *resume) as process:
            wait_for(lambda n=epochs: count_epochs(paths) >= n, f"{epochs} epochs")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    last = sweep(tmp_path, *options, *more, "--resume")
    assert last.returncode == 0, last.stdout + last.stderr
    assert table(paths) == whole


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run something as another user")
def test_a_new_owner_of_the_files_resumes_the_sweep(digits_data_dir: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))  # pytest's folders are root's alone
    try:
        shutil.copytree(digits_data_dir, folder / "data")
        options = ("digits", "--variants", "cnn3", "--epochs", 2, "--data-dir", folder / "data")
        first = sweep(folder, *options, "--trials", 1)
        assert first.returncode == 0, first.stdout + first.stderr
        subprocess.run(["chown", "-R", "nobody:", folder], check=True)
        # Reading is allowed, since this Python may lie in root's home; writing is as for anybody.
        others = ("--reuid=nobody", "--regid=nogroup", "--clear-groups")
        reading = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        again = subprocess.run(
            ["setpriv", *others, *reading, *command(*options, "--resume", "--trials", 2)],
            cwd=folder,
            env={**environment(), "HOME": str(folder), "RAY_TMPDIR": str(folder / "ray")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert again.returncode == 0, again.stdout + again.stderr
        ledger = ledger_of(SweepPaths(folder / "results", "digits"))
        assert [trial.status for trial in ledger.trials()] == ["complete", "complete"]
        ledger.close()
        checked = sweep(folder, *options, "--verify")
        assert checked.returncode == 0, checked.stdout + checked.stderr
    finally:
        shutil.rmtree(folder)


def test_a_moved_sweep_resumes_in_its_new_folder(
    tmp_path: Path, options: tuple[Any, ...], paths: SweepPaths, whole: list[Any]
) -> None:
    """From another folder, with the old one gone: trials, checkpoints, MLflow's runs and files."""
    with started(tmp_path, *options) as process:
        wait_for(lambda: count_epochs(paths) >= 3, "three epochs")
        process.kill()
        process.wait()
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.move(tmp_path / "results", other / "results")
    shutil.copy(tmp_path / "mine.py", other)
    again = sweep(other, *options, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert not (tmp_path / "results").exists()
    moved = SweepPaths(other / "results", "mine")
    assert table(moved) == whole
    client = mlflow.MlflowClient(tracking_uri(again.stdout))
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert len(runs) == 3
    for run in runs:
        assert client.list_artifacts(run.info.run_id), run.data.tags


def trials_of(paths: SweepPaths) -> list[Any]:
    return ledger_of(paths).trials()


def rows_of(paths: SweepPaths, trial: Any) -> list[Any]:
    return ledger_of(paths).epochs(trial.signature)


def curves(rows: list[Any]) -> list[Any]:
    """Signature, epoch and figures: what a trial that failed and went on has as any other."""
    return [(row[2], row[7], row[8]) for row in rows]


def one_value_per_epoch(paths: SweepPaths) -> set[int]:
    """How many values each trial's loss has in MLflow."""
    client = mlflow.MlflowClient(paths.default_tracking_uri)
    experiment = client.get_experiment_by_name(paths.name).experiment_id
    runs = [r for r in client.search_runs([experiment]) if "sweep.signature" in r.data.tags]
    return {len(client.get_metric_history(run.info.run_id, "val_loss")) for run in runs}


def test_out_of_memory_is_retried_with_smaller_micro_batches_and_the_same_effective_batch(
    tmp_path: Path, options: tuple[Any, ...], paths: SweepPaths
) -> None:
    """Case 21: two attempts run out of memory; the third does with a quarter of the batch."""
    done = sweep(
        tmp_path, *options, "--trials", 1, env=failing("attempt_[12]/.*epoch_0001", "MemoryError")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(a.failure_class, a.micro_batch_size) for a in ledger_of(paths).attempts()] == [
        ("out_of_memory", 0),
        ("out_of_memory", 16),
        (None, 8),
    ]
    assert trials_of(paths)[0].config["batch_size"] == 32
    client = mlflow.MlflowClient(paths.default_tracking_uri)
    experiment = client.get_experiment_by_name("mine").experiment_id
    tags = [run.data.tags for run in client.search_runs([experiment])]
    assert {t["sweep.micro_batch_size"] for t in tags if "sweep.signature" in t} == {"8"}


def test_a_sweep_whose_trials_all_fail_with_one_error_stops_early_and_prints_it(
    tmp_path: Path, options: tuple[Any, ...], paths: SweepPaths
) -> None:
    """Case 22: three trials of ten, each tried once, then the variant is given up."""
    broken = sweep(tmp_path, *options, "--trials", 10, env=failing("epoch_0000"))
    assert broken.returncode == 1
    assert len(ledger_of(paths).attempts()) == 3
    assert "the same error" in broken.stdout
