"""A store that is new, lost, old, moved or edited by hand is completed. Uses SQLite stores."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.ledger.ledger import open_ledger
from orchestrator.predict.mlflow_model import fetch_files
from orchestrator.storage.paths import SweepPaths
from orchestrator.tracking.database import _put_in_place, create, relocate, upgrade_from
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.tracking.tracked import Sweep, assert_all_there_once, story


@pytest.fixture
def finished(storage: Path, request: pytest.FixtureRequest) -> Sweep:
    """A sweep that has ended and is in MLflow."""
    sweep = Sweep(storage, re.sub(r"\W+", "-", request.node.name).strip("-"))
    for scene in story(sweep):
        scene()
        sweep.tracker.sync()
    sweep.tracker.finish("failed", {"trials": 3})
    return sweep


def check(sweep: Sweep) -> None:
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)


def test_another_store_is_filled_completely(finished: Sweep, tmp_path: Path) -> None:
    before = finished.content()
    finished.uri = f"sqlite:///{tmp_path / 'other.db'}"
    finished.tracker = finished.new_tracker()
    finished.tracker.finish("failed", {"trials": 3})
    check(finished)
    assert {key: value[4] for key, value in finished.content().items()}.keys() == before.keys()


def test_the_path_of_the_store_may_hold_any_character(tmp_path: Path) -> None:
    """MLflow reads percent escapes and "?" in the URI of a database, and escapes in artifacts'."""
    every = "".join(chr(code) for code in range(1, 128) if chr(code) != "/")
    names = ["feature%2Fx 50%20", every]
    for name in names:
        sweep = Sweep(tmp_path / name / "results", "sweep")
        key = sweep.run_trial(0, 0.5)
        sweep.tracker.finish("complete", {"trials": 1})
        check(sweep)
        assert sweep.files(key)["weights/model.safetensors"] == f"weights of {key} 1"
        there = sorted(path.name for path in sweep.paths.local_root.iterdir())
        assert there == ["mlartifacts", "mlflow.db", "sweep"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)  # no stray folder


def test_a_store_is_created_after_a_process_was_killed_while_creating_it(
    finished: Sweep, tmp_path: Path
) -> None:
    """MLflow itself would leave a file that it cannot open."""
    database = tmp_path / "it's interrupted.db"
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
    finished.uri = uri
    finished.tracker = finished.new_tracker()
    finished.tracker.finish("failed", {"trials": 3})
    check(finished)
    assert [file.name for file in tmp_path.glob(f".{database.name}.*.new")] == [left.name]
    # No process will finish it, but that is certain only after some time.
    os.utime(left, (time.time() - 4000,) * 2)
    create(uri)
    assert not left.exists()


def test_a_store_created_by_another_process_is_not_replaced(tmp_path: Path) -> None:
    new, there = tmp_path / "new", tmp_path / "there"
    new.write_text("new")
    there.write_text("there")
    _put_in_place(new, there)
    assert there.read_text() == "there"


def test_an_older_copy_of_the_store_is_completed(finished: Sweep, tmp_path: Path) -> None:
    """As after a restore from a backup: only what is missing is written."""
    copy = tmp_path / "copy.db"
    shutil.copy(finished.paths.local_root / "mlflow.db", copy)
    key = finished.run_trial(4, 0.95)
    finished.tracker.sync()
    finished.uri = f"sqlite:///{copy}"
    finished.tracker = finished.new_tracker()
    assert finished.tracker.sync() == 1
    finished.tracker.finish("failed", {"trials": 4})
    check(finished)
    assert len(finished.values(key, "val_top1")) == 2


def test_an_experiment_that_disappears_while_the_sweep_runs_is_written_again(
    finished: Sweep,
) -> None:
    """As if the server was given another database between two syncs."""
    with closing(sqlite3.connect(finished.paths.local_root / "mlflow.db")) as store, store:
        number = finished.tracker.experiment
        own = f"(SELECT run_uuid FROM runs WHERE experiment_id = {number})"
        for table in ("metrics", "latest_metrics", "params", "tags"):
            store.execute(f"DELETE FROM {table} WHERE run_uuid IN {own}")
        store.execute(f"DELETE FROM runs WHERE experiment_id = {number}")
        for table in ("experiment_tags", "experiments"):
            store.execute(f"DELETE FROM {table} WHERE experiment_id = {number}")
    finished.run_trial(4, 0.95)
    with pytest.raises(Exception, match="not found"):
        finished.tracker.sync()
    assert finished.tracker.sync() == 5
    finished.tracker.finish("complete", {"trials": 4})
    check(finished)


