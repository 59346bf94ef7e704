"""How fault tests are shared out, and what several of their files compare with."""

from __future__ import annotations

import collections
import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import sweep, table

# One trial at a time, so that a broken sweep must end exactly as an unbroken one.
SMALL = ("--variants", "cnn3", "--max-concurrent", 1, "--trials", 2, "--epochs", 4)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a fixture of their file in one process; any process takes the rest.

    What stays together comes first, so that no process has a long row left when all else is done.
    """
    sizes: collections.Counter[str] = collections.Counter()
    group: dict[str, str] = {}
    for item in items:
        known = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
        if any(definitions[-1].scope == "module" for definitions in known):
            group[item.nodeid] = item.path.stem
            sizes[item.path.stem] += 1
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: -sizes[group[item.nodeid]] if item.nodeid in group else 0)


def once_for_all(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Any:
    """Return what `make` returns for a new folder, made once for all processes of tests."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = shared / f"{name}.pickle"
        if not kept.exists():
            kept.write_bytes(pickle.dumps(make(factory.mktemp(name))))
        return pickle.loads(kept.read_bytes())


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, digits_data_dir: Path) -> list[Any]:
    """The table of the small sweep that nobody disturbed."""

    def make(cwd: Path) -> list[Any]:
        process = sweep(cwd, "digits", *SMALL, "--data-dir", digits_data_dir)
        assert process.returncode == 0, process.stdout + process.stderr
        return table(SweepPaths(cwd / "results", "digits"))

    found: list[Any] = once_for_all(tmp_path_factory, "unbroken", make)
    return found
