"""What each source holds: classes, splits, labels, and which member or array holds which image.

One function per layout; all return `Contents`. Counts come from the content, so that a part of an
official archive in the official layout is as good as the whole. No image is decoded here, and no
state is held.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.archives import member_names, read_small
from orchestrator.cifar_pickle import load_cifar_pickle
from orchestrator.errors import UsageError

DIGITS_HELD_OUT = 0.2
FOLDER_HELD_OUT = 0.1
# One image each for training, validation and test; or for training and validation.
MIN_PER_CLASS_TO_SPLIT = 3
MIN_PER_CLASS = 2
_SHOWN = 10
_DROPPINGS = ("__MACOSX", "Thumbs.db", "desktop.ini")  # what systems leave behind, in effect hidden


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One split: labels with either the pixels or the names of the members to decode."""

    labels: npt.NDArray[np.int64]  # (n,)
    coarse_labels: npt.NDArray[np.int64] | None = None  # (n,)
    pixels: npt.NDArray[np.uint8] | None = None  # (n, height, width, channels)
    members: tuple[str, ...] = ()  # (n,) where there are no pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """A whole dataset before it is written."""

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # height, width, channels
    splits: dict[str, Part]  # "train" and "test"
    resize: bool = False
    # Further entries of the manifest, such as `class_ids`.
    extra: dict[str, Any]


