"""Prepared datasets on disk: folders that are written once, read, and verified."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestratorError, UsageError, unknown_name
from orchestrator.storage.paths import DATASET_MANIFEST
from trainables import files

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    import numpy as np
    import numpy.typing as npt

    from orchestrator.data.arrow import Histogram, SplitFile
    from orchestrator.data.sources.source import Contents
    from trainables.data.dataset import Manifest

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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.manifest.height_px, self.manifest.width_px, self.manifest.channels


def prepared(data_dir: Path) -> list[PreparedDataset]:
    """Return all prepared datasets by name; other folders are skipped."""
    return [read_prepared(data_dir / name) for name in prepared_names(data_dir)]


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder} is not a prepared dataset ({type(error).__name__}: {error}). Delete it and "
            "prepare it again, or choose another name with `--as NAME`."
        ) from error


def _from_manifest(folder: Path, content: bytes, disk_bytes: int) -> PreparedDataset:
    """Return the dataset of a `manifest.json`; a wrong value raises one of many errors."""
    from trainables.data.dataset import manifest_from

    raw = json.loads(content)
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']!r} instead of {FORMAT}")
    return PreparedDataset(
        folder=folder,
        manifest=manifest_from(raw),
        kind=raw["kind"],
        source=raw["source"]["address"],
        source_sha256=raw["source"]["sha256"],
        files={name: (entry["file"], entry["sha256"]) for name, entry in raw["splits"].items()},
        disk_bytes=disk_bytes,
    )


def prepared_at(address: str) -> list[PreparedDataset]:
    """Return all prepared datasets at an address by name; only manifests are fetched.

    Raises:
        StorageError: the address cannot be read.
    """
    from orchestrator.data.share import manifests

    found = []
    for name, (content, size) in sorted(manifests(address).items()):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # as in a folder
            found.append(_from_manifest(Path(name), content, size))
    return found


def prepared_names(data_dir: Path) -> list[str]:
    """Return the names of all prepared datasets, sorted."""
    names = []
    for path in sorted(data_dir.glob(f"[!.]*/{DATASET_MANIFEST}")):
        try:
            names.append(read_prepared(path.parent).folder.name)
        except UsageError:
            continue
    return names


def verify(name: str, data_dir: Path) -> list[str]:
    """Return the problems of a prepared dataset, compared with its manifest byte by byte.

    Returns:
        One sentence per problem.

    Raises:
        UsageError: there is no such prepared dataset.
    """
    from orchestrator.data.arrow import checked_split, digests

    folder = data_dir / name
    if not folder.is_dir():
        raise UsageError(unknown_name("prepared dataset", name, prepared_names(data_dir)))
    try:
        found = read_prepared(folder)
    except UsageError as error:
        return [str(error)]
    problems: list[str] = []
    splits: dict[str, SplitFile] = {}
    for split, (file, _) in found.files.items():
        try:
            splits[split], pixels = checked_split(folder / file, found.shape)
        except OrchestratorError as error:
            problems.append(str(error))
            continue
        problems += _label_problems(found, split, splits[split])
        if split == "train":
            problems += _statistics_problems(found, pixels)
    if len(splits) == len(found.files):
        fingerprint, sums = digests(splits, found.manifest.class_names)
        problems += [
            f"{file} was changed: its SHA-256 is {sums[split]}."
            for split, (file, expected) in found.files.items()
            if sums[split] != expected
        ]
        if fingerprint != found.manifest.fingerprint:
            problems.append(
                f"The fingerprint must be {found.manifest.fingerprint}; it is {fingerprint}."
            )
    return problems


def _label_problems(found: PreparedDataset, split: str, file: SplitFile) -> list[str]:
    problems = []
    labels, expected = file.labels, found.manifest.images[split]
    classes = len(found.manifest.class_names)
    if len(labels) != expected:
        problems.append(f"{split} must hold {expected} images; it holds {len(labels)}.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        problems.append(f"{split} has labels outside 0 to {classes - 1}.")
    return problems


def _statistics_problems(found: PreparedDataset, pixels: npt.NDArray[np.uint8]) -> list[str]:
    import numpy as np

    from orchestrator.data.arrow import histogram, mean_and_std

    channels = found.shape[2]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(pixels), 1024):
        counts += histogram(pixels[start : start + 1024], channels)
    got = mean_and_std(counts)
    if np.allclose(got, (found.manifest.mean, found.manifest.std), rtol=0, atol=1e-9):
        return []
    return [f"The manifest's mean and std must be those of train, {got}."]


def write_prepared(
    folder: Path, source: Path, contents: Contents, about: dict[str, Any], *, shown: bool
) -> None:
    """Write all splits into an empty folder, and the manifest last.

    Args:
        folder: a temporary one, which the caller renames.
        source: the archive or folder of the contents' members.
        contents: the dataset.
        about: the manifest's entries on the dataset's origin.
        shown: whether to report progress on standard error.

    Raises:
        UsageError: an image cannot be used, or the disk is too full.
    """
    from orchestrator.data.arrow import create_split, digests, mean_and_std
    from orchestrator.data.decode import decoders

    needed = sum(len(part.labels) for part in contents.splits.values())
    needed *= contents.shape[0] * contents.shape[1] * contents.shape[2]
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise UsageError(
            f"{folder.parent} must have {needed / 2**30:.2f} GiB free for this dataset; it has "
            f"{free / 2**30:.2f} GiB. Free some space or choose another `--data-dir`."
        )
    splits: dict[str, SplitFile] = {}
    counts: dict[str, Histogram] = {}
    to_decode = sum(len(part.members) for part in contents.splits.values())
    with decoders(to_decode) as pool:
        for name, part in contents.splits.items():
            splits[name] = create_split(
                folder / f"{name}.arrow",
                shape=contents.shape,
                labels=part.labels,
                coarse_labels=part.coarse_labels,
            )
            counts[name] = _fill(splits[name], source, contents, name, pool, shown)
    with ThreadPoolExecutor(1) as disk:  # the disk writes while the cores hash
        stored = [disk.submit(files.fsync, split.path) for split in splits.values()]
        fingerprint, sums = digests(splits, contents.class_names)
        for each in stored:
            each.result()
    mean, std = mean_and_std(counts["train"])
    manifest = {
        "format": FORMAT,
        **about,
        "class_names": list(contents.class_names),
        **contents.extra,
        "height_px": contents.shape[0],
        "width_px": contents.shape[1],
        "channels": contents.shape[2],
        "splits": {
            name: {"file": split.path.name, "images": len(split.labels), "sha256": sums[name]}
            for name, split in splits.items()
        },
        "mean": mean,
        "std": std,
        "fingerprint": fingerprint,
        "tool_version": _version(),
        "prepared_at_s": time.time(),
    }
    (folder / DATASET_MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def _fill(
    split: SplitFile,
    source: Path,
    contents: Contents,
    name: str,
    pool: ProcessPoolExecutor | None,
    shown: bool,
) -> Histogram:
    """Write the pixels of one split and return its histogram."""
    from orchestrator.data.arrow import histogram, write_pixels

    part = contents.splits[name]
    if part.pixels is not None:
        write_pixels(split, part.pixels)
        return histogram(part.pixels, contents.shape[2])
    from orchestrator.data.archives import read_members
    from orchestrator.data.decode import decode_split
    from orchestrator.data.progress import progress

    row_of = {member: row for row, member in enumerate(part.members)}
    with progress(f"Decoding {name}", total=len(row_of), unit="images", shown=shown) as update:
        return decode_split(
            split,
            read_members(source, part.members),
            row_of,
            resize=contents.resize,
            pool=pool,
            update=update,
        )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sweep-orchestrator")
    except PackageNotFoundError:
        return "not installed"
