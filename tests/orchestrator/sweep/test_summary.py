"""What a sweep prints at its end."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.storage.paths import SweepPaths
from orchestrator.sweep.summary import _print_places
from tests.orchestrator.sweeps import plan, space


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_address_of_mlflows_page_is_one_line(tmp_path: Path, is_terminal: bool) -> None:
    """On a terminal of 80 columns the whole address is behind the short one."""
    file, paths = io.StringIO(), SweepPaths(Path("/r"), "s")
    console = Console(file=file, force_terminal=is_terminal, width=80)
    context: Any = SimpleNamespace(paths=paths, plan=plan(space()), console=console)
    tracker: Any = SimpleNamespace(uri=paths.default_tracking_uri, outputs=(), experiment="1")
    _print_places(context, tracker)
    printed = file.getvalue()
    short = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
    whole = "/runs?orderByKey=metrics.%60best_val_top1%60&orderByAsc=false&compareRunsMode=CHART&"
    assert len(short) < 80
    assert (short in printed) == is_terminal
    assert whole in printed
    assert ("then open http" in printed) != is_terminal
    assert "mlflow ui --backend-store-uri sqlite:////r/mlflow.db\n" in printed
