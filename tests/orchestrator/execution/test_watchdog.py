"""Which trials the watchdog reports as hanging, on a clock that these tests advance."""

from __future__ import annotations

import pytest

from orchestrator.clock import Clock
from orchestrator.execution.watchdog import Watchdog


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 1000.0
        self.clock = Clock(monotonic_s=lambda: self.now_s)


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def wait(time: FakeTime, dog: Watchdog, seconds: int) -> dict[str, float]:
    """Check every second; return the trials found to hang."""
    found: dict[str, float] = {}
    for _ in range(seconds):
        time.now_s += 1
        found |= dog.hanging(["a"])
    return found


def test_a_trial_hangs_after_the_timeout_without_a_report(time: FakeTime) -> None:
    dog = Watchdog(10, by_step=True, clock=time.clock)
    dog.hanging(["a"])
    dog.on_report("a")
    assert wait(time, dog, 10) == {}
    assert wait(time, dog, 1) == {"a": 11.0}
    assert wait(time, dog, 50) == {}  # reported once


def test_a_trial_may_start_for_longer_than_the_timeout(time: FakeTime) -> None:
    dog = Watchdog(10, by_step=True, clock=time.clock)
    dog.hanging(["a"])
    assert wait(time, dog, int(Watchdog.START_S)) == {}
    assert set(wait(time, dog, 1)) == {"a"}


def test_a_timeout_above_the_start_s_limit_also_applies_to_the_start(time: FakeTime) -> None:
    dog = Watchdog(600, by_step=True, clock=time.clock)
    dog.hanging(["a"])
    assert wait(time, dog, 600) == {}
    assert set(wait(time, dog, 1)) == {"a"}


def test_time_during_which_the_driver_slept_does_not_count(time: FakeTime) -> None:
    dog = Watchdog(10, by_step=True, clock=time.clock)
    dog.on_report("a")
    dog.hanging(["a"])
    time.now_s += 500  # a closed laptop
    assert dog.hanging(["a"]) == {}
    assert wait(time, dog, 10) == {}
    assert set(wait(time, dog, 1)) == {"a"}


def test_a_group_has_five_epochs_and_ten_timeouts_for_the_first(time: FakeTime) -> None:
    dog = Watchdog(10, by_step=False, clock=time.clock)
    dog.on_report("a")
    assert wait(time, dog, 100) == {}
    dog.on_report("a", epoch_s=40.0)
    assert wait(time, dog, 200) == {}
    assert set(wait(time, dog, 1)) == {"a"}


def test_a_group_that_ends_no_epoch_hangs(time: FakeTime) -> None:
    dog = Watchdog(20, by_step=False, clock=time.clock)
    dog.on_report("a")
    assert wait(time, dog, 199) == {}
    assert set(wait(time, dog, 2)) == {"a"}
