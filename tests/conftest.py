"""Fixtures that several parts of the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.data import prepare


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `make test`, two at a time: those that start Ray one after the other, else by file."""
    for item in items:
        is_ray = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if is_ray else item.path.stem))


@pytest.fixture(scope="session")
def digits_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the real digits prepared in it; read it, never write to it."""
    folder = tmp_path_factory.mktemp("data")
    prepare("digits", data_dir=folder, progress=False)
    return folder


@pytest.fixture(scope="session")
def digits_dir(digits_data_dir: Path) -> Path:
    """The prepared digits: 8 x 8, grey, 10 classes."""
    return digits_data_dir / "digits"
