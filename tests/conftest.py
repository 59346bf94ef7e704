"""Fixtures that several parts of the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.data.prepare import prepare


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
