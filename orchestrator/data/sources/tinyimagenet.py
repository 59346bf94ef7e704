"""Reads the official archive of Tiny ImageNet."""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.archives import member_names, read_small
from orchestrator.data.sources.source import Contents, layout_error, members, raise_all
from orchestrator.errors import UsageError

_LISTS = ("wnids.txt", "words.txt", "val/val_annotations.txt")


def read_tinyimagenet(source: Path, image_size_px: int) -> Contents:
    """Read the layout of `tiny-imagenet-200.zip`; its labelled `val` folder is the test split.

    Raises:
        UsageError: an unknown class, a missing or unlisted file, or another layout.
    """
    names = member_names(source)
    root = _root(source, names)
    lists = [f"{root}{name}" for name in _LISTS]
    raw = read_small(source, lists)
    try:
        wnids_text, words, annotations = (raw[name].decode("utf-8") for name in lists)
    except UnicodeDecodeError as error:
        raise UsageError(f"A text file of {source} is not UTF-8: {error}.") from error
    wnids = sorted(set(wnids_text.split()))
    index = {wnid: label for label, wnid in enumerate(wnids)}
    problems: list[str] = []
    train, test_files = _images(names, root, index, problems)
    test = _annotated(f"{root}val/", annotations, index, test_files, problems)
    missing = sorted(set(wnids) - {wnids[label] for label in train.values()})
    problems += [f"The class {wnid!r} has no training image." for wnid in missing]
    if not test:
        problems.append(f"{root}val/val_annotations.txt lists no image.")
    raise_all(source, problems)
    readable = dict(line.split("\t", 1) for line in words.splitlines() if "\t" in line)
    return Contents(
        class_names=tuple(readable.get(wnid, wnid).split(",")[0].strip() for wnid in wnids),
        shape=(64, 64, 3),
        splits={"train": members(train), "test": members(test)},
        extra={"class_ids": wnids},
    )


def _root(source: Path, names: list[str]) -> str:
    """Return the folder of the dataset in the archive, "" or with a slash at its end."""
    lists = [name for name in names if name.rpartition("/")[2] == "wnids.txt"]
    if not lists:
        raise layout_error(source, "Tiny ImageNet", "wnids.txt")
    root = min(lists, key=len).removesuffix("wnids.txt")
    for name in _LISTS:
        if f"{root}{name}" not in names:
            raise layout_error(source, "Tiny ImageNet", f"{root}{name}")
    return root


def _images(
    names: list[str], root: str, index: dict[str, int], problems: list[str]
) -> tuple[dict[str, int], set[str]]:
    """Return the label of each training image, and the files in `val`; adds to `problems`."""
    train: dict[str, int] = {}
    test: set[str] = set()
    for name in names:
        match name.removeprefix(root).split("/"):
            case [*_, file] if file.startswith("."):
                continue
            case ["train", wnid, "images", _] if wnid in index:
                train[name] = index[wnid]
            case ["train", _, "images", _]:
                problems.append(f"The class of {name!r} is not listed in wnids.txt.")
            case ["val", "images", _]:
                test.add(name)
    return train, test


def _annotated(
    folder: str, text: str, index: dict[str, int], present: set[str], problems: list[str]
) -> dict[str, int]:
    """Return the label of each file in val_annotations.txt; adds to `problems`."""
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