def read_digits() -> Contents:
    """Return scikit-learn's 1,797 digits, 8 x 8 grey, 0..16 scaled to 0..255; 20 % held out.

    Source: UCI "Optical Recognition of Handwritten Digits", as `sklearn.datasets.load_digits`;
    the set has no official split there.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = raw.target.astype(np.int64)
    held_out = stratified_mask(labels, DIGITS_HELD_OUT)
    return Contents(
        class_names=tuple(str(name) for name in raw.target_names),
        shape=(8, 8, 1),
        splits={
            "train": Part(labels=labels[~held_out], pixels=pixels[~held_out]),
            "test": Part(labels=labels[held_out], pixels=pixels[held_out]),
        },
        extra={"held_out_fraction": DIGITS_HELD_OUT},
    )


def stratified_mask(labels: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.bool_]:
    """Choose a fraction of every class, at least one image and not all, with seed 0.

    `RandomState` is used because numpy guarantees its stream for good (NEP 19).

    Args:
        labels: (n,).
        fraction: 0 to 1.

    Returns:
        True for the chosen, (n,).
    """
    random = np.random.RandomState(0)
    chosen = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        chosen[rows[:count]] = True
    return chosen


def read_tinyimagenet(source: Path) -> Contents:
    """Read the layout of `tiny-imagenet-200.zip`; its labelled `val` folder is the test split.

    Raises:
        UsageError: an unknown class, a missing or unlisted file, or another layout.
    """
    names = member_names(source)
    lists = [name for name in names if name.rpartition("/")[2] == "wnids.txt"]
    if not lists:
        raise _layout(source, "Tiny ImageNet", "wnids.txt")
    root = min(lists, key=len).removesuffix("wnids.txt")
    needed = [f"{root}{name}" for name in ("wnids.txt", "words.txt", "val/val_annotations.txt")]
    for name in needed:
        if name not in names:
            raise _layout(source, "Tiny ImageNet", name)
    wnids_text, words, annotations = _texts(source, needed)
    wnids = sorted(set(wnids_text.split()))
    index = {wnid: label for label, wnid in enumerate(wnids)}
    problems: list[str] = []

    train: dict[str, int] = {}
    held_out: set[str] = set()
    for name in names:
        parts = name.removeprefix(root).split("/")
        if parts[-1].startswith("."):
            continue
        if len(parts) == 4 and parts[0] == "train" and parts[2] == "images":
            if parts[1] in index:
                train[name] = index[parts[1]]
            else:
                problems.append(f"The class of {name!r} is not listed in wnids.txt.")
        elif parts[:2] == ["val", "images"] and len(parts) == 3:
            held_out.add(name)
    test = _annotated(f"{root}val/", annotations, index, held_out, problems)
    missing = sorted(set(wnids) - {wnids[label] for label in train.values()})
    problems += [f"The class {wnid!r} has no training image." for wnid in missing]
    if not test:
        problems.append(f"{root}val/val_annotations.txt lists no image.")
    _raise_all(source, problems)

    readable = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    return Contents(
        class_names=tuple(readable.get(wnid, wnid).split(",")[0].strip() for wnid in wnids),
        shape=(64, 64, 3),
        splits={"train": _members(train), "test": _members(test)},
        extra={"class_ids": wnids},
    )


def _annotated(
    folder: str, text: str, index: dict[str, int], present: set[str], problems: list[str]
) -> dict[str, int]:
    """Return the label of each file in val_annotations.txt; what is wrong goes to `problems`."""
    labels: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        name = f"{folder}images/{file}"
        where = f"Line {number} of {folder}val_annotations.txt"
        if wnid not in index:
            problems.append(f"{where} gives {file!r} the class {wnid!r}, which is unknown.")
        elif name not in present:
            problems.append(f"{where} names {name!r}, which is missing.")
        elif name in labels:
            problems.append(f"{where} names {file!r} a second time.")
        else:
            labels[name] = index[wnid]
    if not problems:
        unlisted = sorted(present - set(labels))
        problems += [f"{name!r} is not listed in val_annotations.txt." for name in unlisted]
    return labels


def read_cifar(source: Path, coarse: bool) -> Contents:
    """Read the layout of the CIFAR-10 (or, with `coarse`, CIFAR-100) python archive.

    Raises:
        UsageError: a batch is missing, damaged or inconsistent, or asks for code.
    """
    title = "CIFAR-100" if coarse else "CIFAR-10"
    train = ["train"] if coarse else [f"data_batch_{number}" for number in range(1, 6)]
    test, meta = ("test", "meta") if coarse else ("test_batch", "batches.meta")
    # The batches lie beside each other in one folder; the shallowest is meant.
    found: dict[str, str] = {}
    for name in sorted(member_names(source), key=lambda name: (name.count("/"), name)):
        found.setdefault(PurePosixPath(name).name, name)
    for file in (*train, test, meta):
        if file not in found:
            raise _layout(source, title, file)
    raw = read_small(source, [found[file] for file in (*train, test, meta)])
    loaded = {
        file: load_cifar_pickle(raw[found[file]], found[file]) for file in (*train, test, meta)
    }
    key = "fine_label_names" if coarse else "label_names"
    names = _names(loaded[meta], key, found[meta])
    coarse_names = _names(loaded[meta], "coarse_label_names", found[meta]) if coarse else ()
    counts = (len(names), len(coarse_names))
    splits = {
        "train": _cifar_part([(found[f], loaded[f]) for f in train], counts),
        "test": _cifar_part([(found[test], loaded[test])], counts),
    }
    extra: dict[str, Any] = {}
    if coarse:
        extra = {
            "coarse_names": list(coarse_names),
            "fine_to_coarse": _fine_to_coarse(source, splits.values(), len(names)),
        }
    return Contents(class_names=names, shape=(32, 32, 3), splits=splits, extra=extra)


def _names(meta: dict[str, Any], key: str, member: str) -> tuple[str, ...]:
    values = meta.get(key)
    if not isinstance(values, list) or not values:
        raise UsageError(f"The pickle {member!r} must hold the list {key!r}; it does not.")
    return tuple(
        value.decode("latin1") if isinstance(value, bytes) else str(value) for value in values
    )


def _cifar_part(batches: Sequence[tuple[str, dict[str, Any]]], counts: tuple[int, int]) -> Part:
    """Join batches after checking each; `counts` are the numbers of fine and coarse classes."""
    pixels, labels, coarse_labels = [], [], []
    for member, batch in batches:
        data = batch.get("data")
        if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
            raise UsageError(f"The pickle {member!r} must hold 'data' as an array of n x 3072.")
        if not len(data):
            raise UsageError(f"The pickle {member!r} holds no image.")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        key = "fine_labels" if counts[1] else "labels"
        labels.append(_labels(batch, key, member, len(data), counts[0]))
        if counts[1]:
            coarse_labels.append(_labels(batch, "coarse_labels", member, len(data), counts[1]))
    return Part(
        labels=np.concatenate(labels),
        coarse_labels=np.concatenate(coarse_labels) if coarse_labels else None,
        pixels=np.concatenate(pixels),
    )


def _labels(
    batch: dict[str, Any], key: str, member: str, images: int, classes: int
) -> npt.NDArray[np.int64]:
    values = batch.get(key)
    if (
        not isinstance(values, list)
        or len(values) != images
        or not all(isinstance(value, int) and 0 <= value < classes for value in values)
    ):
        raise UsageError(
            f"The pickle {member!r} must hold {key!r} as {images} numbers from 0 to {classes - 1}."
        )
    return np.array(values, np.int64)


def _fine_to_coarse(source: Path, parts: Iterable[Part], classes: int) -> list[int]:
    """Return the coarse class of each fine one, -1 for a class without images."""
    pairs: set[tuple[int, int]] = set()
    for part in parts:
        assert part.coarse_labels is not None
        pairs |= set(zip(part.labels.tolist(), part.coarse_labels.tolist(), strict=True))
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise UsageError(f"{source} is inconsistent: a fine class has several coarse ones.")
    return [mapping.get(label, -1) for label in range(classes)]


def read_imagefolder(source: Path, side_px: int) -> Contents:
    """Read class folders, alone or under `train/` and `val/` (or `test/`).

    Hidden files are skipped. Without a held-out part, 10 % of every class become the test split.

    Raises:
        UsageError: files outside a class folder, unknown classes in the held-out part, or classes
            with too few images.
    """
    names = [
        name
        for name in member_names(source)
        if not any(part.startswith(".") or part in _DROPPINGS for part in name.split("/"))
    ]
    top = {name.split("/")[0] for name in names if "/" in name}
    # Only if nothing else is there: `train` and `test` could be classes among others.
    divided = "train" in top and top <= {"train", "val", "test"}
    depth = 3 if divided else 2
    problems = [
        f"The file {name!r} is not in a class folder ({'train/' if divided else ''}CLASS/FILE)."
        for name in names
        if name.count("/") != depth - 1
    ]
    if not names:
        problems.append("It holds no image.")
    if {"val", "test"} <= top and divided:
        problems.append(
            "It has both `val` and `test` beside `train`; validation images are split off from "
            "`train`, so keep one of them as the held-out part and move the other into `train`."
        )
    _raise_all(source, problems)

    folders: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        *split, label, _ = name.split("/")
        folders[split[0] if split else "train"][label].append(name)
    classes = sorted(folders["train"])
    index = {label: number for number, label in enumerate(classes)}
    other = [split for split in folders if split != "train"]
    _raise_all(source, _class_problems(folders, other))

    train = {name: index[label] for label in classes for name in folders["train"][label]}
    if other:
        held_out = folders[other[0]]
        test = {name: index[label] for label in sorted(held_out) for name in held_out[label]}
        parts, extra = {"train": _members(train), "test": _members(test)}, {}
    else:
        whole = _members(train)
        mask = stratified_mask(whole.labels, FOLDER_HELD_OUT)
        chosen = dict(zip(whole.members, mask.tolist(), strict=True))
        parts = {
            "train": _members({name: train[name] for name in train if not chosen[name]}),
            "test": _members({name: train[name] for name in train if chosen[name]}),
        }
        extra = {"held_out_fraction": FOLDER_HELD_OUT}
    return Contents(
        class_names=tuple(classes),
        shape=(side_px, side_px, 3),
        splits=parts,
        resize=True,
        extra=extra,
    )


def _class_problems(folders: dict[str, dict[str, list[str]]], other: list[str]) -> list[str]:
    classes = folders["train"]
    minimum = MIN_PER_CLASS if other else MIN_PER_CLASS_TO_SPLIT
    parts = "training and validation" if other else "training, validation and test"
    problems = [
        f"The class {label!r} needs at least {minimum} images to be split into {parts}; it has "
        f"{len(files)}."
        for label, files in sorted(classes.items())
        if len(files) < minimum
    ]
    if len(classes) < 2:
        problems.append(f"At least 2 classes are needed; got {sorted(classes)}.")
    for split in other:
        problems += [
            f"The class {label!r} in `{split}` is unknown: `train` has no such folder."
            for label in sorted(set(folders[split]) - set(classes))
        ]
    return problems


def _members(labels: dict[str, int]) -> Part:
    """Return a part in the order of (label, natural name), whatever order the source has."""
    ordered = sorted(labels, key=lambda name: (labels[name], _natural(name), name))
    return Part(
        labels=np.array([labels[name] for name in ordered], np.int64), members=tuple(ordered)
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort `x_10` behind `x_9`."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def _texts(source: Path, names: Sequence[str]) -> list[str]:
    raw = read_small(source, names)
    try:
        return [raw[name].decode("utf-8") for name in names]
    except UnicodeDecodeError as error:
        raise UsageError(f"A text file of {source} is not UTF-8: {error}.") from error


def _layout(source: Path, title: str, missing: str) -> UsageError:
    return UsageError(
        f"{source} must be in the official layout of {title}; it holds no {missing!r}. Give the "
        "archive as it was published, or its extracted folder."
    )


def _raise_all(source: Path, problems: list[str]) -> None:
    if problems:
        counted = Counter(problems)
        shown = " ".join(list(counted)[:_SHOWN])
        more = f" And {len(counted) - _SHOWN} more." if len(counted) > _SHOWN else ""
        raise UsageError(f"{source} was refused. {shown}{more}")
