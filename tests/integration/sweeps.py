"""Runs the real command in a process of its own, and reads its results."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.ledger.ledger import Ledger, open_ledger
from orchestrator.storage.paths import SweepPaths

LIMIT_S = 300

# Every process of a started sweep inherits this variable, with a value of its own.
MARK = "SWEEP_UNDER_TEST"


def command(space: str, *arguments: object) -> list[str]:
    """Return the command of a sweep; without final trials unless a test asks for them."""
    if "--final-seeds" not in arguments and "--resume" not in arguments:
        arguments = (*arguments, "--final-seeds", 0)
    return [sys.executable, "-m", "orchestrator.sweep", space, *map(str, arguments)]


@functools.cache
def ray_folder() -> str:
    """Return a folder for the sessions of Ray; each test process has its own."""
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")  # short: Ray's sockets are in it
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment() -> dict[str, str]:
    # A cluster that runs on this machine must not be used.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_ADDRESS": "local", "RAY_TMPDIR": ray_folder()}


def sweep(
    cwd: Path,
    space: str,
    *arguments: object,
    address: str = "local",
    env: dict[str, str] | None = None,
) -> Any:
    """Run to the end; return the finished process with its output as text."""
    return subprocess.run(
        command(space, *arguments),
        cwd=cwd,
        env={**environment(), "RAY_ADDRESS": address, **(env or {})},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@contextmanager
def started(
    cwd: Path, space: str, *arguments: object, env: dict[str, str] | None = None
) -> Iterator[Any]:
    """Start a sweep and yield its process; what still runs is killed at the end of the block."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        command(space, *arguments),
        cwd=cwd,
        env={**environment(), **(env or {}), MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    process.mark = mark  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(ValueError):  # its output was read already
            process.communicate()
        for pid in members(mark):  # such as stopped processes
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def members(mark: str) -> dict[int, str]:
    """Return the living processes of a started sweep, with those of Ray: pid and title."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() not in (folder / "environ").read_bytes():
                continue
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if state != "Z":
            found[int(folder.name)] = title
    return found


def titled(mark: str, *beginnings: str) -> list[int]:
    """Return the processes of a sweep whose title begins so, as Ray names its workers."""
    return [pid for pid, title in members(mark).items() if title.startswith(beginnings)]


TRIAL = ("ray::ImplicitFunc", "ray::run_trial", "ray::_Inner")
RANK, CONTROLLER = "ray::RayTrainWorker", "ray::TrainController"


def wait_for(condition: Any, what: str, limit_s: float = LIMIT_S) -> Any:
    """Poll until the condition is truthy and return its value."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {limit_s:g} s")


def count_epochs(paths: SweepPaths) -> int:
    try:
        with sqlite3.connect(f"{paths.ledger.absolute().as_uri()}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM epochs").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def ledger_of(paths: SweepPaths) -> Ledger:
    return open_ledger(paths.ledger, read_only=True)


def table(paths: SweepPaths) -> list[tuple[Any, ...]]:
    """Return the results that must not depend on how often a sweep was interrupted."""
    ledger = ledger_of(paths)
    rows = []
    for trial in ledger.trials():
        for row in ledger.epochs(trial.signature):
            figures = {k: v for k, v in row.metrics.items() if not is_measured_time(k)}
            rows.append(
                (
                    *(trial.variant, trial.number, trial.signature, str(trial.params)),
                    *(trial.status, trial.best_epoch, trial.best_value),
                    *(row.epoch, tuple(sorted(figures.items()))),
                )
            )
    ledger.close()
    return rows


def is_measured_time(metric: str) -> bool:
    measured = ("epoch_s", "images_per_s", "device_peak_gib", "data_s", "val_s", "checkpoint_s")
    return metric in measured


def tracking_uri(output: str) -> str:
    """Return the MLflow store that the sweep printed."""
    match = re.search(r"^MLflow: (\S*mlflow ui .*)$", output, re.MULTILINE)
    assert match, output
    return shlex.split(match.group(1))[3]
