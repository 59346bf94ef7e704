"""The real images that benchmarks work on: a Tiny ImageNet archive, extracted and prepared once.

`TINY_IMAGENET` names the archive, in the official layout; a part of it will do.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

SIZE_PX = 64


def archive() -> Path:
    """Return the archive's path.

    Raises:
        SystemExit: there is none.
    """
    default = Path(__file__).parents[2] / "shared/data/tiny-imagenet-200-sample.zip"
    path = Path(os.environ.get("TINY_IMAGENET", default)).absolute()
    if not path.exists():
        raise SystemExit(
            "This benchmark needs Tiny ImageNet: set TINY_IMAGENET to the path of "
            f"tiny-imagenet-200.zip or of a part of it in the same layout; {path} is missing."
        )
    return path


def _cache() -> Path:
    source = archive()
    state = source.stat()
    key = hashlib.sha256(f"{source} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:12]
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "sweep-orchestrator-benchmarks" / key


def extracted() -> Path:
    """Return the folder of the extracted archive, which has `train/<class>/images/*.JPEG`."""
    folder = _cache() / "extracted"
    if not folder.exists():
        building = folder.with_name("extracting")
        with zipfile.ZipFile(archive()) as file:
            file.extractall(building)
        building.rename(folder)
    (found,) = folder.glob("*/train")
    return found.parent


def prepared() -> Path:
    """Return the prepared dataset's folder, in a data folder of its own."""
    from orchestrator.data.prepare import prepare

    data_dir = _cache() / "data"
    data_dir.mkdir(parents=True, exist_ok=True)
    return prepare("tinyimagenet", data_dir=data_dir, source=str(archive()), progress=False)
