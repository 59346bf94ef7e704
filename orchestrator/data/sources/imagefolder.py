"""Reads a user's own images: one folder per class."""

from __future__ import annotations

from collections import defaultdict
from itertools import compress
from pathlib import Path

from orchestrator.data.archives import member_names
from orchestrator.data.sources.source import Contents, Split, members, raise_all, stratified_mask

TEST_FRACTION = 0.1
_SYSTEM_FILES = ("__MACOSX", "Thumbs.db", "desktop.ini")  # left behind by operating systems

# Names of files, by split and class.
_Folders = dict[str, dict[str, list[str]]]


def read_imagefolder(source: Path, image_size_px: int) -> Contents:
    """Read class folders, alone or under `train/` and `val/` (or `test/`).

    Hidden files are skipped. Without `val/` or `test/`, 10 % of every class become the test split.

    Raises:
        UsageError: files outside a class folder, unknown classes in the test split, or classes
            with too few images.
    """
    folders = _class_folders(source)
    raise_all(source, _class_problems(folders))
    classes = tuple(sorted(folders["train"]))
    splits = {}
    for name, found in folders.items():
        labels = {file: label for label, key in enumerate(classes) for file in found.get(key, ())}
        splits["train" if name == "train" else "test"] = members(labels)
    extra = {}
    if "test" not in splits:
        every = splits["train"]
        is_test = stratified_mask(every.labels, TEST_FRACTION)
        splits = {
            name: Split(labels=every.labels[mask], members=tuple(compress(every.members, mask)))
            for name, mask in (("train", ~is_test), ("test", is_test))
        }
        extra = {"held_out_fraction": TEST_FRACTION}
    shape = (image_size_px, image_size_px, 3)
    return Contents(class_names=classes, shape=shape, splits=splits, resize=True, extra=extra)


def _class_folders(source: Path) -> _Folders:
    """Return the files of every class folder; raise a UsageError for any other layout."""
    names = [
        name
        for name in member_names(source)
        if not any(part.startswith(".") or part in _SYSTEM_FILES for part in name.split("/"))
    ]
    top = {name.split("/")[0] for name in names if "/" in name}
    # Only if nothing else is there: `train` and `test` could be classes among others.
    is_divided = "train" in top and top <= {"train", "val", "test"}
    layout = "train/CLASS/FILE" if is_divided else "CLASS/FILE"
    problems = [
        f"The file {name!r} is not in a class folder ({layout})."
        for name in names
        if name.count("/") != layout.count("/")
    ]
    if not names:
        problems.append("It holds no image.")
    if is_divided and {"val", "test"} <= top:
        problems.append(
            "It has both `val` and `test` beside `train`; validation images are split off from "
            "`train`, so keep one of them as the test split and move the other into `train`."
        )
    raise_all(source, problems)
    folders: _Folders = defaultdict(lambda: defaultdict(list))
    for name in names:
        *split, label, _ = name.split("/")
        folders[split[0] if split else "train"][label].append(name)
    return folders


def _class_problems(folders: _Folders) -> list[str]:
    classes = folders["train"]
    others = [split for split in folders if split != "train"]
    splits = "training and validation" if others else "training, validation and test"
    minimum = 2 if others else 3  # one image in each
    problems = [
        f"The class {label!r} needs at least {minimum} images to be split into {splits}; it has "
        f"{len(files)}."
        for label, files in sorted(classes.items())
        if len(files) < minimum
    ]
    if len(classes) < 2:
        problems.append(f"At least 2 classes are needed; got {sorted(classes)}.")
    for split in others:
        problems += [
            f"The class {label!r} in `{split}` is unknown: `train` has no such folder."
            for label in sorted(set(folders[split]) - set(classes))
        ]
    return problems
