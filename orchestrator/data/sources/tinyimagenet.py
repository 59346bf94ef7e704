"""Reads the archive of Tiny ImageNet, as published or as people keep it."""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.archives.read import member_names, read_small
from orchestrator.data.sources.source import (
    Contents,
    is_no_image,
    layout_error,
    members,
    raise_all,
)
from orchestrator.errors import UsageError


def read_tinyimagenet(source: Path, image_size_px: int) -> Contents:
    """Read the layout of `tiny-imagenet-200.zip`; its labelled `val` folder is the test split.

    The images of `val` may also be sorted into class folders, with or without
    `val_annotations.txt`. Without `words.txt` the classes have their WordNet ids for names.

    Raises:
        UsageError: an unknown class, an image that is missing or has no label, or another layout.
    """
    names = member_names(source)
    lists = [name for name in names if name.rpartition("/")[2] == "wnids.txt"]
    if not lists:
        raise layout_error(source, "tinyimagenet", "wnids.txt", names)
    root = min(lists, key=len).removesuffix("wnids.txt")
    wnids_text, words, annotations = _texts(source, names, root)
    wnids = sorted(set(wnids_text.split()))
    index = {wnid: label for label, wnid in enumerate(wnids)}
    problems: list[str] = []
    images = [name for name in names if not is_no_image(name.removeprefix(root))]
    train, test, unsorted = _images(images, root, index, problems)
    if annotations is not None:
        test = _annotated(f"{root}val/", annotations, index, test, unsorted, problems)
    elif unsorted:
        raise layout_error(source, "tinyimagenet", f"{root}val/val_annotations.txt", names)
    missing = sorted(set(wnids) - {wnids[label] for label in train.values()})
    problems += [f"The class {wnid!r} has no training image." for wnid in missing]
    if not test:
        problems.append(f"{root}val holds no labelled image.")
    raise_all(source, problems)
    readable = dict(line.split("\t", 1) for line in (words or "").splitlines() if "\t" in line)
    return Contents(
        class_names=tuple(readable.get(wnid, wnid).split(",")[0].strip() for wnid in wnids),
        shape=(64, 64, 3),
        splits={"train": members(train), "test": members(test)},
        extra={"class_ids": wnids},
    )


def _texts(source: Path, names: list[str], root: str) -> tuple[str, str | None, str | None]:
    """Return the texts of wnids.txt, words.txt and val_annotations.txt; None: there is none."""
    lists = [f"{root}{name}" for name in ("wnids.txt", "words.txt", "val/val_annotations.txt")]
    raw = read_small(source, set(lists) & set(names))
    try:
        wnids, words, annotations = (
            raw[name].decode("utf-8-sig") if name in raw else None for name in lists
        )
    except UnicodeDecodeError as error:
        raise UsageError(f"A text file of {source} is not UTF-8: {error}.") from error
    return wnids or "", words, annotations


def _images(
    names: list[str], root: str, index: dict[str, int], problems: list[str]
) -> tuple[dict[str, int], dict[str, int], set[str]]:
    """Return the labels of the images in class folders of `train` and of `val`, and other images.

    The latter are those in `val/images`. Adds to `problems`.
    """
    labels: dict[str, dict[str, int]] = {"train": {}, "val": {}}
    unsorted: set[str] = set()
    for name in names:
        match name.removeprefix(root).split("/"):
            case ["val", "images", _]:
                unsorted.add(name)
            case ["train" | "val" as split, wnid, _] | [
                "train" | "val" as split,
                wnid,
                "images",
                _,
            ]:
                if wnid in index:
                    labels[split][name] = index[wnid]
                else:
                    problems.append(f"The class of {name!r} is not listed in wnids.txt.")
    return labels["train"], labels["val"], unsorted


def _annotated(
    folder: str,
    text: str,
    index: dict[str, int],
    sorted_labels: dict[str, int],
    unsorted: set[str],
    problems: list[str],
) -> dict[str, int]:
    """Return the label of each image of `val`, as val_annotations.txt and the folders have it.

    Adds to `problems`.
    """
    labels = dict(sorted_labels)
    label_of = {name.rpartition("/")[2]: label for name, label in sorted_labels.items()}
    listed: set[str] = set()
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in lines:
        file, wnid, *_ = [*line.split("\t"), ""]
        name = f"{folder}images/{file}"
        where = f"Line {number} of {folder}val_annotations.txt"
        if wnid not in index:
            problems.append(f"{where} gives {file!r} the class {wnid!r}, which is unknown.")
        elif file in listed:
            problems.append(f"{where} names {file!r} a second time.")
        elif name in unsorted:
            labels[name] = index[wnid]
        elif file not in label_of:
            problems.append(f"{where} names {name!r}, which is missing.")
        elif label_of[file] != index[wnid]:
            problems.append(f"{where} gives {file!r} the class {wnid!r}; its folder is another.")
        listed.add(file)
    if not problems:
        unlisted = sorted(unsorted - set(labels))
        problems += [f"{name!r} is not listed in val_annotations.txt." for name in unlisted]
    return labels
