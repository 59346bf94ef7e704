"""Processes die, freeze and are told to stop, at any instant; the sweep goes on."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import mlflow
import pytest

from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import (
    CONTROLLER,
    MARK,
    RANK,
    TRIAL,
    command,
    count_epochs,
    environment,
    ledger_of,
    members,
    started,
    sweep,
    table,
    titled,
    wait_for,
)

pytestmark = pytest.mark.faults

# One trial at a time, so that a broken sweep must end exactly as an unbroken one.
ONE = ("--variants", "cnn3", "--max-concurrent", 1)


def paths_of(cwd: Path, name: str = "digits") -> SweepPaths:
    return SweepPaths(cwd / "results", name)


def attempts_of_first(paths: SweepPaths) -> list[tuple[int, Any, Any]]:
    ledger = ledger_of(paths)
    attempts = ledger.attempts(ledger.trials()[0].signature)
    return [(a.attempt, a.outcome, a.failure_class) for a in attempts]


def runs_of(paths: SweepPaths) -> list[Any]:
    client = mlflow.MlflowClient(paths.default_tracking_uri)
    return client.search_runs([client.get_experiment_by_name(paths.name).experiment_id])


def wait_for_the_end(mark: str, limit_s: float = 40) -> None:
    """Wait until no process of a sweep is left; of those that are, say which."""
    try:
        wait_for(lambda: not members(mark), "the end of every process", limit_s)
    except AssertionError as error:
        raise AssertionError(f"{error}: {members(mark)}") from error


@pytest.mark.parametrize(
    ("stop", "times"),
    [
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.quick),
        (signal.SIGINT, 1),
        (signal.SIGINT, 2),
        (signal.SIGINT, 3),
    ],
)
def test_any_number_of_stop_signals_loses_nothing_and_leaves_no_process(
    tmp_path: Path,
    digits_data_dir: Path,
    unbroken: list[Any],
    stop: signal.Signals,
    times: int,
) -> None:
    """Cases 5 and 6: to the whole process group, as a terminal sends Ctrl+C."""
    options = ("--trials", 2, "--epochs", 4, *ONE, "--data-dir", digits_data_dir)
    paths = paths_of(tmp_path)
    with started(tmp_path, "digits", *options) as process:
        wait_for(lambda: count_epochs(paths) >= 2, "two epochs")
        begun_s = time.monotonic()
        for _ in range(times):
            os.killpg(process.pid, stop)
            time.sleep(0.2)
        output, _ = process.communicate(timeout=60)
        assert time.monotonic() - begun_s < 30
        wait_for_the_end(process.mark)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    if times < 3:
        assert "Nothing is lost" in output
    again = sweep(tmp_path, "digits", *options, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert table(paths) == unbroken
    assert {run.info.status for run in runs_of(paths)} == {"FINISHED"}
    assert len(runs_of(paths)) == 3


def test_a_terminal_that_is_closed_ends_the_sweep_in_order(
    tmp_path: Path, digits_data_dir: Path, unbroken: list[Any]
) -> None:
    """A window closed, a connection lost: SIGHUP, and nothing can be written there any more."""
    options = ("--trials", 2, "--epochs", 4, *ONE, "--data-dir", digits_data_dir)
    paths, mark = paths_of(tmp_path), uuid.uuid4().hex
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *command("digits", *options)],
        cwd=tmp_path,
        env={**environment(), "TERM": "xterm", MARK: mark},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while count_epochs(paths) < 2:
            assert process.poll() is None
            if select.select([ours], [], [], 0.05)[0]:
                shown += os.read(ours, 65536)
        os.close(ours)
        assert process.wait(timeout=60) == 130
        wait_for_the_end(mark)
    finally:
        for pid in members(mark):
            os.kill(pid, signal.SIGKILL)
    assert b"cnn3" in shown  # the live table was on it
    assert {run.info.status for run in runs_of(paths)} <= {"KILLED", "FINISHED"}
    again = sweep(tmp_path, "digits", *options, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert table(paths) == unbroken


def test_a_sweep_that_was_suspended_continues_and_no_trial_counts_as_hung(
    tmp_path: Path, digits_data_dir: Path, unbroken: list[Any]
) -> None:
    """Case 8: every process of the sweep is stopped for longer than the hang timeout."""
    options = ("--trials", 2, "--epochs", 4, *ONE, "--data-dir", digits_data_dir)
    paths = paths_of(tmp_path)
    with started(tmp_path, "digits", *options, "--hang-timeout", 8) as process:
        wait_for(lambda: count_epochs(paths) >= 1, "an epoch")
        asleep = list(members(process.mark))
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(15)
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert table(paths) == unbroken
    assert {a.failure_class for a in ledger_of(paths).attempts()} == {None}


@pytest.mark.quick
def test_a_killed_trial_resumes_from_its_last_checkpoint_and_the_attempt_does_not_count(
    tmp_path: Path, digits_data_dir: Path, unbroken: list[Any]
) -> None:
    """Case 9."""
    options = ("--trials", 2, "--epochs", 4, *ONE, "--data-dir", digits_data_dir)
    paths = paths_of(tmp_path)
    with started(tmp_path, "digits", *options) as process:
        wait_for(lambda: count_epochs(paths) >= 2, "two epochs")
        (pid,) = titled(process.mark, *TRIAL)
        os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert attempts_of_first(paths) == [(1, "failed", "killed"), (2, "complete", None)]
    assert table(paths) == unbroken
    assert (
        "epoch_"
        in ledger_of(paths).attempts(ledger_of(paths).trials()[0].signature)[1].resumed_from
    )


@pytest.mark.quick
def test_a_trial_that_hangs_is_ended_and_resumes(
    tmp_path: Path, digits_data_dir: Path, unbroken: list[Any]
) -> None:
    """The watchdog: a trial process that is stopped gives no sign of life and cannot be asked."""
    options = ("--trials", 2, "--epochs", 4, *ONE, "--data-dir", digits_data_dir)
    paths = paths_of(tmp_path)
    with started(tmp_path, "digits", *options, "--hang-timeout", 6) as process:
        wait_for(lambda: count_epochs(paths) >= 2, "two epochs")
        (pid,) = titled(process.mark, *TRIAL)
        os.kill(pid, signal.SIGSTOP)
        output, _ = process.communicate(timeout=120)
        wait_for_the_end(process.mark)
    assert process.returncode == 0, output
    assert attempts_of_first(paths) == [(1, "failed", "hung"), (2, "complete", None)]
    assert table(paths) == unbroken


def test_killed_ranks_and_controllers_of_a_worker_group_cost_an_attempt_and_no_place(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    """Cases 10 and 11: one of two ranks, then Ray Train's controller, then the trial's own process.

    With as many CPUs as one group takes, a place that was not freed would stop the sweep.
    """
    (tmp_path / "group.py").write_text(
        "from optuna.distributions import FloatDistribution\n"
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='group', dataset='digits', variants=('cnn3',), trials=1,\n"
        "    image_size=32, first_rung_epochs=0,\n"
        "    base={'epochs': 12, 'schedule': 'constant', 'batch_size': 32, 'optimizer': 'adamw'},\n"
        "    params={'lr': FloatDistribution(1e-5, 1e-2, log=True)})\n"
    )
    paths = paths_of(tmp_path, "group")
    options = ("group.py", "--workers-per-trial", 2, "--data-dir", digits_data_dir)
    with started(tmp_path, *options) as process:
        for number, victim in enumerate((RANK, CONTROLLER, *TRIAL[:1]), start=1):
            wait_for(lambda n=number: count_epochs(paths) >= 2 * n, f"epoch {2 * number}")
            os.kill(titled(process.mark, victim)[0], signal.SIGKILL)
            wait_for(
                lambda n=number: len(ledger_of(paths).attempts()) > n, f"attempt {number + 1}", 60
            )
        output, _ = process.communicate(timeout=200)
        wait_for_the_end(process.mark)
    assert process.returncode == 0, output
    assert [a.outcome for a in ledger_of(paths).attempts()] == [*["failed"] * 3, "complete"]
    assert {a.failure_class for a in ledger_of(paths).attempts()[:3]} == {"killed"}
    assert [
        row.epoch for row in ledger_of(paths).epochs(ledger_of(paths).trials()[0].signature)
    ] == (list(range(12)))


def test_a_second_driver_is_refused_and_the_lock_of_a_dead_one_is_free(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    """Case 17."""
    options = ("--trials", 1, "--epochs", 4, *ONE, "--data-dir", digits_data_dir)
    paths = paths_of(tmp_path)
    with started(tmp_path, "digits", *options) as process:
        wait_for(lambda: count_epochs(paths) >= 1, "an epoch")
        second = sweep(tmp_path, "digits", *options, "--resume")
        assert second.returncode == 2
        assert f"process {process.pid} on {os.uname().nodename}" in second.stderr
        process.kill()
        process.wait()
        third = sweep(tmp_path, "digits", *options, "--resume")
        assert third.returncode == 0, third.stdout + third.stderr
    assert len(ledger_of(paths).trials()) == 1


def test_workers_of_a_killed_driver_cannot_write_and_end(
    tmp_path: Path, digits_data_dir: Path, unbroken: list[Any]
) -> None:
    """Case 15 on one host: what is left of attempt 1 lies beside attempt 2, never in it."""
    options = ("--trials", 2, "--epochs", 4, *ONE, "--data-dir", digits_data_dir)
    paths = paths_of(tmp_path)
    with started(tmp_path, "digits", *options) as process:
        wait_for(lambda: count_epochs(paths) >= 1, "an epoch")
        process.kill()
        process.wait()
        again = sweep(tmp_path, "digits", *options, "--resume")
        assert again.returncode == 0, again.stdout + again.stderr
        assert not titled(process.mark, *TRIAL)
        # Ray's own processes notice the driver's death by their own timers: 74 s were measured.
        wait_for_the_end(process.mark, 90)
    assert table(paths) == unbroken
    assert attempts_of_first(paths)[0][1] == "lost"
