"""When the ledger is written to MLflow; what is written is in `tracking/test_tracker.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.clock import Clock
from orchestrator.sweep import mlflow_thread
from orchestrator.sweep.mlflow_thread import MlflowThread
from orchestrator.sweep.signals import EndLimit, Interruption
from tests.orchestrator.tracking.tracked import Sweep


class CountedSweep(Sweep):
    """A sweep whose passes over MLflow are counted and not made."""

    def __init__(self, storage: Path) -> None:
        super().__init__(storage, "counted")
        self.passes = 0
        self.tracker.sync = self.count  # type: ignore[method-assign]

    def count(self, *, last: bool = False) -> int:
        self.passes += 1
        return 0

    def has_passes(self) -> bool:
        """Return whether a pass is made within some seconds."""
        end_s = time.monotonic() + 5
        while not self.passes and time.monotonic() < end_s:
            time.sleep(0.01)
        return self.passes > 0


@contextmanager
def running(sweep: CountedSweep, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    thread = MlflowThread(sweep.tracker)
    thread.thread.start()
    try:
        yield
    finally:
        monkeypatch.setattr(sweep.tracker, "finish", lambda outcome, facts: None)
        thread.end("complete")
        EndLimit(Interruption(), Clock()).wait_for(thread.thread)
        assert thread.step() is None


def test_the_first_pass_waits_for_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while the first trials start: importing MLflow takes a core for seconds."""
    sweep = CountedSweep(tmp_path)
    key = sweep.start(0)
    with running(sweep, monkeypatch):
        time.sleep(1)
        assert sweep.passes == 0
        sweep.epoch(key, 0, 0.5)
        assert sweep.has_passes()


def test_the_first_pass_does_not_wait_longer_than_its_limit_for_a_slow_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_thread, "_FIRST_AFTER_S", 0.5)
    sweep = CountedSweep(tmp_path)
    sweep.start(0)
    with running(sweep, monkeypatch):
        assert sweep.has_passes()


def test_there_is_a_pause_between_passes_when_mlflow_refuses_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_thread, "_FIRST_AFTER_S", 0.0)
    sweep = CountedSweep(tmp_path)
    sweep.start(0)

    def refuse(*, last: bool = False) -> int:
        sweep.count()
        raise ConnectionError("no")

    sweep.tracker.sync = refuse  # type: ignore[method-assign]
    with running(sweep, monkeypatch):
        time.sleep(1.7)
        assert 1 <= sweep.passes <= 2


def test_a_sweep_that_ends_before_its_first_epoch_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = CountedSweep(tmp_path)
    thread = MlflowThread(sweep.tracker)
    thread.thread.start()
    began_s = time.monotonic()
    monkeypatch.setattr(sweep.tracker, "finish", lambda outcome, facts: sweep.count())

    limit = EndLimit(Interruption(), Clock())
    thread.finish(Console(quiet=True), "interrupted", limit)
    assert sweep.passes
    assert time.monotonic() - began_s < 5


class Time:
    """A clock that the test sets."""

    now_s = 100.0

    def monotonic_s(self) -> float:
        return self.now_s


def test_a_simulation_makes_the_steps_itself_and_gets_the_pauses(tmp_path: Path) -> None:
    """No thread and no waiting: before the first epoch, between passes, after failures, at last."""
    sweep, time_ = CountedSweep(tmp_path), Time()
    sweep.tracker.clock = Clock(monotonic_s=time_.monotonic_s)
    thread = MlflowThread(sweep.tracker)
    key = sweep.start(0)
    assert (thread.step(), sweep.passes) == (0.2, 0)
    sweep.epoch(key, 0, 0.5)
    assert (thread.step(), sweep.passes) == (1.0, 1)

    def refuse(*args: object, **options: object) -> int:
        raise ConnectionError("no")

    sweep.tracker.sync = refuse  # type: ignore[method-assign]
    assert [thread.step() for _ in range(5)] == [2.0, 4.0, 8.0, 10.0, 10.0]
    sweep.tracker.finish = refuse  # type: ignore[method-assign]
    thread.end("complete")
    assert [thread.step() for _ in range(3)] == [1.0, 3.0, None]


@pytest.mark.parametrize("ends", [("interrupted", "failed", "complete"), ("complete",)])
def test_an_interrupted_sweep_has_the_metrics_of_an_unbroken_one(
    tmp_path: Path, ends: tuple[str, ...]
) -> None:
    """Also if a full disk halted it, which leaves trials that have not ended."""
    sweep = Sweep(tmp_path, "sweep")
    for number in range(3):
        key = sweep.start(number)
        sweep.epoch(key, 0, 0.5)
        if len(ends) == 3 and number < 2:
            sweep.end(key, "running", outcome="lost")
            end_tracking(sweep, ends[number])
            assert sweep.values("sweep", "trials") == []
            assert sweep.start(number) == key
        sweep.end(key, "complete", (0, 0.5))
    end_tracking(sweep, "complete")
    end_tracking(sweep, "complete")  # `--resume` of a sweep that has ended
    assert sweep.values("sweep", "trials") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert sweep.values("sweep", "best_val_top1.cnn2") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert sweep.runs()["sweep"].data.metrics == {"trials": 3.0, "best_val_top1.cnn2": 0.5}


def end_tracking(sweep: Sweep, outcome: str) -> None:
    thread = MlflowThread(sweep.new_tracker())
    thread.end(outcome)
    assert thread.step() is None


def test_the_end_waits_for_threads_up_to_its_limits() -> None:
    time_, interruption = Time(), Interruption()
    limit = EndLimit(interruption, Clock(monotonic_s=time_.monotonic_s))
    time_.now_s += 299
    assert not limit.is_over()
    interruption.wanted.set()
    assert not limit.is_over()
    time_.now_s += 0.5
    assert not limit.is_over()
    time_.now_s += 1
    assert limit.is_over()  # 300 s
    limit = EndLimit(interruption, Clock(monotonic_s=time_.monotonic_s))
    assert not limit.is_over()
    time_.now_s += 16
    assert limit.is_over()  # an interrupted sweep: 15 s
    limit = EndLimit(interruption, Clock(monotonic_s=time_.monotonic_s))
    interruption.urgent.set()
    assert limit.is_over()
