"""Descendants of a process, and what is done for one that ends without an exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import os, sys, time
from orchestrator.processes import on_sudden_end
with on_sudden_end(lambda: open(sys.argv[1], "w").close()):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "is_sudden"),
    [
        ("os._exit(1)", True),
        ("os.kill(os.getpid(), 9)", True),
        ("os.abort()", True),
        ("pass", False),
        ("sys.exit(1)", False),
        ("raise ValueError", False),
    ],
)
def test_the_action_is_called_only_if_the_process_ends_without_an_exception(
    body: str, is_sudden: bool, tmp_path: Path
) -> None:
    mark = tmp_path / "called"
    command = [sys.executable, "-c", _SCRIPT.format(body=body), str(mark)]
    # The copy holds the pipe until it ends, so this waits for it.
    subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert mark.exists() is is_sudden
