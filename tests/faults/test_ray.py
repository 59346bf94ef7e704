"""Rays that are open, that do not start, or that end during a sweep."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import (
    command,
    count_epochs,
    environment,
    ledger_of,
    members,
    started,
    sweep,
    wait_for,
)
from tests.integration.test_worker_groups import RAY

pytestmark = pytest.mark.faults

PYTHON = Path(sys.executable).resolve()
SMALL = ("--variants", "cnn3", "--trials", 1, "--epochs", 2)


@pytest.fixture
def open_ray(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which a user typed `ray start --head` and never had a token."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    env = environment() | {"HOME": str(tmp_path), "RAY_TMPDIR": folder}
    del env["RAY_ADDRESS"]
    options = ("--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false")
    head = subprocess.Popen(
        [RAY, "start", *options, "--disable-usage-stats", "--block"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: Path(folder, "ray/ray_current_cluster").exists(), "the start", 60)
        yield env
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def test_an_open_ray_of_the_same_user_is_joined_by_the_default_command(
    tmp_path: Path, digits_data_dir: Path, open_ray: dict[str, str]
) -> None:
    done = subprocess.run(
        command("digits", *SMALL, "--data-dir", digits_data_dir),
        cwd=tmp_path,
        env=open_ray,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Using the Ray cluster at " in done.stdout
    assert [
        a.outcome for a in ledger_of(SweepPaths(tmp_path / "results", "digits")).attempts()
    ] == ["complete"]


@pytest.mark.alone  # no other sweep makes such a folder meanwhile
@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_sweep_runs_with_a_long_temporary_folder(
    name: str, tmp_path: Path, digits_data_dir: Path
) -> None:
    long = tmp_path / ("job_" + "0123456789" * 6)
    long.mkdir()
    env: dict[str, str] = {"RAY_TMPDIR": ""} if name == "TMPDIR" else {}
    before = set(Path("/tmp").glob("sweep-ray-*"))
    ended = sweep(
        tmp_path, "digits", *SMALL, "--data-dir", digits_data_dir, env=env | {name: str(long)}
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert set(Path("/tmp").glob("sweep-ray-*")) == before


@pytest.mark.skipif(
    os.getuid() != 0 or any(p.stat().st_mode & 0o5 != 0o5 for p in PYTHON.parents),
    reason="only root can take another uid, and that uid must be able to run Python",
)
def test_a_sweep_runs_without_a_home_directory_and_a_user_name(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    folder.chmod(0o777)
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), "RAY_TMPDIR": str(folder)}
    shutil.copytree(digits_data_dir, folder / "data")
    try:
        ended = subprocess.run(
            command("digits", *SMALL, "--data-dir", folder / "data", "--address", "local"),
            cwd=folder,
            env=kept,
            user=54321,
            group=54321,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a network namespace")
def test_without_a_network_interface_a_sweep_ends_at_once_with_one_sentence(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    ended = subprocess.run(
        ["unshare", "-n", *command("digits", *SMALL, "--data-dir", digits_data_dir)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "Ray needs the loopback interface" in ended.stderr
    assert "`ip link set lo up`" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts_ends_the_sweep_without_a_trace(
    number: int, tmp_path: Path, digits_data_dir: Path
) -> None:
    with started(tmp_path, "digits", *SMALL, "--data-dir", digits_data_dir) as process:
        wait_for(lambda: "gcs_server" in str(members(process.mark)), "the start", 60)
        os.killpg(process.pid, number)  # to Ray's processes as well, as by Ctrl+C
        printed, _ = process.communicate(timeout=40)
        assert process.returncode == 130, printed
        assert printed.endswith("Interrupted before the sweep started.\n")
        assert "Traceback" not in printed
        wait_for(lambda: not members(process.mark), "the end of every process", 20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("server", ["gcs_server", "raylet"])
def test_a_ray_that_is_killed_ends_the_sweep_with_the_command_that_resumes_it(
    server: str, tmp_path: Path, digits_data_dir: Path
) -> None:
    paths = SweepPaths(tmp_path / "results", "digits")
    long = ("--variants", "cnn3", "--trials", 1, "--epochs", 500, "--data-dir", digits_data_dir)
    with started(tmp_path, "digits", *long) as process:
        wait_for(lambda: count_epochs(paths) >= 1, "an epoch", 120)
        os.kill(_server(process, server), signal.SIGKILL)
        printed, _ = process.communicate(timeout=45)  # after 60 s Ray's library ends the process
        assert process.returncode == 1, printed
        assert f"Ray's process {server} on this machine has ended unexpectedly." in printed
        assert "--resume" in printed
        assert "Traceback" not in printed
        wait_for(lambda: not members(process.mark), "the end of every process", 20)
    assert ledger_of(paths).trials()[0].status == "running"


def _server(process: Any, name: str) -> int:
    (found,) = [
        pid for pid, title in members(process.mark).items() if f"/{name} " in f"{title.split()[0]} "
    ]
    return found
