"""A local Ray ends with the command that started it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.sweeps import environment

pytestmark = pytest.mark.ray

# Runs in a subprocess, so that Ray never starts in this process. Prints which of Ray's processes
# have ended when `ray.shutdown` is called, and which remain after it.
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

# The trials' thread, if it calls Tune after an interrupt has already ended Ray.
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


def test_the_autoscaler_ends_before_ray_and_no_process_remains() -> None:
    # At shutdown the monitor would spend a second notifying a server that has already stopped.
    at_shutdown, left = json.loads(run(_LEAVE).partition("LEFT")[2])
    assert {"monitor", "raylet", "gcs_server"} <= set(at_shutdown)
    assert [kind for kind, status in at_shutdown.items() if status is not None] == ["monitor"]
    assert left == []


def test_tune_starts_no_second_ray_after_the_first_ended(tmp_path: Path) -> None:
    output = run(_LATE.format(folder=str(tmp_path)))
    assert "REFUSED" in output
    assert "STARTED False" in output
