"""MLflow's tracking URIs: of a database file, made absolute, and those that MLflow refuses."""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path

from orchestrator.redaction import redacted

_SQLITE = ("sqlite", "sqlite+pysqlite")
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "arn", "uc")


def sqlite_uri(path: Path) -> str:
    """Return the URI of a database file; `sqlite_file` does the opposite."""
    text = os.path.abspath(path)
    quoted = text.replace("%", "%25").replace("?", "%3F")
    # MLflow creates the folder of a `sqlite:///` URI as it is spelled, escapes included. It does
    # not if the URI names the driver.
    return f"{_SQLITE[quoted != text]}:///{quoted}"


def sqlite_file(uri: str) -> Path | None:
    """Return the database file that MLflow opens for a URI, None if it opens none."""
    scheme, _, rest = uri.partition(":///")
    path, _, query = rest.partition("?")
    if scheme not in _SQLITE or path in ("", ":memory:") or "uri=true" in query.lower():
        return None
    return Path(urllib.parse.unquote(path))


def absolute(uri: str) -> str:
    """Return a URI whose file or folder does not depend on the current folder."""
    scheme = urllib.parse.urlsplit(uri).scheme
    if (file := sqlite_file(uri)) is not None:
        return sqlite_uri(file) + uri[len(uri.partition("?")[0]) :]
    if scheme == "file":
        path = urllib.request.url2pathname(urllib.parse.urlsplit(uri).path)
        return Path(os.path.abspath(path)).as_uri()
    if not scheme and uri != "databricks":
        return Path(os.path.abspath(uri)).as_uri()
    return uri


def problem(uri: str) -> str | None:
    """Return why this MLflow would refuse a URI, None if it would not; nothing is connected to.

    MLflow 3 refuses to write to a folder of files unless an environment variable permits it.
    """
    scheme = urllib.parse.urlsplit(uri).scheme.partition("+")[0]
    if uri == "databricks":
        return None
    if scheme in ("", "file"):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
            return None
        path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(uri).path))
        if path.is_file() or path.suffix in (".db", ".sqlite", ".sqlite3"):
            return (
                "`--tracking-uri` (or MLFLOW_TRACKING_URI) of a database file must start with "
                f"sqlite:///; for {path} give {sqlite_uri(path)}."
            )
        return (
            "MLflow no longer stores runs in a folder of files, so `--tracking-uri` (or "
            "MLFLOW_TRACKING_URI) must be a database or a server, such as sqlite:///mlflow.db or "
            f"http://127.0.0.1:5000; got {redacted(uri)!r}. To use the folder nevertheless, set "
            "MLFLOW_ALLOW_FILE_STORE=true."
        )
    known = {*_SCHEMES, *(plugin.name for plugin in entry_points(group="mlflow.tracking_store"))}
    if scheme in known:
        return None
    return (
        "`--tracking-uri` (or MLFLOW_TRACKING_URI) must start with one of "
        f"{', '.join(f'{each}:' for each in sorted(known))}; got {redacted(uri)!r}."
    )
