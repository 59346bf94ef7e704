"""`--verify` finds no problem in an intact sweep, and names each change made to one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import torch

from orchestrator.ledger.ledger import open_ledger
from orchestrator.ledger.records import Stage
from orchestrator.ledger.snapshot import local_copy
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.storage import locks
from orchestrator.storage.paths import SweepPaths
from orchestrator.sweep import __main__ as sweep
from orchestrator.tracking.tracker import Tracker
from orchestrator.verify.decision_checks import check_early_stopping, check_suggestions
from orchestrator.verify.ledger_checks import check_attempts, check_epochs, check_trials
from orchestrator.verify.snapshot import read_snapshot
from tests.orchestrator.simulated_sweeps import (
    Killed,
    kill_at,
    mixed_ends,
    run_epoch,
    run_trials,
    start_next,
    without_fsync,
)
from tests.orchestrator.sweeps import new_ledger, plan, space
from trainables.training import checkpoint

TRIALS = 5
PLAN = plan(space(trials=TRIALS, variants=("cnn2", "cnn3")), final_seeds=1)
Verify = Callable[..., tuple[int, str]]


def make_sweep(paths: SweepPaths, *, epochs_of_last: int | None = None) -> None:
    """Simulate a sweep to its end, or interrupt it in the middle of its last trial."""
    ledger = without_fsync(
        new_ledger(
            paths.ledger,
            PLAN,
            options={},
            versions={"optuna": optuna.__version__},
            asked={"cnn2": TRIALS, "cnn3": TRIALS},
        )
    )
    scheduler = TrialScheduler(ledger, PLAN)
    if epochs_of_last is None:
        run_trials(scheduler, limit=2)
    else:
        for _ in range(3):
            running = start_next(scheduler)
            assert running is not None
            for _ in range(epochs_of_last):
                run_epoch(scheduler, running, lambda start, epoch: None)
        scheduler.interrupt()
    for trial in ledger.trials():
        for row in ledger.epochs(trial.signature)[-2:]:
            save(paths.root / str(row.checkpoint))
        if trial.best_epoch is not None:
            save(paths.root / str(ledger.epochs(trial.signature)[trial.best_epoch].checkpoint))
    tracker = Tracker(ledger, paths, paths.default_tracking_uri)
    tracker.sync()
    tracker.finish("complete" if epochs_of_last is None else "interrupted", {})
    ledger.close()


def save(folder: Path) -> None:
    if not folder.exists():
        checkpoint.save(
            folder, weights={"model": {"w": torch.zeros(3)}}, optimizer={}, state={"epoch": 0}
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("whole")
    make_sweep(SweepPaths(storage, "mine"))
    return storage


@pytest.fixture
def paths(whole: Path, tmp_path: Path) -> SweepPaths:
    """A copy of a finished sweep, to be changed. Its MLflow store is at the default place."""
    shutil.copytree(whole, tmp_path / "results")
    return SweepPaths(tmp_path / "results", "mine")


@pytest.fixture
def verify(paths: SweepPaths, capsys: pytest.CaptureFixture[str]) -> Verify:
    def run() -> tuple[int, str]:
        status = sweep.main([paths.name, "--verify", "--storage", str(paths.local_root)])
        return status, capsys.readouterr().out

    return run


def change(paths: SweepPaths, *statements: str) -> None:
    with closing(sqlite3.connect(paths.ledger)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def change_mlflow(paths: SweepPaths, *statements: str) -> None:
    with closing(sqlite3.connect(paths.local_root / "mlflow.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def signature(
    paths: SweepPaths, variant: str = "cnn2", number: int = 0, stage: Stage = "search"
) -> str:
    with closing(open_ledger(paths.ledger, read_only=True)) as ledger:
        found = [t for t in ledger.trials(stage) if (t.variant, t.number) == (variant, number)]
    return found[0].signature


def num_epochs(paths: SweepPaths, key: str) -> int:
    with closing(open_ledger(paths.ledger, read_only=True)) as ledger:
        return len(ledger.epochs(key))


def with_status(paths: SweepPaths, status: str) -> tuple[str, str]:
    """Return the name and the signature of the last trial with a status."""
    with closing(open_ledger(paths.ledger, read_only=True)) as ledger:
        trial = [t for t in ledger.trials("search") if t.status == status][-1]
    return f"{trial.variant}-{trial.number:03d}", trial.signature


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_intact_sweep_has_no_problems_and_nothing_is_written(
    paths: SweepPaths, verify: Verify, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = digest(paths.local_root)
    status, output = verify()
    assert status == 0, output
    assert "All requested trials have ended." in output
    assert "Not checked" not in output
    assert digest(paths.local_root) == before
    assert list(elsewhere.iterdir()) == []
    checked = [int(line.split("│")[3]) for line in output.splitlines() if line.startswith("│")]
    assert min(checked) >= 1
    assert 2 * TRIALS in checked


def test_an_unknown_sweep_is_wrong_usage(
    paths: SweepPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["other", "--verify", "--storage", str(paths.local_root)]) == 2
    assert "no sweep named 'other'" in capsys.readouterr().err


def test_a_sweep_name_may_contain_a_dot(paths: SweepPaths) -> None:
    paths.root.rename(paths.local_root / "mine.v2")
    # MLflow has its runs in an experiment with the old name.
    assert sweep.main(["mine.v2", "--verify", "--storage", str(paths.local_root)]) == 0


def test_a_repeated_epoch_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths)
    count = num_epochs(paths, key)
    change(
        paths,
        "CREATE TABLE loose AS SELECT * FROM epochs",
        "DROP TABLE epochs",
        "ALTER TABLE loose RENAME TO epochs",
        f"INSERT INTO epochs SELECT * FROM epochs WHERE signature = '{key}' AND epoch = 0",
    )
    status, output = verify()
    assert status == 1
    assert f"ledger: cnn2-000 ({key}): epochs are not 1 to {count}, each once" in output
    assert "repeated [1]" in output


def test_a_missing_epoch_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths)
    count = num_epochs(paths, key)
    change(paths, f"DELETE FROM epochs WHERE signature = '{key}' AND epoch = 0")
    status, output = verify()
    assert status == 1
    assert (
        f"ledger: cnn2-000 ({key}): epochs are not 1 to {count}, each once: missing [1]" in output
    )


def test_an_epoch_after_the_end_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths)
    change(
        paths,
        "UPDATE epochs SET seq = (SELECT max(changed_seq) + 5 FROM trials)"
        f" WHERE signature = '{key}' AND epoch = "
        f"(SELECT max(epoch) FROM epochs WHERE signature = '{key}')",
    )
    status, output = verify()
    assert status == 1
    assert f"({key}): epoch" in output
    assert "arrived after the trial's end" in output


def test_a_missing_trial_number_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths, "cnn3", 1)
    change(
        paths,
        *(f"DELETE FROM {name} WHERE signature = '{key}'" for name in ("epochs", "attempts")),
        f"DELETE FROM trials WHERE signature = '{key}'",
    )
    status, output = verify()
    assert status == 1
    assert (
        "ledger: cnn3: trial numbers are not 0 to 4, each once: missing [1], repeated []." in output
    )
    assert f"MLflow: {key}: there is a run of a trial that the ledger does not have" in output


def test_an_unrequested_trial_is_named(paths: SweepPaths, verify: Verify) -> None:
    change(paths, 'UPDATE sweep SET value = \'{"cnn2": 4, "cnn3": 5}\' WHERE key = "asked"')
    status, output = verify()
    assert status == 1
    assert "ledger: cnn2: there are 5 trials, but 4 were requested." in output


def test_epochs_of_an_unplanned_trial_are_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths)
    change(paths, f"UPDATE attempts SET signature = 'stranger' WHERE signature = '{key}'")
    status, output = verify()
    assert status == 1
    assert (
        "ledger: stranger: there are attempts or epochs of a trial that was not planned." in output
    )


def test_a_wrong_best_is_named(paths: SweepPaths, verify: Verify) -> None:
    name, key = with_status(paths, "complete")
    change(paths, f"UPDATE trials SET best_value = 0.999 WHERE signature = '{key}'")
    status, output = verify()
    assert status == 1
    assert f"ledger: {name} ({key}): its best epoch is recorded as " in output


def test_a_complete_trial_without_a_finite_value_has_no_best_epoch(
    paths: SweepPaths, verify: Verify
) -> None:
    _, key = with_status(paths, "complete")
    change(paths, f"UPDATE epochs SET val_top1 = NULL WHERE signature = '{key}'")
    assert f"({key}): its best epoch is recorded as " in verify()[1]
    change(
        paths,
        f"UPDATE trials SET best_epoch = NULL, best_value = NULL WHERE signature = '{key}'",
    )
    assert f"({key}): its best epoch is recorded as " not in verify()[1]


def test_a_complete_trial_without_epochs_is_named(paths: SweepPaths) -> None:
    name, key = with_status(paths, "complete")
    change(
        paths,
        f"DELETE FROM epochs WHERE signature = '{key}'",
        f"UPDATE trials SET config = json_set(config, '$.validation_fraction', 0.0)"
        f" WHERE signature = '{key}'",
    )
    with closing(open_ledger(paths.ledger, read_only=True)) as ledger:
        found = check_epochs(read_snapshot(paths, ledger, None)).problems
    assert any(f"{name} ({key}): it is complete with 0 of " in problem for problem in found)


def test_an_open_attempt_without_a_driver_is_named(paths: SweepPaths, verify: Verify) -> None:
    name, key = with_status(paths, "complete")
    change(
        paths,
        f"UPDATE attempts SET outcome = NULL WHERE signature = '{key}'",
        f"UPDATE trials SET status = 'running', ended_seq = NULL, best_epoch = NULL,"
        f" best_value = NULL WHERE signature = '{key}'",
    )
    status, output = verify()
    assert status == 1
    assert f"ledger: {name} ({key}): attempt 1 is open, but no driver is running." in output
    assert "The sweep's driver was killed. Resume it with --resume" in output
    with locks.driver_lock(paths):
        status, output = verify()
    # A running driver may have open attempts. MLflow still has more than the ledger here.
    assert "attempt 1 is open" not in output
    assert "The sweep is being run by process" in output


def test_a_gap_in_the_attempts_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths)
    change(paths, f"UPDATE attempts SET attempt = 2 WHERE signature = '{key}'")
    status, output = verify()
    assert status == 1
    assert f"ledger: cnn2-000 ({key}): its attempts are numbered [2], not 1 to 1." in output


def test_a_status_that_contradicts_the_attempts_is_named(paths: SweepPaths, verify: Verify) -> None:
    name, key = with_status(paths, "complete")
    change(paths, f"UPDATE attempts SET outcome = 'lost' WHERE signature = '{key}'")
    status, output = verify()
    assert status == 1
    assert f"ledger: {name} ({key}): it is complete, but its last attempt is lost." in output


def test_a_changed_parameter_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths, "cnn3", 4)
    change(
        paths,
        f"UPDATE trials SET params = json_set(params, '$.lr', 0.5) WHERE signature = '{key}'",
    )
    status, output = verify()
    assert status == 1
    assert f"ledger: cnn3-004 ({key}): lr is " in output
    assert ", but 0.5 was suggested." in output
    assert re.search(rf"decisions: cnn3-004 \({key}\): {{.*}} was suggested, but", output)


def test_a_changed_configuration_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths)
    change(
        paths,
        f"UPDATE trials SET config = json_set(config, '$.momentum', 0.5) WHERE signature = '{key}'",
    )
    status, output = verify()
    assert status == 1
    assert f"ledger: cnn2-000 ({key}): the signature of its configuration is " in output


def test_a_suggestion_made_from_other_results_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths, "cnn2", 4)
    change(paths, f"UPDATE trials SET seen_seq = 0 WHERE signature = '{key}'")
    status, output = verify()
    assert status == 1
    assert re.search(rf"decisions: cnn2-004 \({key}\): {{.*}} was suggested, but", output)


def test_another_optuna_version_is_printed_and_is_no_problem(
    paths: SweepPaths, verify: Verify
) -> None:
    change(paths, 'UPDATE sweep SET value = \'{"optuna": "4.0"}\' WHERE key = "versions"')
    status, output = verify()
    assert status == 0
    assert "Not checked: suggestions: made with Optuna 4.0" in output


@pytest.mark.parametrize(
    ("status", "value", "sentence"),
    [("complete", 0.0, "was not stopped"), ("stopped", 1.0, "was stopped")],
)
def test_a_wrong_early_stop_is_named(
    paths: SweepPaths, verify: Verify, status: str, value: float, sentence: str
) -> None:
    name, key = with_status(paths, status)
    with closing(open_ledger(paths.ledger, read_only=True)) as ledger:
        last = ledger.epochs(key)[-1].epoch
    epoch = 0 if status == "complete" else last
    change(
        paths,
        f"UPDATE epochs SET val_top1 = {value} WHERE signature = '{key}' AND epoch = {epoch}",
    )
    code, output = verify()
    assert code == 1
    assert f"decisions: {name} ({key}): it {sentence} after epoch {epoch + 1}, but" in output


def test_a_final_trial_of_another_configuration_than_the_best_is_named(
    paths: SweepPaths, verify: Verify
) -> None:
    key = signature(paths, stage="final")
    with closing(open_ledger(paths.ledger, read_only=True)) as ledger:
        origin = ledger.trial(key).origin
        others = [t.signature for t in ledger.trials("search") if t.signature != origin]
    change(paths, f"UPDATE trials SET origin = '{others[0]}' WHERE signature = '{key}'")
    status, output = verify()
    assert status == 1
    assert (
        f"decisions: cnn2-final-000 ({key}): it trains {others[0]} again, but the best trial then"
        in output
    )


def test_a_missing_evaluation_of_the_test_split_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths, stage="final")
    change(paths, f"DELETE FROM evaluations WHERE signature = '{key}'")
    status, output = verify()
    assert status == 1
    assert f"ledger: cnn2-final-000 ({key}): it was not evaluated on the test split." in output


def test_an_evaluation_of_a_search_trial_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths)
    change(paths, f"INSERT INTO evaluations VALUES ('{key}', 1, 0.0, '{{\"epoch\": 0}}')")
    status, output = verify()
    assert status == 1
    assert f"ledger: cnn2-000 ({key}): it was evaluated on the test split, but should not" in output
    assert "have been." in output


def test_an_evaluation_of_another_epoch_than_the_best_is_named(
    paths: SweepPaths, verify: Verify
) -> None:
    key = signature(paths, stage="final")
    change(paths, f"UPDATE trials SET best_epoch = 3 WHERE signature = '{key}'")
    status, output = verify()
    assert status == 1
    assert "epoch 9 was evaluated on the test split, but its best epoch is 4 with" in output


def test_a_flipped_byte_of_a_checkpoint_is_named(paths: SweepPaths, verify: Verify) -> None:
    with closing(open_ledger(paths.ledger, read_only=True)) as ledger:
        ended = [t for t in ledger.trials() if t.variant == "cnn3" and t.best_value is not None]
        best = max(ended, key=lambda trial: (trial.best_value, -trial.number))
        row = ledger.epochs(best.signature)[best.best_epoch or 0]
    file = paths.root / str(row.checkpoint) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    status, output = verify()
    assert status == 1
    assert f"checkpoints: cnn3-{best.number:03d} ({best.signature}): {file} is damaged" in output


def test_an_epoch_trained_twice_needs_one_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = SweepPaths(tmp_path, "half")
    make_sweep(paths, epochs_of_last=2)
    with closing(open_ledger(paths.ledger)) as ledger:
        key = ledger.trials()[0].signature
        newest = str(ledger.epochs(key)[-1].checkpoint)
        older = ledger.epochs(key)[0].checkpoint
        again = ledger.start_attempt(key, resumed_from=older, micro_batch_size=0)
        ledger.end_attempt(key, again, outcome="lost", trial_status="running")
        tracker = Tracker(ledger, paths, paths.default_tracking_uri)
        tracker.sync()
        tracker.finish("interrupted", {})
    (paths.root / newest / checkpoint.MANIFEST).write_text("{}")
    command = ["half", "--verify", "--storage", str(tmp_path)]
    assert sweep.main(command) == 1
    assert f"({key}): {paths.root / newest}" in capsys.readouterr().out
    save(paths.root / newest.replace("attempt_1", "attempt_2"))
    assert sweep.main(command) == 0, capsys.readouterr().out


def test_trials_of_a_replaced_plan_are_checked_against_that_plan(
    paths: SweepPaths, verify: Verify
) -> None:
    """With --force a sweep resumes with another plan; earlier trials keep theirs."""
    with closing(open_ledger(paths.ledger)) as ledger:
        old = ledger.facts()["plan"]
        ledger.put("former_plans", [{"until_seq": ledger.seq, "plan": old}])
        space = {**old["space"], "first_rung_epochs": 2, "params": {"cnn2": {}, "cnn3": {}}}
        ledger.put("plan", {**old, "seed": 99, "space": space})
    status, output = verify()
    assert status == 0, output


def test_runs_in_a_renamed_experiment_are_checked_and_copies_are_mentioned(
    paths: SweepPaths, verify: Verify
) -> None:
    import mlflow

    client = mlflow.MlflowClient(paths.default_tracking_uri)
    experiment = client.get_experiment_by_name("mine").experiment_id
    client.rename_experiment(experiment, "renamed")
    assert verify()[0] == 0
    other = client.create_experiment("mine")
    for run in client.search_runs([experiment]):
        client.create_run(other, tags=dict(run.data.tags))
    status, output = verify()
    assert status == 0, output
    text = "copies of this sweep's runs, in other experiments than its own."
    assert text in output


def test_a_missing_run_is_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths)
    change_mlflow(
        paths,
        "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid ="
        f" (SELECT run_uuid FROM tags WHERE key = 'sweep.signature' AND value = '{key}')",
    )
    status, output = verify()
    assert status == 1
    assert f"MLflow: cnn2-000 ({key}): it has 0 runs, not 1." in output


def test_a_repeated_and_a_changed_metric_are_named(paths: SweepPaths, verify: Verify) -> None:
    key = signature(paths)
    run = f"(SELECT run_uuid FROM tags WHERE key = 'sweep.signature' AND value = '{key}')"
    change_mlflow(
        paths,
        "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)"
        " SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics"
        f" WHERE run_uuid = {run} AND key = 'val_loss' AND step = 1",
        f"UPDATE metrics SET value = 0.123 WHERE run_uuid = {run} AND key = 'lr' AND step = 1",
    )
    status, output = verify()
    assert status == 1
    start = f"MLflow: cnn2-000 ({key}): "
    assert f"{start}the steps of val_loss differ from the ledger: repeated [1]" in output
    differing = "repeated [], missing [], different [1]"
    assert f"{start}the steps of lr differ from the ledger: {differing}" in output


def test_a_missing_and_a_changed_parameter_of_a_run_are_named(
    paths: SweepPaths, verify: Verify
) -> None:
    """Hyperparameters that were not searched may be there, as earlier versions wrote them."""
    key = signature(paths)
    with closing(open_ledger(paths.ledger, read_only=True)) as ledger:
        config = ledger.trial(key).config
    run = f"(SELECT run_uuid FROM tags WHERE key = 'sweep.signature' AND value = '{key}')"
    insert = "INSERT INTO params (key, value, run_uuid) VALUES"
    change_mlflow(paths, f"{insert} ('epochs', '{config['epochs']}', {run})")
    status, output = verify()
    assert status == 0, output
    change_mlflow(
        paths,
        f"UPDATE params SET value = '0.9' WHERE key = 'lr' AND run_uuid = {run}",
        f"DELETE FROM params WHERE key = 'optimizer' AND run_uuid = {run}",
        f"{insert} ('momentum', '7', {run})",
    )
    status, output = verify()
    assert status == 1
    start = f"MLflow: cnn2-000 ({key}): the parameter"
    expected = {"lr": "'0.9'", "optimizer": "None", "momentum": "'7'"}
    for name, got in expected.items():
        assert f"{start} {name} is {got}, but {str(config[name])!r} in the ledger." in output
    assert "the parameter epochs" not in output


def test_a_run_left_with_the_status_running_is_named(paths: SweepPaths, verify: Verify) -> None:
    change_mlflow(paths, "UPDATE runs SET status = 'RUNNING'")
    status, output = verify()
    assert status == 1
    assert "MLflow: the parent run has the status RUNNING, but no driver is running." in output
    assert f"MLflow: cnn2-000 ({signature(paths)}): the status of its run is RUNNING, not" in output


def test_a_missing_store_is_named_and_not_created(paths: SweepPaths, verify: Verify) -> None:
    (paths.local_root / "mlflow.db").unlink()
    status, output = verify()
    assert status == 1
    assert "MLflow: there is no MLflow store at sqlite:///" in output
    assert not (paths.local_root / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "there is no MLflow store at sqlite:///"), (b"no database" * 500, "cannot be read: ")],
)
def test_an_unreadable_store_is_named_and_not_changed(
    paths: SweepPaths, verify: Verify, content: bytes, sentence: str
) -> None:
    (paths.local_root / "mlflow.db").write_bytes(content)
    status, output = verify()
    assert status == 1
    assert sentence in output
    assert (paths.local_root / "mlflow.db").read_bytes() == content


def test_an_unreachable_server_is_named(
    paths: SweepPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [paths.name, "--verify", "--storage", str(paths.local_root)]
    assert sweep.main([*command, "--tracking-uri", "http://127.0.0.1:9"]) == 1
    assert "MLflow: http://127.0.0.1:9 cannot be read" in capsys.readouterr().out


def test_a_damaged_ledger_is_named_without_a_traceback(paths: SweepPaths, verify: Verify) -> None:
    content = bytearray(paths.ledger.read_bytes())
    for page in range(2, len(content) // 4096):  # all but the first, which has the header
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    paths.ledger.write_bytes(content)
    status, output = verify()
    assert status == 1
    assert f"ledger: {paths.ledger}" in output
    assert "Traceback" not in output


def test_an_unfinished_sweep_is_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = SweepPaths(tmp_path, "half")
    make_sweep(paths, epochs_of_last=2)
    status = sweep.main(["half", "--verify", "--storage", str(tmp_path)])
    output = capsys.readouterr().out
    with closing(open_ledger(paths.ledger, read_only=True)) as ledger:
        ended = sum(trial.ended_seq is not None for trial in ledger.trials())
        newest = ledger.epochs(ledger.trials()[0].signature)[-1]
    assert status == 0, output
    assert f"{2 * TRIALS - ended} trials have not ended yet." in output
    # The checkpoint to resume from is checked.
    (paths.root / str(newest.checkpoint) / checkpoint.MANIFEST).write_text("{}")
    assert sweep.main(["half", "--verify", "--storage", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert (
        f"checkpoints: cnn2-000 ({newest.signature}): {paths.root / str(newest.checkpoint)}"
        in output
    )


def test_final_trials_that_are_not_planned_yet_have_not_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = SweepPaths(tmp_path, "half")
    make_sweep(paths, epochs_of_last=2)
    with closing(open_ledger(paths.ledger)) as ledger:
        ended = sum(trial.ended_seq is not None for trial in ledger.trials())
        ledger.put("space_own", {"final_seeds": 3})
        ledger.put("options", {})
    sweep.main(["half", "--verify", "--storage", str(tmp_path)])
    expected = 2 * TRIALS + 2 * 3 - ended
    assert f"{expected} trials have not ended yet." in capsys.readouterr().out
    with closing(open_ledger(paths.ledger)) as ledger:
        ledger.put("options", {"final_seeds": 1})
    sweep.main(["half", "--verify", "--storage", str(tmp_path)])
    assert f"{expected - 4} trials have not ended yet." in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(6))
def test_killed_and_extended_sweeps_with_failures_have_no_problems(
    tmp_path: Path, seed: int
) -> None:
    """Failures of every kind, drivers killed at any change, other variants, more trials later."""
    draws = random.Random(seed)
    paths = SweepPaths(tmp_path, "messy")
    of = plan(space(trials=7), seed=seed)
    ledger = new_ledger(paths.ledger, of, versions={"optuna": optuna.__version__})
    for _ in range(8):
        ledger.close()
        ledger = without_fsync(open_ledger(paths.ledger))
        kill_at(ledger, draws.randint(1, 40), before=draws.random() < 0.5)
        trials = draws.choice([2, 4, 7])
        variants = draws.choice([("cnn2",), ("cnn3",), ("cnn2", "cnn3")])
        part = dataclasses.replace(of, trials=trials, variants=variants)
        with contextlib.suppress(Killed):
            run_trials(
                TrialScheduler(ledger, part),
                limit=draws.choice([1, 3]),
                end_at=mixed_ends,
                draws=draws,
            )
        assert problems_in(paths, "a killed driver") == []
    ledger.close()
    ledger = without_fsync(open_ledger(paths.ledger))
    run_trials(TrialScheduler(ledger, of), limit=3, end_at=mixed_ends, draws=draws)
    ledger.close()
    assert problems_in(paths, None) == []


def problems_in(paths: SweepPaths, driver: str | None) -> list[str]:
    with local_copy(paths, driver) as copy:
        snapshot = read_snapshot(paths, copy, driver)
        checks = (check_trials, check_attempts, check_epochs)
        results = [check(snapshot) for check in (*checks, check_suggestions, check_early_stopping)]
        assert driver is not None or all(result.checked for result in results)
        return [str(problem) for result in results for problem in result.problems]
