"""Prepared datasets on disk: folders that are written once, read, and verified."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data import arrow
from orchestrator.data.archives.read import read_members
from orchestrator.data.decode import decode_split, decoders
from orchestrator.data.progress import progress
from orchestrator.data.sources.source import Contents
from orchestrator.errors import OrchestratorError, UsageError, unknown_name
from orchestrator.storage.paths import DATASET_MANIFEST
from orchestrator.storage.store import open_storage
from trainables import files
from trainables.data.dataset import Manifest, manifest_from

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedDataset:
    """A prepared dataset: its manifest as training reads it, and where it comes from."""

    folder: Path
    manifest: Manifest
    kind: str  # of the known datasets
    source: str  # path or address
    source_sha256: str
    files: dict[str, tuple[str, str]]  # by split: name and SHA-256
    disk_bytes: int
    test_split: str = ""  # which images it holds; "": prepared by an older version
    skipped_files: int = 0  # hidden files, text and data in the source
    first_skipped: str = ""
    notes: tuple[str, ...] = ()  # sentences on what was done with the source

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.manifest.height_px, self.manifest.width_px, self.manifest.channels


def prepared(data_dir: Path) -> list[PreparedDataset]:
    """Return all prepared datasets by name; other folders are skipped."""
    found = []
    for path in sorted(data_dir.glob(f"[!.]*/{DATASET_MANIFEST}")):
        with contextlib.suppress(UsageError):
            found.append(read_prepared(path.parent))
    return found


def prepared_at(address: str) -> list[PreparedDataset]:
    """Return all prepared datasets at an address by name; only manifests are fetched.

    Raises:
        StorageError: the address cannot be read.
    """
    storage, found = open_storage(address), []
    for name in sorted(storage.folders()):
        content = storage.get(f"{name}/{DATASET_MANIFEST}")
        if content is not None:
            others = [file for file in storage.files(name) if file != DATASET_MANIFEST]
            size = sum(storage.size(f"{name}/{file}") or 0 for file in others)
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                found.append(_from_manifest(Path(name), content, size))
    return found


def read_prepared(folder: Path) -> PreparedDataset:
    """Read the manifest of a prepared dataset.

    Raises:
        UsageError: the folder holds no prepared dataset of this format, or a file is missing.
    """
    try:
        content = (folder / DATASET_MANIFEST).read_bytes()
        entries = json.loads(content)["splits"].values()
        size = sum((folder / entry["file"]).stat().st_size for entry in entries)
        return _from_manifest(folder, content, size)
    except PermissionError as error:
        raise UsageError(f"{folder} cannot be read: {error}. Check its owner and mode.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder} is not a prepared dataset ({type(error).__name__}: {error}). Delete it and "
            "prepare it again, or choose another name with `--as NAME`."
        ) from error


def _from_manifest(folder: Path, content: bytes, disk_bytes: int) -> PreparedDataset:
    """Return the dataset of a `manifest.json`; a wrong value raises one of many errors."""
    raw = json.loads(content)
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']!r} instead of {FORMAT}")
    return PreparedDataset(
        folder=folder,
        manifest=manifest_from(raw),
        kind=raw["kind"],
        # A path can have bytes that are no UTF-8, which cannot be printed.
        source=raw["source"]["address"].encode(errors="backslashreplace").decode(),
        source_sha256=raw["source"]["sha256"],
        files={name: (entry["file"], entry["sha256"]) for name, entry in raw["splits"].items()},
        disk_bytes=disk_bytes,
        test_split=raw.get("test_split", ""),
        skipped_files=raw.get("skipped_files", 0),
        first_skipped=raw.get("first_skipped_file", ""),
        notes=tuple(raw.get("notes", ())),
    )


def verify(name: str, data_dir: Path) -> list[str]:
    """Return the problems of a prepared dataset, compared with its manifest byte by byte.

    Raises:
        UsageError: there is no such prepared dataset.
    """
    folder = data_dir / name
    if not folder.is_dir():
        names = [each.folder.name for each in prepared(data_dir)]
        raise UsageError(unknown_name("prepared dataset", name, names))
    try:
        found = read_prepared(folder)
    except UsageError as error:
        return [str(error)]
    problems: list[str] = []
    splits: dict[str, arrow.SplitFile] = {}
    for split, (file, _) in found.files.items():
        try:
            splits[split], pixels = arrow.checked_split(folder / file, found.shape)
        except OrchestratorError as error:
            problems.append(str(error))
            continue
        problems += _label_problems(found, split, splits[split].labels)
        if split == "train":
            problems += _statistics_problems(found, pixels)
    if len(splits) == len(found.files):
        fingerprint, sums = arrow.digests(splits, found.manifest.class_names)
        problems += [
            f"{file} was changed: its SHA-256 is {sums[split]}."
            for split, (file, expected) in found.files.items()
            if sums[split] != expected
        ]
        wanted = found.manifest.fingerprint
        if fingerprint != wanted:
            problems.append(f"The fingerprint must be {wanted}; it is {fingerprint}.")
    return problems


def _label_problems(found: PreparedDataset, split: str, labels: arrow.Labels) -> list[str]:
    problems = []
    expected, classes = found.manifest.images[split], len(found.manifest.class_names)
    if len(labels) != expected:
        problems.append(f"{split} must hold {expected} images; it holds {len(labels)}.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        problems.append(f"{split} has labels outside 0 to {classes - 1}.")
    return problems


def _statistics_problems(found: PreparedDataset, pixels: arrow.Pixels) -> list[str]:
    channels = found.shape[2]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(pixels), 1024):
        counts += arrow.histogram(pixels[start : start + 1024], channels)
    got = arrow.mean_and_std(counts)
    if np.allclose(got, (found.manifest.mean, found.manifest.std), rtol=0, atol=1e-9):
        return []
    return [f"The manifest's mean and std must be those of train, {got}."]


def write_prepared(
    folder: Path, source: Path, contents: Contents, about: dict[str, Any], *, shown: bool
) -> None:
    """Write all splits into an empty folder, and the manifest last.

    `folder` is a temporary one, which the caller renames; `source` is the archive or folder of the
    contents' members; `about` holds the manifest's entries on the dataset's origin. With `shown`,
    progress is reported on standard error.

    Raises:
        UsageError: an image cannot be used, or the disk is too full.
    """
    parts = contents.splits.values()
    needed = sum(len(part.labels) for part in parts) * math.prod(contents.shape)
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise UsageError(
            f"{folder.parent} must have {needed / 2**30:.2f} GiB free for this dataset; it has "
            f"{free / 2**30:.2f} GiB. Free some space or choose another `--data-dir`."
        )
    with decoders(sum(len(part.members) for part in parts)) as pool:
        written = {
            name: _write_split(folder, name, source, contents, pool, shown)
            for name in contents.splits
        }
    splits = {name: split for name, (split, _) in written.items()}
    with ThreadPoolExecutor(1) as disk:  # the disk writes while the cores hash
        stored = disk.map(files.fsync, [split.path for split in splits.values()])
        fingerprint, sums = arrow.digests(splits, contents.class_names)
        list(stored)  # raises the error of a failed one
    if contents.resize:  # the user's own images; what published ones hold is known
        contents.extra["notes"] += _copies_note(splits)
    mean, std = arrow.mean_and_std(written["train"][1])
    height_px, width_px, channels = contents.shape
    versions = (found.version for found in distributions(name="sweep-orchestrator"))
    manifest = {
        "format": FORMAT,
        **about,
        "class_names": list(contents.class_names),
        **contents.extra,
        "height_px": height_px,
        "width_px": width_px,
        "channels": channels,
        "splits": {
            name: {"file": split.path.name, "images": len(split.labels), "sha256": sums[name]}
            for name, split in splits.items()
        },
        "mean": mean,
        "std": std,
        "fingerprint": fingerprint,
        "tool_version": next(versions, "not installed"),
        "prepared_at_s": time.time(),
    }
    (folder / DATASET_MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def _copies_note(splits: dict[str, arrow.SplitFile]) -> list[str]:
    """Return a sentence if test images are training images too, which raises test accuracy."""
    train = set(arrow.image_digests(splits["train"]))
    test = list(arrow.image_digests(splits["test"]))
    copies = sum(digest in train for digest in test)
    if not copies:
        return []
    return [
        f"{copies:,} of {len(test):,} test images have the same pixels as a training image, so "
        "test accuracy will be too high; remove the copies from the source."
    ]


def _write_split(
    folder: Path, name: str, source: Path, contents: Contents, pool: Executor | None, shown: bool
) -> tuple[arrow.SplitFile, arrow.Histogram]:
    """Write one split and return its histogram with it."""
    part = contents.splits[name]
    split = arrow.create_split(
        folder / f"{name}.arrow", contents.shape, part.labels, part.coarse_labels
    )
    if part.pixels is not None:
        with split.path.open("r+b") as file:
            file.seek(split.pixels_at)
            file.write(np.ascontiguousarray(part.pixels).data.cast("B"))
        return split, arrow.histogram(part.pixels, contents.shape[2])
    row_of = {member: row for row, member in enumerate(part.members)}
    members = read_members(source, part.members)
    with progress(f"Decoding {name}", total=len(row_of), unit="images", shown=shown) as update:
        counts = decode_split(
            split, members, row_of, resize=contents.resize, pool=pool, update=update
        )
    return split, counts
