"""Command-line arguments for locations, the same in every command.

Each function takes the `add_argument` of a parser or of a group.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from orchestrator.storage import tracking_uri
from orchestrator.storage.paths import path_or_address


def add_storage(add: Callable[..., Any]) -> None:
    """Add `--storage`, a path or the text of a URL."""
    add(
        "--storage",
        type=path_or_address,
        default=path_or_address(os.environ.get("SWEEP_STORAGE") or "results"),
        metavar="FOLDER|URL",
        help="where sweeps are stored: a folder or a URL (s3://bucket/prefix or file:///folder) "
        "(default: SWEEP_STORAGE, else results)",
    )


def add_data_dir(add: Callable[..., Any]) -> None:
    """Add `--data-dir`, a path or the text of a URL."""
    add(
        "--data-dir",
        type=path_or_address,
        default=path_or_address(os.environ.get("SWEEP_DATA_DIR") or "data"),
        metavar="FOLDER|URL",
        help="where prepared datasets are stored: a folder, or a URL (s3://bucket/prefix or "
        "file:///folder) from which each host fetches them once (default: SWEEP_DATA_DIR, else "
        "data)",
    )


def add_tracking_uri(add: Callable[..., Any]) -> None:
    """Add `--tracking-uri`, a text or None."""
    add(
        "--tracking-uri",
        type=tracking_uri.absolute,
        default=os.environ.get("MLFLOW_TRACKING_URI") or None,
        metavar="URI",
        help="MLflow's tracking URI (default: MLFLOW_TRACKING_URI, else a SQLite file in the "
        "storage folder or, if that is not on a local disk, in ~/.cache/sweep-orchestrator)",
    )
