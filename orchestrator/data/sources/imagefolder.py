"""Reads a user's own images: one folder per class."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

from orchestrator.data.archives.read import (
    folder_names,
    folders_above,
    has_guessed_names,
    member_names,
)
from orchestrator.data.sources.source import (
    Contents,
    Split,
    is_no_image,
    members,
    raise_all,
    stratified_mask,
)

TEST_FRACTION = 0.1
_LAYOUT = (
    "Put the images of each class into a folder (CLASS/FILE), or into train/CLASS/FILE and "
    "val/CLASS/FILE or test/CLASS/FILE (in any case; `training`, `valid`, `validation` and "
    "`testing` are known too). Labels are taken from these folders only."
)
_ARCHIVE = re.compile(r".*\.(zip|7z|rar|tar|tgz|tbz2?|txz|gz|bz2|xz|zst)", re.IGNORECASE)
_SPLIT_NAME = re.compile(
    r"((?P<train>train(ing)?)|(?P<val>val(id(ation)?)?)|(?P<test>test(ing)?))"
    r"([-_ ]?(set|images?|data|split))?",
    re.IGNORECASE,
)
# A folder of images without labels, inside that of a split.
_NO_CLASS = re.compile(r"|all|images?|imgs?|data|unknown|unlabell?ed", re.IGNORECASE)
_PUBLISHED = {"data_batch_1": "cifar10", "wnids.txt": "tinyimagenet"}  # known by these files


@dataclass(slots=True)
class _Folders:
    """The class folders of one split."""

    path: str  # that holds them, "" or with a slash at its end
    name: str  # of the split's folder
    files: dict[str, list[str]] = field(default_factory=dict)  # by class


def read_imagefolder(source: Path, image_size_px: int) -> Contents:
    """Read class folders, alone or in the folders of a training and a test split.

    All can lie in wrapping folders. Hidden files, text and data are skipped and counted. Images for
    validation beside those for test join the training images, from which each trial's validation
    split is drawn. Images for test without labels are left out. Without a test split, 10 % of every
    class become it.

    Raises:
        UsageError: images outside a class folder, a class that is empty, too small, unknown in the
            test split or there twice, a name that is not UTF-8, or an archive in the source.
    """
    every = member_names(source)
    images = [name for name in every if not is_no_image(name)]
    raise_all(
        source,
        [
            f"Its file {name!r} is an archive; unpack it and give the folder, or remove it."
            for name in images
            if _ARCHIVE.fullmatch(name)
        ],
    )
    skipped = sorted(set(every) - set(images), key=lambda name: (name.startswith("."), name))
    folders = sorted(name for name in folder_names(source) if not is_no_image(f"{name}/image"))
    notes: list[str] = []
    found, problems = _class_folders(images, folders, skipped, notes)
    problems = problems or _class_problems(found)
    if not images:
        other = f", only other files such as {skipped[0]!r}" if skipped else ""
        problems = [f"It holds no image{other}. {_LAYOUT}"]
    published = {_PUBLISHED.get(name.rpartition("/")[2], "") for name in every} - {""}
    if problems and published:
        problems.insert(0, f"It looks like `{published.pop()}`: prepare it under that name.")
    raise_all(source, problems)
    contents = _contents(found, image_size_px, notes)
    notes += _name_notes(source, contents.class_names)
    if skipped:
        contents.extra["skipped_files"] = len(skipped)
        contents.extra["first_skipped_file"] = skipped[0]
    return contents


def _name_notes(source: Path, classes: tuple[str, ...]) -> list[str]:
    foreign = [label for label in classes if not label.isascii()]
    if not foreign or not has_guessed_names(source):
        return []
    return [
        "The zip does not state the encoding of its names, so a class may have a wrong one, such "
        f"as {foreign[0]!r}. To correct it, unpack the zip with a program that can be told the "
        "encoding (such as `unzip -O cp932`) and prepare the folder."
    ]


def _contents(found: dict[str, _Folders], image_size_px: int, notes: list[str]) -> Contents:
    classes = tuple(sorted(found["train"].files))

    def split(*roles: str) -> Split:
        parts = [found[role].files for role in roles if role in found]
        return members(
            {
                file: label
                for label, key in enumerate(classes)
                for part in parts
                for file in part.get(key, ())
            }
        )

    splits = {"train": split("train", "val")}
    extra: dict[str, Any] = {"notes": notes}
    if "test" in found:
        splits["test"] = split("test")
        extra["test_split"] = f"the folder {found['test'].name!r}"
        if missing := [label for label in classes if label not in found["test"].files]:
            notes.append(
                f"The test split has no image of {len(missing):,} of the {len(classes):,} classes, "
                f"such as {missing[0]!r}."
            )
    else:
        every = splits["train"]
        is_test = stratified_mask(every.labels, TEST_FRACTION)
        splits = {
            name: Split(labels=every.labels[mask], members=tuple(compress(every.members, mask)))
            for name, mask in (("train", ~is_test), ("test", is_test))
        }
        kind = "labelled folder" if notes else "folder"  # one is left out
        extra["held_out_fraction"] = TEST_FRACTION
        extra["test_split"] = f"10 % of every class, because the source has no {kind} for it"
    return Contents(
        class_names=classes,
        shape=(image_size_px, image_size_px, 3),
        splits=splits,
        resize=True,
        extra=extra,
    )


def _class_folders(
    images: list[str], folders: list[str], skipped: list[str], notes: list[str]
) -> tuple[dict[str, _Folders], list[str]]:
    """Return the class folders of each split with their images, and the problems of the layout.

    The splits are "train", "test" if there is one, and "val" if it joins "train". Adds to `notes`.
    """
    holders = {image.rpartition("/")[0] for image in images}
    # Folders of text and data only, such as annotations, neither wrap nor divide.
    others = folders_above(skipped) - folders_above(images)
    outer = [folder for folder in folders if folder not in others]
    root = _unwrapped("", outer, holders)
    roles = _roles([path.removeprefix(root) for path in _inner(root, outer)])
    # Only if nothing else is there: `train` and `test` could be classes among others.
    if "train" not in roles.values() or "" in roles.values():
        found = {"train": _Folders(path=root, name=root.rstrip("/"))}
        problems = _fill(found, images, folders)
        return found, [*_no_splits(roles), *problems] if problems else []
    left_out = _unlabelled(root, roles, images)
    notes += [
        f"`{top}` is left out: its images ({number:,}) are not in class folders, so their labels "
        "are unknown."
        for top, number in left_out.items()
    ]
    images = [image for image in images if image.removeprefix(root).split("/")[0] not in left_out]
    found, problems = {}, []
    for top, role in roles.items():
        if top in left_out:
            continue
        if role in found:
            problems.append(f"`{found[role].name}` and `{top}` are the same split; merge them.")
        found[role] = _Folders(path=_unwrapped(f"{root}{top}/", outer, holders), name=top)
    if "val" in found and "test" in found:
        val, train = found["val"].name, found["train"].name
        notes.append(
            f"The images of `{val}` join those of `{train}`: the validation split of a trial is "
            "drawn from both."
        )
    elif "val" in found:
        found["test"] = found.pop("val")
    return found, problems or _fill(found, images, folders)


def _no_splits(roles: dict[str, str]) -> list[str]:
    """Return why folders that are named like splits are not read as such."""
    splits = [top for top, role in roles.items() if role]
    others = [top for top, role in roles.items() if not role]
    if "train" in roles.values():
        return [f"The folder `{top}` is no split; rename it or move it away." for top in others]
    if splits and not others:
        return [f"There is no training split beside `{splits[0]}`; name it `train`."]
    return []


def _unlabelled(root: str, roles: dict[str, str], images: list[str]) -> dict[str, int]:
    """Return the folders for validation and test without class folders, and their image counts."""
    holders: dict[str, list[str]] = {top: [] for top in roles}  # the folder of each image
    for image in images:
        top, _, inner = image.removeprefix(root).partition("/")
        holders.get(top, []).append(inner.rpartition("/")[0])
    trained = (path for top, role in roles.items() if role == "train" for path in holders[top])
    classes = {path.rpartition("/")[2] for path in trained}

    def is_no_class(path: str) -> bool:
        name = path.rpartition("/")[2]
        return name not in classes and bool(_NO_CLASS.fullmatch(name) or _role(name))

    return {
        top: len(holders[top])
        for top, role in roles.items()
        if role != "train" and len(set(holders[top])) == 1 and is_no_class(holders[top][0])
    }


def _roles(folders: list[str]) -> dict[str, str]:
    """Return the role of each folder; all may begin alike, as `photos_train` and `photos_test`."""
    common = os.path.commonprefix(folders) if len(folders) > 1 else ""  # noqa: RUF071 - of text
    start = max(common.rfind(separator) for separator in "-_ ") + 1
    return {folder: _role(folder[start:]) for folder in folders}


def _role(folder: str) -> str:
    """Return the split that a folder's name stands for: "train", "val", "test" or ""."""
    match = _SPLIT_NAME.fullmatch(folder)
    return next(role for role, text in match.groupdict().items() if text) if match else ""


