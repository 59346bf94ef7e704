"""What a person sees: the sweep's runs in MLflow's own page, in a real browser."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.sweeps import sweep, tracking_uri, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.browser]

OUTPUT = Path(__file__).parents[1] / "output"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, digits_data_dir: Path) -> Iterator[str]:
    """Run a small sweep, serve its store with stock MLflow, return the experiment's address."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    cwd = tmp_path_factory.mktemp("page")
    arguments = ("--trials", 2, "--epochs", 3, "--variants", "cnn2,cnn3")
    process = sweep(cwd, "digits", *arguments, "--data-dir", digits_data_dir)
    assert process.returncode == 0, process.stdout + process.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mlflow = Path(sys.executable).with_name("mlflow")
    server = subprocess.Popen(
        [
            *(mlflow, "ui", "--backend-store-uri", tracking_uri(process.stdout)),
            *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        ],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(address), "MLflow's page", 60)
        yield f"{address}/#/experiments/1/runs"
    finally:
        import os
        import signal

        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def _browse(address: str, profile: Path, *arguments: str) -> str:
    process = subprocess.run(
        [
            *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"),
            *("--window-size=1500,900", "--virtual-time-budget=20000", *arguments, address),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return process.stdout


def test_the_page_lists_the_parent_and_its_trials_with_their_metrics(
    page: str, tmp_path: Path
) -> None:
    OUTPUT.mkdir(exist_ok=True)
    picture = OUTPUT / "mlflow_runs.png"
    picture.unlink(missing_ok=True)
    text = _browse(page, tmp_path / "profile", "--dump-dom")
    _browse(page, tmp_path / "profile2", f"--screenshot={picture}")
    for name in ("digits", "cnn3-000", "cnn3-001", "cnn2-000", "cnn2-001"):
        assert name in text
    assert picture.stat().st_size > 20_000  # a blank page of this size is smaller
