"""How reports of workers end trials; needs no Ray."""

import functools
from typing import Any
from unittest.mock import Mock

import pytest

from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError
from orchestrator.execution import ray_internals
from orchestrator.execution.attempts import AttemptRunner
from orchestrator.execution.cluster import Capacity
from orchestrator.execution.job import Job
from orchestrator.execution.watchdog import Watchdog


class FakeScheduler:
    """Records the outcomes of attempts."""

    def __init__(self, *, stops: bool = False) -> None:
        self.outcomes: list[str] = []
        self.failure_classes: list[str] = []
        self.stops = stops

    def on_epoch(self, *_: Any) -> bool:
        return self.stops

    def on_end(self, signature: str, attempt: int, *, outcome: str, **values: Any) -> None:
        self.outcomes.append(outcome)
        if "failure_class" in values:
            self.failure_classes.append(values["failure_class"])


def runner_of(scheduler: FakeScheduler, *, by_step: bool = True) -> AttemptRunner:
    new_job = functools.partial(Job, dataset_dir="data", sweep_dir="sweep", keep_all=False)
    capacity = Capacity(Mock(), max_concurrent=None, gpus_per_trial=None, clock=Clock())
    watchdog = Watchdog(600, by_step=by_step, clock=Clock())
    return AttemptRunner(
        scheduler,  # type: ignore[arg-type]
        new_job=new_job,
        capacity=capacity,
        watchdog=watchdog,
    )


@pytest.mark.parametrize(
    ("by_step", "outcome", "is_stopped"),
    [
        (True, "complete", True),
        (True, "diverged", False),  # its log is stored afterwards
        (True, "failed", False),  # it may raise to have its process replaced
        (False, "complete", False),  # a worker group ends by itself
    ],
)
def test_the_last_report_of_a_complete_trial_frees_its_process(
    by_step: bool, outcome: str, is_stopped: bool
) -> None:
    scheduler = FakeScheduler()
    runner = runner_of(scheduler, by_step=by_step)
    end = {"kind": "end", "signature": "s", "attempt": 1, "outcome": outcome}
    assert runner.on_report("trial", end) is is_stopped
    assert scheduler.outcomes == [outcome]


@pytest.mark.parametrize(
    ("outcome", "stops", "is_stopped", "outcomes"),
    [
        (None, False, False, []),
        ("complete", False, True, ["complete"]),
        ("complete", True, True, []),  # early stopping ended it before
    ],
)
def test_the_last_epoch_ends_a_trial_if_no_report_follows(
    outcome: str | None, stops: bool, is_stopped: bool, outcomes: list[str]
) -> None:
    scheduler = FakeScheduler(stops=stops)
    report = {"kind": "epoch", "epoch": 3, "signature": "s", "attempt": 1, "node": "n"}
    last = report | ({"outcome": outcome} if outcome else {})
    assert runner_of(scheduler).on_report("trial", last) is is_stopped
    assert scheduler.outcomes == outcomes


def test_a_new_trial_reports_its_first_step_while_a_node_is_draining() -> None:
    runner = runner_of(FakeScheduler())
    runner.capacity.shapes = {"cnn3": (1.0, 0.0)}
    start = Mock(variant="cnn3", signature="s", attempt=1, resume_from=None, is_evaluated=False)
    start.config.to_dict.return_value = {}
    assert runner._job(start).reports_first_step is False
    runner.capacity.draining = {"a node"}
    assert runner._job(start).reports_first_step is True


def tune_trial(status: str) -> Mock:
    return Mock(trial_id="trial", status=status, config={"signature": "s", "attempt": 1})


def test_an_attempt_leaves_a_draining_node_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Mock] = []
    monkeypatch.setattr(ray_internals, "kill_process", killed.append)
    scheduler = FakeScheduler()
    runner = runner_of(scheduler)
    trial = tune_trial("RUNNING")
    runner.processes.add(trial)
    address = {"signature": "s", "attempt": 1, "node": "n"}
    runner.on_report("trial", {**address, "kind": "alive"})
    runner.capacity.draining = {"n"}
    runner.on_report("trial", {**address, "kind": "alive"})
    assert killed == []
    assert runner.on_report("trial", {**address, "kind": "epoch", "epoch": 0}) is False
    assert (killed, scheduler.failure_classes) == ([trial], ["preempted"])


