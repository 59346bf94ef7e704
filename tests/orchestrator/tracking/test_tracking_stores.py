"""A store that is new, lost, old, moved or edited by hand is completed. Real SQLite stores."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.ledger.ledger import open_ledger
from orchestrator.storage.paths import SweepPaths
from orchestrator.tracking.database import _put_in_place, create, relocate
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.tracking.test_tracker import storage  # noqa: F401 (a fixture: one quick store)
from tests.orchestrator.tracking.tracked import Sweep, assert_all_there_once, story


@pytest.fixture
def told(storage: Path, request: pytest.FixtureRequest) -> Sweep:  # noqa: F811
    """A sweep that has ended, and that MLflow shows."""
    sweep = Sweep(storage, request.node.name.partition("[")[0] + str(len(request.node.name)))
    for scene in story(sweep):
        scene()
        sweep.tracker.sync()
    sweep.tracker.finish("failed", {"trials": 3})
    return sweep


def check(sweep: Sweep) -> None:
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)


def test_another_store_is_filled_from_the_beginning(told: Sweep, tmp_path: Path) -> None:
    before = told.content()
    told.uri = f"sqlite:///{tmp_path / 'other.db'}"
    told.tracker = told.new_tracker()
    told.tracker.finish("failed", {"trials": 3})
    check(told)
    assert {key: value[4] for key, value in told.content().items()}.keys() == before.keys()


def test_a_store_whose_creator_is_killed_is_created_whole_by_the_next(
    told: Sweep, tmp_path: Path
) -> None:
    """MLflow itself would leave a file that it can never open again."""
    database = tmp_path / "a killed one's.db"
    uri = f"sqlite:///{database}"
    code = "import sys; from orchestrator.tracking import database as m; m.create(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", code, uri], stderr=subprocess.DEVNULL) as creator:
        end_s = time.monotonic() + 60
        while not any(file.stat().st_size for file in tmp_path.glob(f".{database.name}.*.new")):
            assert creator.poll() is None
            assert time.monotonic() < end_s
            time.sleep(0.01)
        creator.kill()
    assert not database.exists()
    (left,) = tmp_path.glob(f".{database.name}.*.new")
    told.uri = uri
    told.tracker = told.new_tracker()
    told.tracker.finish("failed", {"trials": 3})
    check(told)
    assert [file.name for file in tmp_path.glob(f".{database.name}.*.new")] == [left.name]
    # Nobody will go on with it, but that is certain only after a while.
    os.utime(left, (time.time() - 4000,) * 2)
    create(uri)
    assert not left.exists()


def test_a_store_that_was_created_meanwhile_stays(tmp_path: Path) -> None:
    new, there = tmp_path / "new", tmp_path / "there"
    new.write_text("new")
    there.write_text("there")
    _put_in_place(new, there)
    assert there.read_text() == "there"


def test_an_older_copy_of_the_store_is_completed(told: Sweep, tmp_path: Path) -> None:
    """As after a restore from a backup: only what it lacks is written."""
    copy = tmp_path / "copy.db"
    shutil.copy(told.paths.local_root / "mlflow.db", copy)
    key = told.run_trial(4, 0.95)
    told.tracker.sync()
    told.uri = f"sqlite:///{copy}"
    told.tracker = told.new_tracker()
    assert told.tracker.sync() == 1
    told.tracker.finish("failed", {"trials": 4})
    check(told)
    assert len(told.values(key, "val_top1")) == 2


def test_an_experiment_that_is_gone_while_the_sweep_runs_is_written_anew(told: Sweep) -> None:
    """As after the server was given another database between two passes."""
    with closing(sqlite3.connect(told.paths.local_root / "mlflow.db")) as store, store:
        number = told.tracker.experiment
        own = f"(SELECT run_uuid FROM runs WHERE experiment_id = {number})"
        for table in ("metrics", "latest_metrics", "params", "tags"):
            store.execute(f"DELETE FROM {table} WHERE run_uuid IN {own}")
        store.execute(f"DELETE FROM runs WHERE experiment_id = {number}")
        store.execute(f"DELETE FROM experiments WHERE experiment_id = {number}")
    told.run_trial(4, 0.95)
    with pytest.raises(Exception, match="not found"):
        told.tracker.sync()
    assert told.tracker.sync() == 5
    told.tracker.finish("complete", {"trials": 4})
    check(told)


@pytest.mark.parametrize("which", ["a trial's", "the sweep's"])
def test_a_run_deleted_by_hand_is_written_anew(told: Sweep, which: str) -> None:
    runs = told.runs()
    key = "sweep" if which == "the sweep's" else told.config(0).signature()
    told.client.delete_run(runs[key].info.run_id)
    told.tracker = told.new_tracker()
    told.tracker.finish("failed", {"trials": 3})
    check(told)
    parent = told.runs()["sweep"].info.run_id
    assert {
        run.data.tags["mlflow.parentRunId"] for k, run in told.runs().items() if k != "sweep"
    } == {parent}


def test_doubled_runs_are_reduced_to_the_one_with_content(told: Sweep) -> None:
    key = told.config(0).signature()
    runs = told.runs()
    for known in ("sweep", key):
        tags = {
            name: tag
            for name, tag in runs[known].data.tags.items()
            if name in ("sweep.id", "sweep.signature")
        }
        told.client.create_run(runs[known].info.experiment_id, tags=tags)
    told.tracker = told.new_tracker()
    told.tracker.finish("failed", {"trials": 3})
    check(told)
    assert {run.info.run_id for run in told.runs().values()} == {
        run.info.run_id for run in runs.values()
    }


def test_a_status_set_late_by_a_request_of_before_is_corrected(told: Sweep) -> None:
    key = told.config(0).signature()
    told.client.update_run(told.runs()[key].info.run_id, status="RUNNING")
    told.client.update_run(told.runs()["sweep"].info.run_id, status="RUNNING")
    told.tracker = told.new_tracker()
    told.tracker.finish("failed", {"trials": 3})
    check(told)
    assert told.runs()["sweep"].info.status == "FAILED"


def test_a_ledger_restored_from_an_older_copy_is_shown_again(told: Sweep, tmp_path: Path) -> None:
    """MLflow is ahead of it, with other values of the same epochs and the same count of changes."""
    older = tmp_path / "older.sqlite"
    told.ledger.database.copy_to(older)
    running = told.start(4)
    for epoch in range(3):
        told.epoch(running, epoch, 0.5)
    told.tracker.sync()
    told.ledger = open_ledger(older)
    told.tracker = told.new_tracker()
    key = told.run_trial(4, 0.9)
    assert key == running
    told.tracker.finish("complete", {"trials": 4})
    run = told.runs()[key]
    assert (run.info.status, run.data.tags["sweep.outcome"]) == ("FINISHED", "complete")
    check(told)  # with the values of this ledger, not those of the one that was lost


def moved(tmp_path: Path, how: str) -> tuple[Sweep, Sweep, Path, Path]:
    old, new = tmp_path / "it's old", tmp_path / "it's new"
    sweep, other = Sweep(old, "moved"), Sweep(old, "other")
    for one in (sweep, other):
        one.run_trial(0, 0.5)
        one.tracker.finish("complete", {"trials": 1})
        one.ledger.close()
    if how == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    return sweep, other, old, new


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_artifacts_are_found_and_written_where_the_folder_is_now(tmp_path: Path, how: str) -> None:
    sweep, other, old, new = moved(tmp_path, how)
    before = sorted(old.rglob("*"))
    for one in (sweep, other):
        one.paths = SweepPaths(new, one.paths.name)
        one.uri = one.paths.default_tracking_uri
        one.ledger = open_ledger(one.paths.ledger)
    sweep.tracker = Tracker(sweep.ledger, sweep.paths, sweep.uri)
    assert sweep.tracker.sync() == 0
    first = sweep.config(0).signature()
    second = sweep.run_trial(1, 0.9)
    sweep.run_trial(2, 0.8)  # two are kept: this displaces the first
    sweep.tracker.finish("complete", {"trials": 3})
    assert sorted(old.rglob("*")) == before  # the original of a copy is left alone
    assert '"variant": "cnn2"' in sweep.files(first)["config.json"]
    assert "weights/model.json" not in sweep.files(first)
    assert sweep.files(second)["weights/model.safetensors"] == f"weights of {second} 1"
    for one in (sweep, other):  # the neighbour's are found too
        for run in one.runs().values():
            path = one.client.download_artifacts(run.info.run_id, "")
            assert Path(path).is_relative_to(new)
    assert "weights/model.json" in other.files(other.config(0).signature())
    assert relocate(sweep.paths) == []


def test_places_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "ours")
    sweep.run_trial(0, 0.5)
    sweep.tracker.sync()
    elsewhere = f"file://{tmp_path}/elsewhere"
    sweep.client.create_experiment("mine", artifact_location=elsewhere)
    sweep.client.create_experiment("bucket", artifact_location="s3://b/mlartifacts/bucket")
    assert relocate(sweep.paths) == []
    assert sweep.client.get_experiment_by_name("mine").artifact_location == elsewhere
    assert sweep.client.get_experiment_by_name("bucket").artifact_location.startswith("s3://")
    assert relocate(SweepPaths(tmp_path / "nothing here", "ours")) == []


def test_a_locked_store_is_left_as_it_is_and_relocated_later(tmp_path: Path) -> None:
    sweep, _, _, new = moved(tmp_path, "moved")
    paths = SweepPaths(new, "moved")
    with closing(sqlite3.connect(new / "mlflow.db", isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            relocate(paths, wait_s=0.2)
        lock.execute("ROLLBACK")
    assert sorted(relocate(paths)) == ["moved", "other"]
    assert sweep.paths.name == "moved"
