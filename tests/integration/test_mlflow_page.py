"""What a person sees: the sweep's runs in MLflow's own page, in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
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
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, digits_data_dir: Path
) -> Iterator[tuple[str, str]]:
    """Run a small sweep, serve its store with stock MLflow.

    Yields the addresses of the experiment and of the registered model.
    """
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    cwd = tmp_path_factory.mktemp("page")
    arguments = ("--trials", 2, "--epochs", 3, "--variants", "cnn2,cnn3", "--register", "my digits")
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
        printed = (
            _printed_address(process.stdout, r"then open"),
            _printed_address(process.stdout, r"Registered: version 1 of 'my digits',"),
        )
        experiment, version = (url.replace("http://127.0.0.1:5000", address) for url in printed)
        yield experiment, version
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _printed_address(output: str, before: str) -> str:
    """Return a page that the sweep's end names."""
    match = re.search(rf"^{before} (http://\S+)$", output, re.MULTILINE)
    assert match, output
    return match.group(1)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def test_the_page_lists_every_trial_and_draws_its_metrics(pages: tuple[str, str]) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    OUTPUT.mkdir(exist_ok=True)
    picture = OUTPUT / "mlflow_runs.png"
    picture.unlink(missing_ok=True)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        view = browser.new_page(viewport={"width": 1500, "height": 950})
        view.goto(pages[0])
        for name in ("cnn3-000", "cnn3-001", "cnn2-000", "cnn2-001"):
            view.get_by_text(name, exact=True).first.wait_for(timeout=60_000)
        view.get_by_text("best_val_top1", exact=True).first.wait_for(timeout=60_000)
        # A chart is there when its library has drawn the lines of the trials.
        view.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(timeout=60_000)
        lines = view.locator(".js-plotly-plot .scatterlayer .trace").count()
        close = view.get_by_role("button", name="Close")
        if close.count():
            close.last.click()  # an assistant that covers a part of the page
        view.wait_for_timeout(1000)
        view.screenshot(path=picture)
        # Charts are in the order of their names, and made when they come into sight.
        view.mouse.move(1000, 700)
        for _ in range(20):
            if view.get_by_text("train_loss", exact=True).count():
                break
            view.mouse.wheel(0, 400)
            view.wait_for_timeout(500)
        view.get_by_text("train_loss", exact=True).first.wait_for(timeout=10_000)
        browser.close()
    assert lines >= 4  # one line per trial in the first chart alone
    assert picture.read_bytes().startswith(b"\x89PNG")