@pytest.mark.parametrize("which", ["a trial's", "the sweep's"])
def test_a_run_deleted_by_hand_is_written_again(finished: Sweep, which: str) -> None:
    runs = finished.runs()
    key = "sweep" if which == "the sweep's" else finished.config(0).signature()
    finished.client.delete_run(runs[key].info.run_id)
    finished.tracker = finished.new_tracker()
    finished.tracker.finish("failed", {"trials": 3})
    check(finished)
    parent = finished.runs()["sweep"].info.run_id
    assert {
        run.data.tags["mlflow.parentRunId"] for k, run in finished.runs().items() if k != "sweep"
    } == {parent}


def test_of_duplicate_runs_the_one_with_content_is_kept(finished: Sweep) -> None:
    key = finished.config(0).signature()
    runs = finished.runs()
    for known in ("sweep", key):
        tags = {
            name: tag
            for name, tag in runs[known].data.tags.items()
            if name in ("sweep.id", "sweep.signature")
        }
        finished.client.create_run(runs[known].info.experiment_id, tags=tags)
    finished.tracker = finished.new_tracker()
    finished.tracker.finish("failed", {"trials": 3})
    check(finished)
    assert {run.info.run_id for run in finished.runs().values()} == {
        run.info.run_id for run in runs.values()
    }


def test_a_status_set_late_by_an_earlier_request_is_corrected(finished: Sweep) -> None:
    key = finished.config(0).signature()
    finished.client.update_run(finished.runs()[key].info.run_id, status="RUNNING")
    finished.client.update_run(finished.runs()["sweep"].info.run_id, status="RUNNING")
    finished.tracker = finished.new_tracker()
    finished.tracker.finish("failed", {"trials": 3})
    check(finished)
    assert finished.runs()["sweep"].info.status == "FAILED"


def test_runs_are_rewritten_after_the_ledger_was_restored_from_an_older_copy(
    finished: Sweep, tmp_path: Path
) -> None:
    """MLflow has more, with other values of the same epochs and the same number of changes."""
    older = tmp_path / "older.sqlite"
    finished.ledger.database.copy_to(older)
    running = finished.start(4)
    for epoch in range(3):
        finished.epoch(running, epoch, 0.5)
    finished.tracker.sync()
    finished.ledger = open_ledger(older)
    finished.tracker = finished.new_tracker()
    key = finished.run_trial(4, 0.9)
    assert key == running
    finished.tracker.finish("complete", {"trials": 4})
    run = finished.runs()[key]
    assert (run.info.status, run.data.tags["sweep.outcome"]) == ("FINISHED", "complete")
    check(finished)  # with the values of this ledger, not those of the lost one


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
    assert sorted(old.rglob("*")) == before  # the original is not changed
    assert '"variant": "cnn2"' in sweep.files(first)["config.json"]
    assert "weights/model.json" not in sweep.files(first)
    assert sweep.files(second)["weights/model.safetensors"] == f"weights of {second} 1"
    for one in (sweep, other):  # those of the other sweep too
        for run in one.runs().values():
            path = one.client.download_artifacts(run.info.run_id, "")
            assert Path(path).is_relative_to(new)
    assert "weights/model.json" in other.files(other.config(0).signature())
    assert relocate(sweep.paths) == []


def test_artifact_locations_chosen_by_others_are_not_changed(tmp_path: Path) -> None:
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


