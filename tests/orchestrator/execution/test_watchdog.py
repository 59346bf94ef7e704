"""Which trials hang, on a clock that these tests move."""

from __future__ import annotations

import pytest

from orchestrator.execution import watchdog
from orchestrator.execution.watchdog import Watchdog


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


def wait(clock: Clock, dog: Watchdog, seconds: int) -> dict[str, float]:
    """Look every second; return what was found in the end."""
    found: dict[str, float] = {}
    for _ in range(seconds):
        clock.now_s += 1
        found |= dog.hanging(["a"])
    return found


def test_silence_after_a_sign_of_life_is_hanging_once_it_lasts(clock: Clock) -> None:
    dog = Watchdog(10, by_step=True)
    dog.hanging(["a"])
    dog.sign_of_life("a")
    assert wait(clock, dog, 10) == {}
    assert wait(clock, dog, 1) == {"a": 11.0}
    assert wait(clock, dog, 50) == {}  # said once


def test_a_start_may_take_longer_than_the_timeout(clock: Clock) -> None:
    dog = Watchdog(10, by_step=True)
    dog.hanging(["a"])
    assert wait(clock, dog, int(Watchdog.START_S)) == {}
    assert set(wait(clock, dog, 1)) == {"a"}


def test_a_timeout_above_that_of_the_start_holds_from_the_start(clock: Clock) -> None:
    dog = Watchdog(600, by_step=True)
    dog.hanging(["a"])
    assert wait(clock, dog, 600) == {}
    assert set(wait(clock, dog, 1)) == {"a"}


def test_a_driver_that_slept_has_heard_nobody(clock: Clock) -> None:
    dog = Watchdog(10, by_step=True)
    dog.sign_of_life("a")
    dog.hanging(["a"])
    clock.now_s += 500  # a closed laptop
    assert dog.hanging(["a"]) == {}
    assert wait(clock, dog, 10) == {}
    assert set(wait(clock, dog, 1)) == {"a"}


def test_a_group_gets_five_epochs_and_ten_times_the_limit_for_the_first(clock: Clock) -> None:
    dog = Watchdog(10, by_step=False)
    dog.sign_of_life("a")
    assert wait(clock, dog, 100) == {}
    dog.sign_of_life("a", epoch_s=40.0)
    assert wait(clock, dog, 200) == {}
    assert set(wait(clock, dog, 1)) == {"a"}


def test_a_group_that_never_ends_an_epoch_hangs(clock: Clock) -> None:
    dog = Watchdog(20, by_step=False)
    dog.sign_of_life("a")
    assert wait(clock, dog, 199) == {}
    assert set(wait(clock, dog, 2)) == {"a"}
