"""What the reports of trials do to Tune's trials; needs no Ray."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator import launch
from orchestrator.paths import DataPlace
from orchestrator.watchdog import Watchdog


class Ends:
    """Stands for the conductor: keeps the outcomes that it is told."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def on_end(self, signature: str, attempt: int, *, outcome: str, **_: Any) -> None:
        self.outcomes.append(outcome)


@pytest.mark.parametrize(
    ("by_step", "outcome", "is_stopped"),
    [
        (True, "complete", True),
        (True, "diverged", False),  # its log is stored afterwards
        (True, "failed", False),  # its process may be spent and says so by raising
        (False, "complete", False),  # a worker group ends by itself
    ],
)
def test_the_last_report_of_a_complete_trial_frees_its_process(
    tmp_path: Path, by_step: bool, outcome: str, is_stopped: bool
) -> None:
    conductor = Ends()
    jobs = launch._Jobs(
        conductor,  # type: ignore[arg-type]
        None,
        tmp_path,
        DataPlace(tmp_path),
        None,
        Watchdog(600, by_step=by_step),
        False,
        None,
    )
    end = {"kind": "end", "signature": "s", "attempt": 1, "outcome": outcome}
    assert jobs.on_report("trial", end) is is_stopped
    assert conductor.outcomes == [outcome]