def test_a_locked_store_is_relocated_later(tmp_path: Path) -> None:
    sweep, _, _, new = moved(tmp_path, "moved")
    paths = SweepPaths(new, "moved")
    with closing(sqlite3.connect(new / "mlflow.db", isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            relocate(paths, wait_s=0.2)
        lock.execute("ROLLBACK")
    assert sorted(relocate(paths)) == ["moved", "other"]
    assert sweep.paths.name == "moved"


def edit(sweep: Sweep, statement: str) -> None:
    with closing(sqlite3.connect(sweep.paths.mlflow_database)) as store, store:
        store.execute(statement)


def copy_runs(sweep: Sweep, experiment: str) -> list[str]:
    """Copy the sweep's runs as a user's script would, with all tags; return the new ids."""
    new = []
    for run in sweep.runs().values():
        copy = sweep.client.create_run(experiment, tags=dict(run.data.tags))
        sweep.client.set_terminated(copy.info.run_id)
        new.append(copy.info.run_id)
    return new


@pytest.mark.parametrize("knows_id", [True, False])
@pytest.mark.parametrize(
    "how", ["renamed", "renamed, deleted", "moved runs", "moved trials", "copied runs"]
)
def test_runs_are_found_wherever_they_are(finished: Sweep, how: str, knows_id: bool) -> None:
    client, name = finished.client, finished.paths.name
    before = {key: run.info.run_id for key, run in finished.runs().items()}
    experiment = finished.tracker.experiment
    assert finished.ledger.header().mlflow_experiment == experiment
    if not knows_id:  # as a ledger of an earlier version
        finished.ledger.put("mlflow_experiment", "")
    elsewhere = finished.paths.artifacts / "elsewhere"
    other = client.create_experiment(f"other of {name}", artifact_location=elsewhere.as_uri())
    copies: list[str] = []
    if how.startswith("renamed"):
        client.rename_experiment(experiment, f"new {name}")
        if "deleted" in how:
            client.delete_experiment(experiment)
    elif how == "copied runs":
        copies = copy_runs(finished, other)
    else:
        trials = "" if how == "moved runs" else f"AND run_uuid <> '{before['sweep']}'"
        own = f"WHERE experiment_id = {experiment} {trials}"
        edit(finished, f"UPDATE runs SET experiment_id = {other} {own}")
    finished.tracker = finished.new_tracker()
    assert finished.tracker.sync() == 0
    key = finished.run_trial(4, 0.95)
    assert finished.tracker.sync() == 1
    finished.tracker.finish("complete", {"trials": 4})
    own = f"tags.`sweep.id` = '{finished.ledger.header().sweep_id}'"
    every = [one.experiment_id for one in client.search_experiments()]
    after = {
        run.data.tags.get("sweep.signature", "sweep"): run
        for run in client.search_runs(every, own)
        if run.info.run_id not in copies
    }
    assert len(client.search_runs(every, own)) == len(before) + 1 + len(copies)
    assert {k: run.info.run_id for k, run in after.items() if k != key} == before
    assert after[key].info.experiment_id == after["sweep"].info.experiment_id
    assert finished.tracker.experiment == after["sweep"].info.experiment_id


def test_a_renamed_experiment_keeps_its_artifacts_after_the_folder_moves(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "old", "ours")
    key = sweep.run_trial(0, 0.5)
    sweep.tracker.finish("complete", {"trials": 1})
    sweep.client.rename_experiment(sweep.tracker.experiment, "another name")
    sweep.ledger.close()
    (tmp_path / "old").rename(tmp_path / "new")
    paths = SweepPaths(tmp_path / "new", "ours")
    assert relocate(paths) == ["ours"]
    with closing(sqlite3.connect(paths.mlflow_database)) as store:
        (folder,) = store.execute("SELECT artifact_location FROM experiments").fetchall()[-1]
    assert folder == (tmp_path / "new/mlartifacts/ours").as_uri()
    assert relocate(paths) == []
    assert key


def make_older(database: Path) -> str:
    """Create a database of an earlier version of MLflow; return its schema version."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.db.base_sql_model import Base  # noqa: F401
    from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

    database.parent.mkdir(parents=True)
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{database}")
    InitialBase.metadata.create_all(engine)
    config, version = utils._get_alembic_config(f"sqlite:///{database}"), "728d730b5ebd"
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    engine.dispose()
    return version


def test_an_older_database_is_copied_before_mlflow_upgrades_it(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "results", "sweep", uri=f"sqlite:///{tmp_path}/older/store.db")
    database = tmp_path / "older" / "store.db"
    version = make_older(database)
    before = database.read_bytes()
    assert upgrade_from(sweep.uri) == version
    with pytest.raises(UsageError, match="older version"):
        fetch_files("0" * 32, sweep.uri, tmp_path)
    assert database.read_bytes() == before
    sweep.run_trial(0, 0.5)
    sweep.tracker.finish("complete", {"trials": 1})
    check(sweep)
    copy = database.with_name(f"store.before-{version}.db")
    (note,) = sweep.tracker.notes
    assert note.endswith(f"Its old state is kept as {copy}.")
    assert upgrade_from(sweep.uri) is None
    assert upgrade_from(f"sqlite:///{copy}") == version
    sweep.new_tracker().sync()
    assert sorted(path.name for path in database.parent.iterdir()) == [copy.name, database.name]


def test_other_files_are_not_taken_for_an_older_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database" * 100)
    (tmp_path / "empty").touch()
    for uri in (f"sqlite:///{tmp_path}/{name}" for name in ("text", "empty", "absent")):
        assert upgrade_from(uri) is None
    assert upgrade_from("http://127.0.0.1:5000") is None
