"""Trials on several workers, on an existing cluster that keeps nothing of them."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.execution.cluster import ensure_token
from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import environment, ledger_of, sweep

pytestmark = pytest.mark.ray

RAY = Path(sys.executable).with_name("ray")

# Prints a cluster's placement groups and resources. Runs in a subprocess, so that Ray never starts
# in this process.
_INVENTORY = """
import json, ray
from ray.util.placement_group import placement_group_table
ray.init(address={address!r}, log_to_driver=False)
print("INVENTORY" + json.dumps({{
    "groups": [group["state"] for group in placement_group_table().values()],
    "total": ray.cluster_resources(), "free": ray.available_resources()}}))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of one node with two CPUs, started with a token as a user would."""
    ensure_token()
    # In a session of its own, ended by its signal: `ray stop` would end every Ray on this machine.
    process = subprocess.Popen(
        [
            RAY,
            "start",
            "--head",
            "--port=0",
            "--num-cpus=2",
            "--dashboard-host=127.0.0.1",
            "--block",
        ],
        env={**environment(), "RAY_AUTH_MODE": "token", "RAY_ADDRESS": "", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield _printed_address(process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _printed_address(process: subprocess.Popen[str]) -> str:
    output = ""
    for line in process.stdout:
        output += line
        match = re.search(r"--address='([^']+)'", line)
        if match:
            return match.group(1)
    raise AssertionError(output)


def _inventory(address: str) -> dict:
    process = subprocess.run(
        [sys.executable, "-c", _INVENTORY.format(address=address)],
        env={**environment(), "RAY_AUTH_MODE": "token", "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(process.stdout.split("INVENTORY")[1])


def test_a_stopped_group_frees_its_placement_group_and_the_next_one_starts(
    cluster: str, tmp_path: Path, digits_data_dir: Path
) -> None:
    space = tmp_path / "group.py"
    space.write_text(
        "from optuna.distributions import FloatDistribution\n"
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='group', dataset='digits', variants=('cnn3',), trials=4,\n"
        "    image_size=32, first_rung_epochs=1, rung_factor=2,\n"
        "    base={'epochs': 3, 'schedule': 'constant', 'batch_size': 32, 'optimizer': 'adamw'},\n"
        "    params={'lr': FloatDistribution(1e-5, 1e-2, log=True)})\n"
    )
    process = sweep(
        tmp_path,
        "group.py",
        *("--workers-per-trial", 2, "--data-dir", digits_data_dir),
        address=cluster,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"Using the Ray cluster at {cluster}" in process.stdout
    paths = SweepPaths(tmp_path / "results", "group")
    ledger = ledger_of(paths)
    trials = ledger.trials()
    assert len(trials) == 4
    assert "stopped" in {trial.status for trial in trials}
    assert {trial.status for trial in trials} <= {"complete", "stopped"}
    assert {trial.config["workers"] for trial in trials} == {2}
    waits = _waits_after_a_stop(paths)
    assert waits
    assert max(waits) < 30, waits  # the documented 10 s are of an idle machine
    inventory = _inventory(cluster)
    assert set(inventory["groups"]) <= {"REMOVED"}, inventory
    assert inventory["free"]["CPU"] == inventory["total"]["CPU"] == 2


def _waits_after_a_stop(paths: SweepPaths) -> list[float]:
    """Seconds from the end of a stopped trial to the next worker's first log line."""
    attempts = sorted(ledger_of(paths).attempts(), key=lambda attempt: attempt.started_s)
    waits = []
    for one, next_one in itertools.pairwise(attempts):
        if one.outcome == "stopped":
            stamp = (paths.root / next_one.log).read_text()[:23]
            started = datetime.datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
            waits.append(started - one.ended_s)
    return waits


def test_the_token_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        pytest.skip("this machine has its own token")
    ensure_token()
    path = Path.home() / ".ray" / "auth_token"
    assert path.stat().st_mode & 0o777 == 0o600
