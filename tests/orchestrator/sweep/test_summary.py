"""What a sweep prints at its end."""

from __future__ import annotations

import dataclasses
import io
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.plan.options import SweepConfig
from orchestrator.storage.paths import SweepPaths
from orchestrator.sweep.summary import _print_places, resume_command
from tests.orchestrator.sweeps import parse_args, plan, space


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_address_of_mlflows_page_is_one_line(tmp_path: Path, is_terminal: bool) -> None:
    """On a terminal of 80 columns the whole address is behind the short one."""
    file, paths = io.StringIO(), SweepPaths(Path("/r"), "s")
    console = Console(file=file, force_terminal=is_terminal, width=80, highlight=False)
    context: Any = SimpleNamespace(paths=paths, plan=plan(space()), console=console)
    version = SimpleNamespace(name="my digits", version="2")
    tracker: Any = SimpleNamespace(
        uri=paths.default_tracking_uri, outputs=(), experiment="1", registered=version
    )
    _print_places(context, tracker)
    printed = file.getvalue()
    assert (
        "Registered: version 2 of 'my digits', http://127.0.0.1:5000/#/models/my%20digits/versions"
        "/2?workflowType=machine_learning\n"
    ) in printed
    short = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    whole = "/runs?orderByKey=metrics.%60best_val_top1%60&orderByAsc=false&compareRunsMode=CHART&"
    assert len(short) < 80
    assert (short in printed) == is_terminal
    assert whole in printed
    assert ("then open http" in printed) != is_terminal
    assert "mlflow ui --backend-store-uri sqlite:////r/mlflow.db\n" in printed


@pytest.mark.parametrize(
    ("words", "resumed"),
    [
        ([], ["--resume"]),
        (["digits", "--resume", "--trials", "3"], ["digits", "--trials", "3", "--resume"]),
        (["./my spaces/a b.py", "--storage", "../res ults"], ...),
        (["digits", "--storage=50%20 $HOME/`id`/$(id)/~/*", "--data-dir", "~/'a'\"b\""], ...),
        (["räume/größe.py", "--storage", "结果", "--data-dir", "new\nline\\n"], ...),
        (["--name", "a", "--", "digits"], ["--name", "a", "--resume", "--", "digits"]),
    ],
)
def test_the_resume_command_repeats_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], resumed: list[str]
) -> None:
    """A shell gives the same words to the same Python, from the folder of the first command."""
    python = tmp_path / "my env" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    for name in ("SWEEP_STORAGE", "SWEEP_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    config = SweepConfig(space="digits", name="digits", words=tuple(words))
    ran = subprocess.run(["sh", "-c", resume_command(config)], capture_output=True, check=True)
    expected = [*words, "--resume"] if resumed is ... else resumed
    assert ran.stdout.decode().split("\0") == ["-m", "orchestrator.sweep", *expected, ""]


def test_the_resume_command_has_the_folders_that_variables_gave_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SWEEP_STORAGE=results python ...` sets it for one command only."""
    monkeypatch.setenv("SWEEP_STORAGE", "my results")
    monkeypatch.setenv("SWEEP_DATA_DIR", "s3://key:secret@bucket/data")
    config = dataclasses.replace(parse_args(["digits"]), words=("digits",))
    data = ["--data-dir", "s3://[redacted]@bucket/data"]
    last = [*data, "--resume"]
    assert shlex.split(resume_command(config))[3:] == ["digits", "--storage", "my results", *last]
    config = dataclasses.replace(config, storage="here", words=("digits", "--storage", "here"))
    assert shlex.split(resume_command(config))[3:] == ["digits", "--storage", "here", *last]
    moved = ["digits", "--storage", "here", "--storage", str(tmp_path), *last]
    assert shlex.split(resume_command(config, tmp_path))[3:] == moved


def test_a_sweep_without_a_model_says_that_it_registered_nothing(tmp_path: Path) -> None:
    """It was interrupted, or no trial has ended without a failure."""
    file, paths = io.StringIO(), SweepPaths(Path("/r"), "s")
    context: Any = SimpleNamespace(
        paths=paths, plan=plan(space()), console=Console(file=file, highlight=False)
    )
    tracker: Any = SimpleNamespace(
        uri="http://h:5000", outputs=(), experiment="", registered=None, register_as="digits"
    )
    _print_places(context, tracker)
    text = "Registered: nothing as 'digits' yet; the sweep has not written a best model.\n"
    assert text in file.getvalue()
    tracker.register_as = None
    _print_places(context, tracker)
    assert file.getvalue().count("Registered") == 1
