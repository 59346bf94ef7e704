"""A sweep that is killed again and again ends as if nothing had happened; `make soak` does more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.storage.paths import SweepPaths
from tests.faults.soak import everything, finish, repeated_epochs, strike
from tests.faults.victims import (
    ROOT,
    Soak,
    Sweep,
    soaking,
    start_driver,
    trial_pids,
    wait,
)
from tests.integration.sweeps import environment, ledger_of

pytestmark = [pytest.mark.faults, pytest.mark.quick]


@pytest.fixture
def soak(tmp_path: Path) -> Iterator[Soak]:
    # Ray's own agents wait a minute for a cluster that is gone; `make soak` waits for their end.
    with soaking(tmp_path, seed=1, say=lambda line: None, to_the_last=False) as soak:
        yield soak


def test_killed_drivers_and_workers_leave_the_table_of_an_unbroken_sweep(soak: Soak) -> None:
    """Case 1: a driver any time and inside a transaction, a worker inside a checkpoint."""
    whole = Sweep(SweepPaths(soak.folder / "whole", "soak"), 1)
    start_driver(soak, whole)
    broken = Sweep(SweepPaths(soak.folder / "broken", "soak-1"), 1)
    kinds = ("driver", "ledger", "checkpoint", "driver")
    for kind in kinds:
        assert strike(soak, broken, kind)
        if kind == "checkpoint":  # the driver records the worker's end before it is killed itself
            assert wait(lambda: "failed" in outcomes(broken), broken)
    finish(soak, whole)
    start_driver(soak, broken)
    assert wait(lambda: trial_pids(broken), broken)
    under_way = verify(broken)
    assert under_way.returncode == 0, under_way.stdout + under_way.stderr
    assert "The sweep is being run by process" in under_way.stdout
    assert "trials have not ended yet." in under_way.stdout
    finish(soak, broken)
    assert everything(broken.paths) == everything(whole.paths)
    assert repeated_epochs(soak, broken) <= len(kinds)
    assert outcomes(broken).count("lost") >= 1
    assert outcomes(broken).count("failed") == 1
    checked = verify(broken)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "All requested trials have ended." in checked.stdout
    assert soak.breaches == []
    assert ledger_of(broken.paths).header().asked == {"cnn2": 3, "cnn3": 3}


def outcomes(sweep: Sweep) -> list[str | None]:
    return [attempt.outcome for attempt in ledger_of(sweep.paths).attempts()]


def verify(sweep: Sweep) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.sweep", sweep.paths.name, "--verify"]
    return subprocess.run(
        [*command, "--storage", str(sweep.paths.local_root)],
        cwd=sweep.paths.local_root,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
