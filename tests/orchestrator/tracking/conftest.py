"""Sweeps whose MLflow store is a real database, shared by the tests of a module."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event  # mlflow brings it

from tests.orchestrator.tracking.tracked import Sweep


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One store for all tests of a module, because MLflow needs seconds to create one.

    It does not wait for the disk: no test simulates a loss of power.
    """

    def without_sync(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", without_sync)
    yield tmp_path_factory.mktemp("it's storage")
    event.remove(Engine, "connect", without_sync)


@pytest.fixture
def sweep(storage: Path, request: pytest.FixtureRequest) -> Sweep:
    return Sweep(storage, re.sub(r"\W+", "-", request.node.name).strip("-")[:90])
