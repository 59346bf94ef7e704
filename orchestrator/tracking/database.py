"""Creates MLflow's database file, and corrects its artifact locations after it was moved."""

from __future__ import annotations

import os
import re
import sqlite3
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path

from orchestrator.storage.paths import SweepPaths

_ABANDONED_AFTER_S = 600  # age of an unfinished file whose process was killed; it takes seconds


def create(uri: str) -> None:
    """Create the SQLite file of a store, whole or not at all, unless it exists.

    MLflow creates it in hundreds of steps and cannot open a file whose creation was interrupted
    ("table _alembic_tmp_tags already exists").
    """
    if not uri.startswith("sqlite:///") or "?" in uri:
        return
    path = Path(uri.removeprefix("sqlite:///"))
    for left in path.parent.glob(f".{path.name}.*.new*"):
        with suppress(FileNotFoundError):  # another driver deleted it first
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
                left.unlink()
    if path.exists():
        return
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - defines the tables
    from mlflow.store.db import utils

    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{new}")
    try:
        utils._initialize_tables(engine)
        engine.dispose()
        _put_in_place(new, path)
    finally:
        engine.dispose()
        new.unlink(missing_ok=True)


def _put_in_place(new: Path, path: Path) -> None:
    try:
        os.link(new, path)  # unlike renaming, it never replaces a file
    except OSError:  # another process created it first, or there are no hard links
        if not path.exists():
            new.rename(path)


def relocate(paths: SweepPaths, wait_s: float = 20.0) -> list[str]:
    """Point the experiments of the default database to the artifacts beside it.

    This is needed after the folder was moved or copied: MLflow stores absolute locations and has no
    command to change them. Only locations that this program chose are changed.

    Args:
        paths: a sweep's; the artifacts of other sweeps that were moved with it are included.
        wait_s: how long to wait while another program locks the database.

    Returns:
        The names of the experiments whose locations were changed.

    Raises:
        sqlite3.Error: the database is locked or damaged.
    """
    database = paths.mlflow_database
    if not database.is_file():
        return []
    address = f"{database.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=wait_s, isolation_level=None)) as store:
        known = store.execute(
            "SELECT count(*) FROM sqlite_master WHERE name IN ('experiments', 'runs')"
        ).fetchone()
        if known[0] < 2:  # its tables do not exist yet
            return []
        moved = []
        for number, name, old in store.execute(
            "SELECT experiment_id, name, artifact_location FROM experiments"
        ).fetchall():
            folder = paths.artifacts / name
            new = folder.absolute().as_uri()
            is_ours = re.fullmatch(rf"file:.*/{paths.artifacts.name}/{re.escape(name)}", old or "")
            if is_ours and old != new and (name == paths.name or folder.is_dir()):
                moved.append((number, name, old, new))
        if moved:
            store.execute("BEGIN IMMEDIATE")  # rolled back if an error closes the connection
            for number, _, old, new in moved:
                store.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
                    (new, number),
                )
                store.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?)"
                    " WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                    (new, len(old) + 1, number, len(old) + 1, f"{old}/"),
                )
            store.execute("COMMIT")
        return [name for _, name, _, _ in moved]
