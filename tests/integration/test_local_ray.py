"""A Ray that a command starts for itself ends with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.sweeps import environment

pytestmark = pytest.mark.ray

# By a process of its own, so that this one stays free of Ray. What is there when Ray shuts down:
_LEAVE = """
import json
from orchestrator.execution import cluster
cluster.connect("local", needs_state_api=False)
import ray
from ray._private import worker
processes = {kind: each[0].process for kind, each in worker._global_node.all_processes.items()}
shutdown = ray.shutdown
def watched():
    at_shutdown.update((kind, process.poll()) for kind, process in processes.items())
    shutdown()
at_shutdown = {}
ray.shutdown = watched
cluster.disconnect()
left = [kind for kind, process in processes.items() if process.poll() is None]
print("LEFT" + json.dumps([at_shutdown, left]))
"""

# A thread of the trials that comes to run Tune when an interrupt has ended Ray already.
_LATE = """
from orchestrator.execution import cluster
cluster.connect("local", needs_state_api=False)
from ray import tune
import ray
cluster.disconnect()
try:
    tune.Tuner(lambda config: None, run_config=tune.RunConfig(storage_path={folder!r})).fit()
except Exception as error:
    print("REFUSED", type(error).__name__)
print("STARTED", ray.is_initialized())
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_autoscaler_goes_first_and_nothing_is_left() -> None:
    # Asked to go after Ray's server, it would try for a second to tell that one.
    at_shutdown, left = json.loads(run(_LEAVE).partition("LEFT")[2])
    assert {"monitor", "raylet", "gcs_server"} <= set(at_shutdown)
    assert [kind for kind, status in at_shutdown.items() if status is not None] == ["monitor"]
    assert left == []


def test_tune_starts_no_second_one_after_its_end(tmp_path: Path) -> None:
    said = run(_LATE.format(folder=str(tmp_path)))
    assert "REFUSED" in said
    assert "STARTED False" in said
