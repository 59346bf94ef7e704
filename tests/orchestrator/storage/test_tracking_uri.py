"""Tracking URIs: files with any name, independent of the current folder; refusals in time."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url  # mlflow brings it

from orchestrator.errors import UsageError
from orchestrator.plan.options import SweepConfig
from orchestrator.storage.tracking_uri import absolute, problem, sqlite_file, sqlite_uri

NAMES = ("50%20", "feature%2Fx", "100%", "what?", "a#b", "a b", "it's", "a;b", "a@b:c", "ä", "[/x]")


@pytest.mark.parametrize("name", NAMES)
def test_a_database_file_and_its_uri_are_each_others_opposites(name: str, tmp_path: Path) -> None:
    path = tmp_path / name / "mlflow.db"
    uri = sqlite_uri(path)
    assert sqlite_file(uri) == path
    assert make_url(uri).database == str(path)  # the file that MLflow opens
    assert absolute(uri) == uri


def test_every_ascii_character_but_the_separator_may_be_in_the_path() -> None:
    path = Path("/", "".join(chr(code) for code in range(1, 128) if chr(code) != "/"), "m.db")
    assert sqlite_file(sqlite_uri(path)) == path
    assert make_url(sqlite_uri(path)).database == str(path)


def test_a_plain_path_has_the_uri_that_users_know(tmp_path: Path) -> None:
    assert sqlite_uri(Path("/a b/mlflow.db")) == "sqlite:////a b/mlflow.db"


def test_a_relative_uri_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = {
        "sqlite:///m.db": f"sqlite:///{tmp_path}/m.db",
        "sqlite:///sub/../m.db": f"sqlite:///{tmp_path}/m.db",
        "sqlite+pysqlite:///m.db": f"sqlite:///{tmp_path}/m.db",
        "sqlite:///50%2520.db": f"sqlite+pysqlite:///{tmp_path}/50%2520.db",
        "sqlite:///m.db?timeout=5": f"sqlite:///{tmp_path}/m.db?timeout=5",
        "./mlruns": f"file://{tmp_path}/mlruns",
        "mlruns": f"file://{tmp_path}/mlruns",
        "file:mlruns": f"file://{tmp_path}/mlruns",
    }
    assert {uri: absolute(uri) for uri in expected} == expected
    same = ["sqlite:////x/m.db", "http://h:5000", "https://h/a%20b?c=d", "databricks"]
    same += ["databricks://profile", "postgresql://u:p@h/db", "sqlite://", "sqlite:///:memory:"]
    assert [absolute(uri) for uri in same] == same


def test_a_uri_that_mlflow_refuses_is_refused_by_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(UsageError, match="must be a database or a server, such as sqlite:///mlflo"):
        SweepConfig(space="digits", name="digits", tracking_uri="file:///tmp/mlruns")
    assert "for /tmp/rel.db give sqlite:////tmp/rel.db." in (problem("file:///tmp/rel.db") or "")
    assert "http:, https:" in (problem("htp://127.0.0.1:5000") or "")
    assert "u:p" not in (problem("ftp://u:p@h/x") or "u:p")
    fine = ("http://h:5000", "postgresql+psycopg2://h/db", "databricks", "sqlite:////x/m.db")
    assert [problem(uri) for uri in fine] == [None] * len(fine)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert problem("file:///tmp/mlruns") is None
