"""One sweep command from start to end, with trials that are simulated and no Ray."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.execution import cluster, ray_internals, tune_adapter
from orchestrator.ledger.ledger import Ledger, open_ledger
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.storage.paths import SweepPaths
from orchestrator.sweep import driver, measure, summary
from orchestrator.sweep.__main__ import main
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.simulated_sweeps import (
    failed,
    no_early_end,
    run_epoch,
    run_trials,
    start_next,
)
from trainables.training.probe import TrainingTime

SMALL = ("digits", "--trials", "2", "--epochs", "2", "--variants", "cnn3", "--final-seeds", "0")


@pytest.fixture
def arguments(
    tmp_path: Path, digits_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    """Arguments of a small sweep, in a process that starts no Ray and writes to no MLflow."""
    monkeypatch.setattr(cluster, "connect", lambda address, **_: local_cluster())
    monkeypatch.setattr(Tracker, "sync", lambda self: 0)
    monkeypatch.setattr(Tracker, "finish", lambda self, outcome, metrics: None)
    simulate(monkeypatch)
    return *SMALL, "--data-dir", str(digits_data_dir), "--storage", str(tmp_path / "results")


def local_cluster() -> cluster.Cluster:
    return cluster.Cluster(
        address="local", is_local=True, nodes=1, cpus=2.0, gpus=0.0, machines=((2.0, 0.0),)
    )


def simulate(monkeypatch: pytest.MonkeyPatch, run: Any = run_trials) -> None:
    """Make the trials' thread call `run` with the scheduler instead of Ray Tune."""
    monkeypatch.setattr(tune_adapter, "run", lambda scheduler, **options: run(scheduler))


def statuses(tmp_path: Path) -> list[str]:
    ledger = open_ledger(SweepPaths(tmp_path / "results", "digits").ledger, read_only=True)
    found = [trial.status for trial in ledger.trials()]
    ledger.close()
    return found


def disturb(how: str, storage: Path) -> None:
    ledger = storage / "digits" / "ledger.sqlite"
    if how == "the storage is moved":
        storage.rename(storage.with_name("moved"))
    elif how == "the storage is deleted":
        shutil.rmtree(storage)
    elif how == "the ledger is deleted":
        ledger.unlink()
    elif how == "the ledger is renamed":
        ledger.rename(ledger.with_name("mine"))
    else:
        shutil.copy(ledger, storage / "other")
        (storage / "other").replace(ledger)


@pytest.mark.parametrize(
    ("how", "place"),
    [
        ("the storage is moved", "moved/digits/ledger.sqlite"),
        ("the storage is deleted", "results/digits/ledger.sqlite"),
        ("the ledger is deleted", "results/digits/ledger.sqlite"),
        ("the ledger is renamed", "results/digits/mine"),
        ("the ledger is replaced", "results/digits/ledger.rescued.sqlite"),
    ],
)
def test_a_sweep_whose_ledger_disappears_stops_and_names_where_it_is(
    arguments: tuple[str, ...],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    place: str,
) -> None:
    def run(scheduler: TrialScheduler) -> None:
        running = start_next(scheduler)
        assert running is not None
        while run_epoch(scheduler, running, no_early_end):
            pass
        disturb(how, tmp_path / "results")
        time.sleep(3)

    simulate(monkeypatch, run)
    assert main(arguments) == 1
    printed = capfd.readouterr().out
    assert "its ledger was moved, replaced or deleted while it ran" in printed
    assert str(tmp_path / place) in printed
    assert "Search results" not in printed
    with contextlib.closing(open_ledger(tmp_path / place)) as ledger:
        assert [trial.status for trial in ledger.trials()] == ["complete"]
    command = printed.rpartition("Continue with: ")[2].partition(" -m orchestrator.sweep ")[2]
    if place.endswith("/ledger.sqlite"):
        simulate(monkeypatch)
        assert main(shlex.split(command)) == 0
        with contextlib.closing(open_ledger(tmp_path / place)) as ledger:
            assert [trial.status for trial in ledger.trials()] == ["complete", "complete"]


@pytest.mark.parametrize("where", ["/dev/full", "a pipe without a reader", "closed"])
def test_a_sweep_whose_output_cannot_be_written_runs_to_its_end(
    arguments: tuple[str, ...], tmp_path: Path, where: str
) -> None:
    kept = os.dup(1)
    try:
        if where == "closed":
            os.close(1)
        else:
            reader, writer = os.pipe()
            os.close(reader)
            target = os.open(where, os.O_WRONLY) if where.startswith("/") else writer
            os.dup2(target, 1)
        assert main(arguments) == 0
    finally:
        os.dup2(kept, 1)
    assert statuses(tmp_path) == ["complete", "complete"]
    assert (tmp_path / "results" / "digits" / "report" / "report.html").is_file()


