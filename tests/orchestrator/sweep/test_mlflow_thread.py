"""When MLflow is told of a sweep; what it is told is in `test_tracking.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.sweep import mlflow_thread
from orchestrator.sweep.mlflow_thread import MlflowThread
from orchestrator.sweep.signals import Interruption
from tests.orchestrator.tracking.tracked import Sweep


class Noted(Sweep):
    """A sweep whose passes over MLflow are noted and not made."""

    def __init__(self, storage: Path) -> None:
        super().__init__(storage, "noted")
        self.passes = 0
        self.tracker.sync = self.note  # type: ignore[method-assign]

    def note(self, *, last: bool = False) -> int:
        self.passes += 1
        return 0

    def has_passes(self) -> bool:
        """Whether there is a pass, waiting some seconds for it."""
        end_s = time.monotonic() + 5
        while not self.passes and time.monotonic() < end_s:
            time.sleep(0.01)
        return self.passes > 0


@contextmanager
def running(sweep: Sweep) -> Iterator[None]:
    threads = MlflowThread(sweep.tracker, sweep.paths)
    threads.start()
    try:
        yield
    finally:
        threads._stop.set()
        for thread in threads._threads:
            thread.join()


def test_mlflow_is_first_told_of_the_first_epoch(tmp_path: Path) -> None:
    """Not while the first trials start: to import it takes a core for seconds."""
    sweep = Noted(tmp_path)
    key = sweep.start(0)
    with running(sweep):
        time.sleep(1)
        assert sweep.passes == 0
        sweep.epoch(key, 0, 0.5)
        assert sweep.has_passes()


def test_where_the_first_epoch_takes_long_mlflow_shows_the_trial_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_thread, "_FIRST_AFTER_S", 0.5)
    sweep = Noted(tmp_path)
    sweep.start(0)
    with running(sweep):
        assert sweep.has_passes()


def test_an_mlflow_that_refuses_from_the_start_is_not_asked_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_thread, "_FIRST_AFTER_S", 0.0)
    sweep = Noted(tmp_path)

    def refuse(*, last: bool = False) -> int:
        sweep.note()
        raise ConnectionError("no")

    sweep.tracker.sync = refuse  # type: ignore[method-assign]
    with running(sweep):
        time.sleep(1.7)
        assert 1 <= sweep.passes <= 2


def test_a_sweep_that_ends_before_its_first_epoch_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Noted(tmp_path)
    threads = MlflowThread(sweep.tracker, sweep.paths)
    threads.start()
    began_s = time.monotonic()
    monkeypatch.setattr(sweep.tracker, "finish", lambda outcome, facts: sweep.note())

    threads.finish(Console(quiet=True), "interrupted", Interruption())
    assert sweep.passes
    assert time.monotonic() - began_s < 5
