"""A Ray that a command starts for itself ends with it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.sweeps import environment

pytestmark = pytest.mark.ray

# By a process of its own, so that this one stays free of Ray. What is there when Ray shuts down:
_LEAVE = """
import json
from orchestrator import cluster
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


def test_its_autoscaler_goes_first_and_nothing_is_left() -> None:
    # Asked to go after Ray's server, it would try for a second to tell that one.
    done = subprocess.run(
        [sys.executable, "-c", _LEAVE],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "LEFT" in done.stdout, done.stderr
    at_shutdown, left = json.loads(done.stdout.partition("LEFT")[2])
    assert {"monitor", "raylet", "gcs_server"} <= set(at_shutdown)
    assert [kind for kind, status in at_shutdown.items() if status is not None] == ["monitor"]
    assert left == []
