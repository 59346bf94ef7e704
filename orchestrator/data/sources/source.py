"""The contents of a source: classes, splits, labels, and the member or array of every image.

Each reader beside this file returns `Contents` and decodes no image. Counts come from the content,
so that a part of an official archive in the official layout can be prepared like the whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.known_datasets import KNOWN
from orchestrator.errors import UsageError

_MAX_LISTED = 10  # problems in one error
# Left behind by operating systems and file servers.
_SYSTEM_FILES = {"__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"}
_SYSTEM_FILES |= {"system volume information", "lost+found", "@eadir", "#recycle", "@recycle"}
# Text and data, which people keep beside their images. A web page may be a failed download of one.
_OTHER_FILES = re.compile(
    r".*\.(txt|md|rst|csv|tsv|json|jsonl|xml|ya?ml|ini|log|py|ipynb|xlsx?|db|mat"
    r"|npy|npz|pkl|pickle|h5|parquet|lnk|url|sha256|md5)|(readme|license|licence|makefile)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Labels with either the pixels or the names of the members to decode."""

    labels: npt.NDArray[np.int64]  # (n,)
    coarse_labels: npt.NDArray[np.int64] | None = None  # (n,)
    pixels: npt.NDArray[np.uint8] | None = None  # (n, height, width, channels)
    members: tuple[str, ...] = ()  # (n,) where there are no pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """A dataset before it is written."""

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # height, width, channels
    splits: dict[str, Split]  # "train" and "test"
    resize: bool = False
    extra: dict[str, Any]  # further entries of the manifest, such as `class_ids`


def stratified_mask(labels: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.bool_]:
    """Return a mask (n,) of a random fraction of every class: at least one image and not all.

    `RandomState` with seed 0: numpy guarantees that its stream never changes (NEP 19).
    """
    random = np.random.RandomState(0)
    chosen = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        chosen[rows[:count]] = True
    return chosen


def is_no_image(name: str) -> bool:
    """Return whether a name is of a hidden file, one of an operating system, or text or data."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part.lower() in _SYSTEM_FILES for part in parts)
    return hidden or _OTHER_FILES.fullmatch(parts[-1]) is not None


def members(labels: dict[str, int]) -> Split:
    """Return a split ordered by label and natural name, whatever order the source has."""
    ordered = tuple(sorted(labels, key=lambda name: (labels[name], _natural(name), name)))
    return Split(labels=np.array([labels[name] for name in ordered], np.int64), members=ordered)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `x_10` behind `x_9`."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def layout_error(source: Path, kind: str, missing: str, names: Sequence[str]) -> UsageError:
    """Return the error for a source without its official layout; `names` are its members."""
    shown = [name for name in names if not name.rpartition("/")[2].startswith(".")][:3]
    more = f" and {len(names) - len(shown)} other files" if len(names) > len(shown) else ""
    but = f", but {', '.join(map(repr, shown))}{more}" if shown else ""
    official = KNOWN[kind].address.rpartition("/")[2]
    return UsageError(
        f"{source} must be in the official layout of {kind}; it holds no {missing!r}{but}. Give "
        f"the archive as it was published ({official}), or its extracted folder."
    )


def raise_all(source: Path, problems: list[str]) -> None:
    """Raise a UsageError that lists the problems of a source, if there are any."""
    if problems:
        distinct = list(dict.fromkeys(problems))
        more = f" And {len(distinct) - _MAX_LISTED} more." if len(distinct) > _MAX_LISTED else ""
        raise UsageError(f"{source} was refused. {' '.join(distinct[:_MAX_LISTED])}{more}")
