"""MLflow's database file after its folder was moved or copied: artifacts lie where it lies now.

MLflow stores absolute places and offers no command that changes them. Only the default database
of a storage folder is touched, and only places that this program chose in it.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

from orchestrator.paths import SweepPaths


def relocate(paths: SweepPaths, wait_s: float = 20.0) -> list[str]:
    """Point the experiments of the default database to the artifacts beside it.

    Args:
        paths: of a sweep; other sweeps' artifacts follow where they were moved along.
        wait_s: for whoever holds the database locked.

    Returns:
        The names of the experiments that were somewhere else.

    Raises:
        sqlite3.Error: the database is locked or damaged.
    """
    database = paths.storage / "mlflow.db"
    if not database.is_file():
        return []
    address = f"{database.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=wait_s, isolation_level=None)) as store:
        known = store.execute(
            "SELECT count(*) FROM sqlite_master WHERE name IN ('experiments', 'runs')"
        ).fetchone()
        if known[0] < 2:  # not set up yet
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
            store.execute("BEGIN IMMEDIATE")  # rolled back when the connection closes early
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
