"""Where the files of sweeps and datasets are."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.storage import paths


@pytest.mark.parametrize("place", [paths.sweep_paths, lambda uri, name: paths.data_location(uri)])
def test_a_url_needs_a_cache_also_where_there_is_no_home_directory(
    place: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert callable(place)
    with pytest.raises(UsageError, match="Set XDG_CACHE_HOME"):
        place("s3://bucket/sweeps", "digits")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert str(tmp_path) in str(place("s3://bucket/sweeps", "digits"))