def _inner(path: str, folders: list[str]) -> list[str]:
    """Return the folders directly in `path`, which ends with a slash or is empty."""
    return [each for each in folders if each.startswith(path) and "/" not in each[len(path) :]]


def _unwrapped(path: str, folders: list[str], holders: set[str]) -> str:
    """Return the path below all folders that hold one folder of folders and nothing else."""
    while len(inner := _inner(path, folders)) == 1 and path.rstrip("/") not in holders:
        deeper = f"{inner[0]}/"
        if inner[0] in holders or not _inner(deeper, folders):
            break  # a class
        path = deeper
    return path


def _fill(found: dict[str, _Folders], images: list[str], folders: list[str]) -> list[str]:
    """Add the classes and images of each split, and return the problems."""
    problems = []
    files_in: dict[str, list[str]] = {}
    for part in found.values():
        for folder in _inner(part.path, folders):
            label = unicodedata.normalize("NFC", folder.removeprefix(part.path))
            if label in part.files:
                problems.append(
                    f"There are two class folders {label!r}, which differ only in the "
                    f"normal form of Unicode ({folder!a}); merge them."
                )
            if not _is_utf8(label):
                problems.append(f"The name of the class folder {folder!r} is not UTF-8; rename it.")
            files_in[folder] = part.files.setdefault(label, [])
    outside: list[str] = []
    for image in images:
        files_in.get(image.rpartition("/")[0], outside).append(image)
    if outside:
        more = f" (the first of {len(outside):,} such files)" if len(outside) > 1 else ""
        problems.append(f"The file {outside[0]!r} is not in a class folder{more}. {_LAYOUT}")
    return problems


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of the file system that are no UTF-8
        return False
    return True


def _class_problems(found: dict[str, _Folders]) -> list[str]:
    classes = found["train"].files
    others = [part for role, part in found.items() if role != "train"]
    minimum = 2 if "test" in found else 3  # one image in each
    splits = "training and validation" if "test" in found else "training, validation and test"
    joined = found["val"].files if "val" in found else {}
    counts = {label: len(files) + len(joined.get(label, ())) for label, files in classes.items()}
    problems = [
        f"The class folder {part.path + label!r} holds no image; add images or delete the folder."
        for part in found.values()
        for label, files in part.files.items()
        if not files
    ]
    problems += [
        f"The class {label!r} needs at least {minimum} images to be split into {splits}; it has "
        f"{count}."
        for label, count in sorted(counts.items())
        if classes[label] and count < minimum
    ]
    if len(classes) < 2:
        problems.append(f"At least 2 classes are needed; got {sorted(classes)}. {_LAYOUT}")
    for part in others:
        if not part.files:
            problems.append(f"The folder `{part.name}` holds no class folder; fill or delete it.")
        problems += [
            f"The class {label!r} in `{part.name}` is unknown: `{found['train'].name}` has no such "
            "folder."
            for label in sorted(set(part.files) - set(classes))
        ]
    return problems
