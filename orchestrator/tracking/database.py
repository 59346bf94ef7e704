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
from orchestrator.storage.tracking_uri import sqlite_file, sqlite_uri
from trainables import files

# Columns with absolute locations of artifacts, besides those of experiments.
_LOCATIONS = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    *(("model_versions", "source"), ("model_versions", "storage_location")),
)
_ABANDONED_AFTER_S = 600  # age of an unfinished file whose process was killed; it takes seconds


def create(uri: str) -> None:
    """Create the SQLite file of a store, whole or not at all, unless it exists.

    MLflow creates it in hundreds of steps and cannot open a file whose creation was interrupted
    ("table _alembic_tmp_tags already exists").
    """
    if (path := sqlite_file(uri)) is None:
        return
    for left in path.parent.glob(f".{path.name}.*.new*"):
        with suppress(FileNotFoundError):  # another driver deleted it first
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
                left.unlink()
    if path.exists():
        return
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - defines the tables
    from mlflow.store.db import utils

    with files.temporary(path, f"{uuid.uuid4().hex}.new") as new:
        engine = utils.create_sqlalchemy_engine(sqlite_uri(new))
        try:
            utils._initialize_tables(engine)
        finally:
            engine.dispose()
        _put_in_place(new, path)


def _put_in_place(new: Path, path: Path) -> None:
    try:
        os.link(new, path)  # unlike renaming, it never replaces a file
    except OSError:  # another process created it first, or there are no hard links
        if not path.exists():
            new.rename(path)


def upgrade_from(uri: str) -> str | None:
    """Return the schema version of a database that MLflow upgrades on opening it, else None.

    MLflow does so, and says nothing, if the file lacks tables that its own version has.
    """
    path = sqlite_file(uri)
    if path is None or not path.is_file():
        return None
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as store:
        try:
            names = {row[0] for row in store.execute("SELECT name FROM sqlite_master")}
            version = store.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.Error:  # not a database, or MLflow has not created its tables yet
            return None
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - defines the tables
    from mlflow.store.db.base_sql_model import Base

    return str(version[0]) if version and not names.issuperset(Base.metadata.tables) else None


def keep_older(uri: str) -> Path | None:
    """Copy a database that MLflow will upgrade; return the copy, None if it will not."""
    path, version = sqlite_file(uri), upgrade_from(uri)
    if path is None or version is None:
        return None
    copy = path.with_name(f"{path.stem}.before-{version}{path.suffix}")
    if not copy.exists():  # else an earlier command made it, and was killed during the upgrade
        with files.temporary(copy) as new:
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(new)) as target:
                source.backup(target)
            files.put_in_place(new, copy)
    return copy


def _move(store: sqlite3.Connection, old: str, new: str) -> None:
    """Replace the beginning of every location of runs, logged models and registered versions."""
    for table, column in _LOCATIONS:
        exists = "SELECT 1 FROM pragma_table_info(?) WHERE name = ?"
        if store.execute(exists, (table, column)).fetchone():  # a database of an older version
            store.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                f" WHERE substr({column}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            )


def relocate(paths: SweepPaths, wait_s: float = 20.0) -> list[str]:
    """Point experiments of the default database to the artifacts beside it; return the sweeps.

    This is needed after the folder was moved or copied: MLflow stores absolute locations and has no
    command to change them. Only locations that this program chose are changed, also those of other
    sweeps that were moved with this one. Waits up to `wait_s` while another program locks the
    database.

    Raises:
        sqlite3.Error: the database is locked or damaged.
    """
    if not paths.mlflow_database.is_file():
        return []
    address = f"{paths.mlflow_database.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=wait_s, isolation_level=None)) as store:
        tables = "SELECT name FROM sqlite_master WHERE name IN ('experiments', 'runs')"
        if len(store.execute(tables).fetchall()) < 2:  # they do not exist yet
            return []
        moved = []
        known = "SELECT experiment_id, artifact_location FROM experiments"
        for number, old in store.execute(known).fetchall():
            # The sweep's name, which is not the experiment's after that was renamed.
            found = re.fullmatch(rf"file:.*/{paths.artifacts.name}/([^/%]+)", old or "")
            name = found[1] if found else ""
            folder = paths.artifacts / name
            new = folder.absolute().as_uri()
            if found and old != new and (name == paths.name or folder.is_dir()):
                moved.append((number, name, old, new))
        if moved:
            store.execute("BEGIN IMMEDIATE")  # rolled back if an error closes the connection
            for number, _, old, new in moved:
                change = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
                store.execute(change, (new, number))
                _move(store, old, new)
            store.execute("COMMIT")
        return [name for _, name, _, _ in moved]