def test_a_new_attempt_leaves_a_draining_node_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Mock] = []
    monkeypatch.setattr(ray_internals, "kill_process", killed.append)
    monkeypatch.setattr(ray_internals, "nodes_of_group", lambda group_id: {"m", "n"})
    monkeypatch.setattr(ray_internals, "remove_group", killed.append)
    scheduler = FakeScheduler()
    runner = runner_of(scheduler)
    trial = tune_trial("RUNNING")
    runner.processes.add(trial)
    runner.capacity.draining = {"n"}
    start = {"kind": "start", "signature": "s", "attempt": 1, "placement_group": "0f"}
    runner.on_report("trial", start)
    assert (killed, scheduler.failure_classes) == (["0f", trial], ["preempted"])


def test_a_hanging_attempt_is_killed_and_a_failed_reset_is_nobody_s_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[Mock] = []
    monkeypatch.setattr(ray_internals, "kill_process", killed.append)
    scheduler = FakeScheduler()
    runner = runner_of(scheduler)
    monkeypatch.setattr(runner.capacity, "refresh", lambda: None)
    monkeypatch.setattr(runner.watchdog, "hanging", lambda running: dict.fromkeys(running, 700.0))
    trial = tune_trial("RUNNING")
    runner.processes.add(trial)
    runner.check()
    assert (killed, scheduler.failure_classes) == ([trial], ["hung"])

    trial.status = "ERROR"
    runner.check()
    assert scheduler.failure_classes == ["hung", "killed"]
    assert runner.processes.trials == {}


def test_an_exception_in_a_hook_of_tune_ends_the_sweep_with_it() -> None:
    runner = runner_of(FakeScheduler())
    error = OSError("The ledger is broken.")
    with runner.keeping_error():
        raise error
    assert runner.error is error
    assert runner.next_config() == "finished"


def test_every_pass_of_tune_s_loop_can_be_blocked() -> None:
    passes: list[str] = []
    runner = AttemptRunner(
        Mock(next_start=Mock(return_value=None), is_paused=Mock(return_value=False)),
        new_job=Mock(),
        capacity=Mock(limit=1),
        watchdog=Mock(hanging=Mock(return_value={})),
        block_if_stopping=lambda: passes.append("pass"),
    )
    assert runner.next_config() == "finished"
    runner.check()
    assert passes == ["pass", "pass"]


NEVER_RAN = "The actor died unexpectedly before finishing this task.\nThe actor never ran - it was"


def test_a_cluster_that_starts_no_process_ends_the_sweep() -> None:
    """Each attempt would be retried 20 times: they do not count, because nothing ran."""
    scheduler = FakeScheduler()
    runner = runner_of(scheduler)
    runner.capacity.limit = 2
    for _ in range(7):
        runner.on_removal(tune_trial("ERROR"), NEVER_RAN)
    with pytest.raises(OrchestratorError, match="Ray started no process for 8 attempts in a row"):
        runner.on_removal(tune_trial("ERROR"), NEVER_RAN)
    assert scheduler.failure_classes == ["killed"] * 8


def test_attempts_that_ran_or_whose_node_died_do_not_end_the_sweep() -> None:
    runner = runner_of(FakeScheduler())
    report = {"kind": "alive", "signature": "s", "attempt": 1, "node": "n"}
    for _ in range(20):
        runner.on_removal(tune_trial("ERROR"), NEVER_RAN)
        runner.on_removal(tune_trial("ERROR"), f"Its node has died. {NEVER_RAN}")
        runner.on_removal(tune_trial("ERROR"), "The worker was killed.")
        runner.on_report("trial", report)
