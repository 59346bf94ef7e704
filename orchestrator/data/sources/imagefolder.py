"""Reads a user's own images: one folder per class."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from orchestrator.data.archives import member_names
from orchestrator.data.sources.source import Contents, members, raise_all, stratified_mask

FOLDER_HELD_OUT = 0.1
# One image each for training, validation and test; or for training and validation.
MIN_PER_CLASS_TO_SPLIT = 3
MIN_PER_CLASS = 2
_DROPPINGS = ("__MACOSX", "Thumbs.db", "desktop.ini")  # what systems leave behind, in effect hidden


def read_imagefolder(source: Path, image_size_px: int) -> Contents:
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
    raise_all(source, problems)

    folders: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        *split, label, _ = name.split("/")
        folders[split[0] if split else "train"][label].append(name)
    classes = sorted(folders["train"])
    index = {label: number for number, label in enumerate(classes)}
    other = [split for split in folders if split != "train"]
    raise_all(source, _class_problems(folders, other))

    train = {name: index[label] for label in classes for name in folders["train"][label]}
    if other:
        held_out = folders[other[0]]
        test = {name: index[label] for label in sorted(held_out) for name in held_out[label]}
        parts, extra = {"train": members(train), "test": members(test)}, {}
    else:
        whole = members(train)
        mask = stratified_mask(whole.labels, FOLDER_HELD_OUT)
        chosen = dict(zip(whole.members, mask.tolist(), strict=True))
        parts = {
            "train": members({name: train[name] for name in train if not chosen[name]}),
            "test": members({name: train[name] for name in train if chosen[name]}),
        }
        extra = {"held_out_fraction": FOLDER_HELD_OUT}
    return Contents(
        class_names=tuple(classes),
        shape=(image_size_px, image_size_px, 3),
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