def test_a_sweep_runs_to_its_end_and_its_resume_has_nothing_to_do(
    arguments: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    printed = capfd.readouterr().out
    assert "Using a local Ray: 2 CPUs, 0 GPUs." in printed
    assert "Search results (validation split)" in printed
    assert f"Report: {tmp_path}/results/digits/report/report.html" in printed
    assert "The sweep's model could not be written" in printed  # there are no checkpoints
    assert statuses(tmp_path) == ["complete", "complete"]
    assert main((*arguments, "--resume")) == 0
    assert "Every trial of this sweep has ended already." in capfd.readouterr().out


def test_an_error_of_the_trials_thread_ends_the_sweep_with_status_1(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def break_down(scheduler: TrialScheduler) -> None:
        scheduler.next_start()
        raise RuntimeError("Ray has gone")

    simulate(monkeypatch, break_down)
    assert main(arguments) == 1
    printed = capfd.readouterr()
    assert "The sweep stopped. RuntimeError('Ray has gone')." in printed.out
    command = printed.out.rpartition("To resume, run: ")[2].partition(" -m orchestrator.sweep ")[2]
    assert shlex.split(command.splitlines()[0]) == [*arguments, "--resume"]
    assert "RuntimeError: Ray has gone" in printed.err  # which is the log, outside of tests
    assert statuses(tmp_path) == ["running"]


def test_trials_that_end_early_without_an_error_are_named_with_the_command_to_resume(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def end_early(scheduler: TrialScheduler) -> None:
        running = start_next(scheduler)
        assert running is not None
        while run_epoch(scheduler, running, no_early_end):
            pass

    simulate(monkeypatch, end_early)
    assert main(arguments) == 1
    printed = capfd.readouterr().out
    assert "The sweep stopped. Ray Tune ended without a message although trials are le" in printed
    assert re.search(r"^To resume, run: .*-m orchestrator\.sweep .* --resume$", printed, re.M)


@pytest.mark.parametrize(("owner", "name"), [(summary, "print_end"), (Ledger, "close")])
def test_a_signal_after_the_trials_have_ended_changes_nothing(
    owner: Any,
    name: str,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    real = getattr(owner, name)

    def interrupted(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(*given)

    monkeypatch.setattr(owner, name, interrupted)
    assert main(arguments) == 0
    printed = capfd.readouterr()
    assert "Ledger: " in printed.out
    assert printed.err == ""


def test_failed_trials_are_listed_and_the_status_is_1(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bug = failed("bug", "ValueError: no")
    simulate(monkeypatch, lambda scheduler: run_trials(scheduler, end_at=lambda start, epoch: bug))
    assert main((*arguments, "--trials", "3")) == 1
    printed = capfd.readouterr().out
    assert "These trials failed or diverged:" in printed
    assert "bug: ValueError: no" in printed
    retry = re.search(r"To retry the failed ones, run: .* -m orchestrator\.sweep (.*)", printed)
    assert retry
    assert shlex.split(retry[1]) == [*arguments, "--trials", "3", "--resume"]
    assert "cnn3 was stopped: several of its trials failed with the same error." in printed


def test_diverged_trials_are_listed_without_a_command_since_they_are_not_retried(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    end = {"outcome": "diverged"}
    simulate(monkeypatch, lambda scheduler: run_trials(scheduler, end_at=lambda start, epoch: end))
    assert main(arguments) == 0
    printed = capfd.readouterr().out
    assert "diverged after 1 attempt  the loss was not finite" in printed
    assert "--resume" not in printed


def test_the_command_in_the_report_retries_failed_trials_from_any_folder(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("from search_spaces.digits import SPACE\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    data_dir = arguments[arguments.index("--data-dir") + 1]
    where = ("--data-dir", os.path.relpath(data_dir), "--storage", "results")
    bug = failed("bug", "ValueError: no")
    simulate(monkeypatch, lambda scheduler: run_trials(scheduler, end_at=lambda start, epoch: bug))
    assert main(("mine.py", *SMALL[1:], *where)) == 1
    report = (tmp_path / "results/mine/report/report.md").read_text()
    (line,) = re.findall(r"python -m orchestrator\.sweep (.*)", report)
    simulate(monkeypatch)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(shlex.split(line)) == 0
    assert list(Path().iterdir()) == []


def test_an_interrupted_sweep_has_status_130_and_keeps_its_trials(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen: list[driver.SweepContext] = []
    run = driver._run
    monkeypatch.setattr(driver, "_run", lambda context: seen.append(context) or run(context))

    def interrupt(scheduler: TrialScheduler) -> None:
        scheduler.next_start()
        seen[0].interruption.wanted.set()

    simulate(monkeypatch, interrupt)
    assert main(arguments) == 130
    printed = capfd.readouterr().out
    assert "Nothing is lost" in printed
    assert "Search results" not in printed  # no trial has a result
    assert statuses(tmp_path) == ["running"]
    lines = [line for line in printed.splitlines() if line.startswith("To resume, run: ")]
    assert lines == [printed.splitlines()[-1]]
    assert seen[0].interruption.last_line == f"\n{lines[0]}\n"  # of a third signal
    simulate(monkeypatch)
    assert main(shlex.split(lines[0].partition(" -m orchestrator.sweep ")[2])) == 0
    assert statuses(tmp_path) == ["complete", "complete"]


def test_a_mistake_that_is_found_after_the_ledger_was_created_leaves_nothing_behind(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(address: str | None, **_: object) -> None:
        raise UsageError("No Ray cluster can be joined.")

    monkeypatch.setattr(cluster, "connect", refuse)
    assert main(arguments) == 2
    assert capfd.readouterr().err == "No Ray cluster can be joined.\n"
    assert not (tmp_path / "results").exists()


def test_a_ray_that_does_not_start_leaves_nothing_and_names_the_command_to_run_again(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(address: str | None, **_: object) -> None:
        raise cluster.RayStartError("Ray did not start on this machine: no memory.")

    monkeypatch.setattr(cluster, "connect", fail)
    assert main(arguments) == 1
    said, _, again = capfd.readouterr().err.partition("\nThen run: ")
    assert said == "Ray did not start on this machine: no memory."
    assert shlex.split(again)[1:] == ["-m", "orchestrator.sweep", *arguments]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("place", ["opening.open_sweep", "backup.open_backup", "_run"])
def test_an_unforeseen_error_before_the_first_attempt_leaves_nothing(
    place: str, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(f"orchestrator.sweep.driver.{place}", fail)
    with pytest.raises(ZeroDivisionError):
        main(arguments)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (None, 130, "Interrupted before the sweep started."),
        (OrchestratorError("The disk is full."), 1, "The disk is full."),
    ],
)
def test_what_ends_a_sweep_between_the_start_of_ray_and_the_first_attempt_leaves_nothing(
    error: Exception | None,
    status: int,
    text: str,
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def run(scheduler: TrialScheduler) -> None:
        if error is not None:
            raise error
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)

    simulate(monkeypatch, run)
    assert main(arguments) == status
    assert capfd.readouterr().err == f"{text}\n"
    assert not (tmp_path / "results").exists()


def test_an_unforeseen_error_later_keeps_the_sweep(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(summary, "print_end", fail)
    with pytest.raises(ZeroDivisionError):
        main(arguments)
    assert statuses(tmp_path) == ["complete", "complete"]


def test_a_ray_that_ends_during_the_sweep_ends_it_in_order(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Ray's library would end this process without a message a minute later."""
    left: list[bool] = []
    monkeypatch.setattr(ray_internals, "ended_process", lambda: "gcs_server")
    monkeypatch.setattr(ray_internals, "forget", lambda: left.append(True))

    def hang(scheduler: TrialScheduler) -> None:
        scheduler.next_start()
        threading.Event().wait(20)

    simulate(monkeypatch, hang)
    assert main(arguments) == 1
    printed = capfd.readouterr().out
    assert "Ray's process gcs_server on this machine has ended unexpectedly." in printed
    assert re.search(r"^To resume, run: .*-m orchestrator\.sweep .* --resume$", printed, re.M)
    assert left == [True]
    assert statuses(tmp_path) == ["running"]


@pytest.mark.parametrize(("is_local", "epochs"), [(True, []), (False, [2, 2])])
def test_a_measured_epoch_counts_for_the_budget_only_where_trials_run_on_this_machine(
    arguments: tuple[str, ...],
    is_local: bool,
    epochs: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two epochs of an hour do not fit into an hour."""
    hour = TrainingTime(step_s=1.0, epoch_s=3600.0, peak_gib=1.0)
    monkeypatch.setattr(measure, "_measure_variant", lambda plan, variant, dataset: hour)
    joined = {field: getattr(local_cluster(), field) for field in cluster.Cluster.__slots__}
    joined["is_local"] = is_local
    monkeypatch.setattr(cluster, "connect", lambda address, **_: cluster.Cluster(**joined))
    assert main((*arguments, "--measure", "--budget", "1h")) == 0
    printed = capfd.readouterr().out
    assert "In total 4.00 device-hours" in printed
    assert ("These trials did not fit the budget: 2 of cnn3." in printed) is is_local
    assert statuses(tmp_path) == ["complete"] * len(epochs)
