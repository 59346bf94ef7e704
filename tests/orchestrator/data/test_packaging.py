"""Datasets as people keep and send them: every class and split arrives, or is named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.data import __main__ as data
from orchestrator.data import prepare
from orchestrator.data.decode import decode
from orchestrator.errors import UsageError
from tests.orchestrator.data import archive_files as sources

_PETS = ("cat", "dog")
_NFC, _NFD = "caf\u00e9", "cafe\u0301"


def _prepared(kind: str, source: Path) -> dict[str, Any]:
    """Prepare a source and return the manifest."""
    data_dir = source.parent / f"prepared_{source.name}"
    folder = prepare.prepare(kind, data_dir=data_dir, source=str(source), progress=False)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def _refusal(kind: str, source: Path) -> str:
    with pytest.raises(UsageError) as caught:
        _prepared(kind, source)
    assert not list((source.parent / f"prepared_{source.name}").glob("[!.]*"))
    return str(caught.value)


def _images(manifest: dict[str, Any]) -> dict[str, int]:
    return {split: entry["images"] for split, entry in manifest["splits"].items()}


def _photos(
    root: str = "", classes: Mapping[str, str] | None = None, n: int = 3
) -> dict[str, bytes]:
    """Images of classes in `root`, each of one color of its own."""
    colors = classes or {"cat": "red", "dog": "blue"}
    return {
        f"{root}{name}/{number}.png": sources.encoded(sources.image(color, size=(8 + number, 8)))
        for name, color in colors.items()
        for number in range(n)
    }


_WRITERS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "folder": sources.write_folder,
    "zip": sources.write_zip,
    "tar": sources.write_tar,
    "./ zip": lambda path, members: sources.write_zip(path, _dotted(members)),
    "./ tar": lambda path, members: sources.write_tar(path, _dotted(members)),
}


def _dotted(members: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"./{name}": content for name, content in members.items()}


@pytest.mark.parametrize("writer", _WRITERS)
@pytest.mark.parametrize("wrapping", ["photos/", "download/my photos/", "a/b/c/"])
def test_wrapping_folders_change_nothing(tmp_path: Path, writer: str, wrapping: str) -> None:
    plain = _prepared("imagefolder", sources.write_folder(tmp_path / "plain", _photos()))
    members = _photos(wrapping) | {
        f"{wrapping}README.md": b"hi",
        "labels.csv": b"a,b",
        "__MACOSX/photos/cat/._0.png": b"m",
        ".DS_Store": b"x",
        f"{wrapping}cat/Thumbs.db": b"\xd0\xcf",
        f"{wrapping}cat/desktop.ini": b"[x]",
        f"{wrapping}cat/Icon\r": b"",
        f"{wrapping}cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg": b"x",
        "lost+found/1": b"x",
        f"{wrapping}dog/.ipynb_checkpoints/0-checkpoint.png": b"x",
    }
    got = _prepared("imagefolder", _WRITERS[writer](tmp_path / "given", members))
    assert got["fingerprint"] == plain["fingerprint"]
    assert got["class_names"] == ["cat", "dog"]
    assert got["skipped_files"] == 10
    assert "skipped_files" not in plain


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("train", "valid"),
        ("train", "validation"),
        ("train", "test"),
        ("Training", "Testing"),
        ("Train", "Val"),
        ("TRAIN", "valid"),
        ("training", "Validation"),
        ("training_set", "test_set"),
        ("Training Data", "Validation-Data"),
        ("train_images", "test_images"),
        ("train_split", "VAL_SPLIT"),
        ("photos_train", "photos_test"),
        ("my photos-train", "my photos-val"),
    ],
)
@pytest.mark.parametrize("wrapping", ["", "data/", "data/v2/"])
def test_folders_of_splits_are_known_by_their_usual_names(
    tmp_path: Path, train: str, test: str, wrapping: str
) -> None:
    members = _photos(f"{wrapping}{train}/") | _photos(f"{wrapping}{test}/", n=1)
    manifest = _prepared("imagefolder", sources.write_zip(tmp_path / "a.zip", members))
    assert _images(manifest) == {"train": 6, "test": 2}
    assert manifest["class_names"] == ["cat", "dog"]
    assert manifest["test_split"] == f"the folder {test!r}"


@pytest.mark.parametrize("root", ["", "train/"])
def test_folders_of_text_and_data_beside_the_images_are_skipped(tmp_path: Path, root: str) -> None:
    members = _photos(f"food/images/{root}") | {
        "food/meta/classes.txt": b"cat",
        "food/meta/more/test.json": b"{}",
        "food/images/annotations/cat.xml": b"<a/>",
    }
    if not root:  # there it would be a class without images
        del members["food/images/annotations/cat.xml"]
    manifest = _prepared("imagefolder", sources.write_zip(tmp_path / "a.zip", members))
    assert manifest["class_names"] == ["cat", "dog"]
    assert manifest["skipped_files"] == (3 if root else 2)
    empty = members | {"food/birds/": b""}  # nothing says that it is not a class
    assert "is not in a class folder" in _refusal(
        "imagefolder", sources.write_zip(tmp_path / "b.zip", empty)
    )


@pytest.mark.parametrize("writer", _WRITERS)
@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "valid", "test"), ("Train", "Val", "Test"), ("training", "validation", "testing")],
)
@pytest.mark.parametrize("wrapping", ["", "my data/v2/"])
def test_images_for_validation_beside_those_for_test_join_the_training_images(
    tmp_path: Path, writer: str, train: str, val: str, test: str, wrapping: str
) -> None:
    members = _photos(f"{wrapping}{train}/", n=5) | _photos(f"{wrapping}{test}/", n=2)
    joined = dict(members)
    for name in ("cat/3", "cat/4", "dog/4"):
        moved = joined.pop(f"{wrapping}{train}/{name}.png")
        joined[f"{wrapping}{val}/{name}.png"] = moved
    plain = _prepared("imagefolder", sources.write_folder(tmp_path / "plain", members))
    got = _prepared("imagefolder", _WRITERS[writer](tmp_path / "given", joined))
    assert _images(got) == {"train": 10, "test": 4}
    assert got["fingerprint"] == plain["fingerprint"]
    assert got["test_split"] == f"the folder {test!r}"
    assert got["notes"][0] == (
        f"The images of `{val}` join those of `{train}`: the validation split of a trial is drawn "
        "from both."
    )
    assert len(got["notes"]) == len(plain["notes"]) + 1


@pytest.mark.parametrize("place", ["", "test/", "images/", "unlabeled/", "Test Images/", "a/all/"])
@pytest.mark.parametrize("val", ["", "val/"])
def test_a_test_folder_without_labels_is_left_out(tmp_path: Path, place: str, val: str) -> None:
    labelled = _photos("train/") | (_photos(val, n=1) if val else {})
    # All images of a class would be equal, and so would training and test images.
    labelled = {name: _noise(number) for number, name in enumerate(labelled)}
    members = labelled | {f"test/{place}{number}.png": b"never read" for number in range(1200)}
    plain = _prepared("imagefolder", sources.write_folder(tmp_path / "plain", labelled))
    got = _prepared("imagefolder", sources.write_zip(tmp_path / "a.zip", members))
    assert got["fingerprint"] == plain["fingerprint"]
    assert got["notes"] == [
        "`test` is left out: its images (1,200) are not in class folders, so their labels are "
        "unknown."
    ]
    assert got["test_split"] == (
        "the folder 'val'"
        if val
        else "10 % of every class, because the source has no labelled folder for it"
    )


def test_a_test_split_of_one_class_with_a_general_name_is_read(tmp_path: Path) -> None:
    """A class of the training images is no sign of missing labels."""
    colors = {"cat": "red", "unknown": "blue"}
    members = _photos("train/", colors) | _photos("test/", {"unknown": "blue"}, n=2)
    manifest = _prepared("imagefolder", sources.write_zip(tmp_path / "a.zip", members))
    assert _images(manifest) == {"train": 6, "test": 2}
    note = "The test split has no image of 1 of the 2 classes, such as 'cat'."
    assert note in manifest["notes"]


def _noise(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return sources.encoded(Image.fromarray(pixels))


def test_test_images_that_are_training_images_are_counted(tmp_path: Path) -> None:
    members = {f"train/{c}/{n}.png": _noise(n + 9 * (c == "dog")) for c in _PETS for n in range(3)}
    members |= {
        f"test/{c}/{n}.png": _noise(99 + n + 9 * (c == "dog")) for c in _PETS for n in (0, 1)
    }
    clean = _prepared("imagefolder", sources.write_zip(tmp_path / "a.zip", members))
    assert clean["notes"] == []
    members["test/cat/1.png"] = members["train/cat/2.png"]
    copied = _prepared("imagefolder", sources.write_zip(tmp_path / "b.zip", members))
    assert copied["notes"] == [
        "1 of 4 test images have the same pixels as a training image, so test accuracy will be too "
        "high; remove the copies from the source."
    ]


@pytest.mark.parametrize("writer", ["folder", "zip", "tar"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "it is a pointer of Git LFS; run `git lfs pull` in its repository",
        ),
        (
            b"\0\0\0\x18ftypheic" + bytes(99),
            "it is no image in a known format (JPEG, PNG, BMP, GIF, WEBP, TIFF, PPM); convert or "
            "remove it",
        ),
    ],
)
def test_a_file_that_is_no_image_is_named_as_what_it_is(
    tmp_path: Path, writer: str, content: bytes, reason: str
) -> None:
    source = _WRITERS[writer](tmp_path / "a", _photos() | {"cat/odd.jpg": content})
    expected = f"The image 'cat/odd.jpg' cannot be used: {reason}."
    assert _refusal("imagefolder", source) == expected


class _Unmarked(zipfile.ZipInfo):
    """An entry whose name is in an encoding that it does not state."""

    encoding = ""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # of `zipfile`
        return self.filename.encode(self.encoding), self.flag_bits & ~0x800


def _unmarked_zip(
    path: Path, members: Mapping[str, bytes], encoding: str, marked: Mapping[str, bytes] = {}
) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            entry = _Unmarked(name)
            entry.encoding = encoding
            archive.writestr(entry, content)
        for name, content in marked.items():
            archive.writestr(name, content)
    return path


# The second byte of the last name's first character is a backslash.
_NAMES = {
    "cp932": ("\u732b", "\u72ac", "\u8868\u793a"),
    "gbk": ("\u732b", "\u72d7", "\u8aa0"),
    "big5": ("\u8c93", "\u72d7", "\u529f"),
    "cp949": ("\uace0\uc591\uc774", "\uac1c", "\uc0c8"),
    "cp1252": ("caf\u00e9", "th\u00e9", "\u00fcber"),
}


@pytest.mark.parametrize("encoding", _NAMES)
def test_class_names_in_an_encoding_that_a_zip_does_not_state_stay_apart(
    tmp_path: Path, encoding: str
) -> None:
    colors = dict(zip(_NAMES[encoding], ("red", "green", "blue"), strict=True))
    members = _photos("train/", colors) | _photos("val/", colors, n=1)
    source = _unmarked_zip(tmp_path / "a.zip", members, encoding)
    manifest = _prepared("imagefolder", source)
    assert _images(manifest) == {"train": 9, "test": 3}
    plain = [name.replace("\uff3c", "\\") for name in manifest["class_names"]]
    assert {name.encode("cp437").decode(encoding) for name in plain} == set(_NAMES[encoding])
    assert manifest["notes"][0].startswith(
        "The zip does not state the encoding of its names, so a class may have a wrong one, such "
        f"as {manifest['class_names'][0]!r}."
    )


@pytest.mark.parametrize("encoding", _NAMES)
def test_names_that_state_their_encoding_tell_that_of_the_others(
    tmp_path: Path, encoding: str
) -> None:
    """7-Zip on Windows marks only those names as UTF-8 that its code page lacks."""
    first = _NAMES[encoding][0]
    members = _photos("train/", dict.fromkeys(_NAMES[encoding], "red"))
    marked = _photos("val/", {first: "red"}, n=1)
    source = _unmarked_zip(tmp_path / "a.zip", members, encoding, marked)
    manifest = _prepared("imagefolder", source)
    assert set(manifest["class_names"]) == set(_NAMES[encoding])
    assert not any("encoding" in note for note in manifest["notes"])


def test_each_split_can_be_wrapped_in_a_folder_of_its_own(tmp_path: Path) -> None:
    members = _photos("data/train/train/") | _photos("data/test/test/", {"dog": "blue"}, n=1)
    manifest = _prepared("imagefolder", sources.write_zip(tmp_path / "a.zip", members))
    assert _images(manifest) == {"train": 6, "test": 1}
    assert manifest["class_names"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (
            _photos() | {"bird.zip": b"PK", "owl/all.tar.gz": b"x"},
            "Its file 'bird.zip' is an archive; unpack it and give the folder, or remove it. Its "
            "file 'owl/all.tar.gz' is",
        ),
        (_photos("train/") | _photos("val/", {"owl": "red"}), "'owl' in `val` is unknown: `train`"),
        (
            _photos("train/") | _photos("valid/", {"owl": "red"}) | _photos("test/"),
            "'owl' in `valid` is unknown: `train` has no such folder",
        ),
        (_photos("train/") | _photos("test/") | {"test/1.png": b""}, "'test/1.png' is not in a"),
        (
            _photos("train/") | {f"test/{c}/images/1.png": b"" for c in ("cat", "dog")},
            "'test/cat/images/1.png' is not in a class folder",
        ),
        (_photos("train/") | {"test/Cat/1.png": b""}, "'Cat' in `test` is unknown"),
        (_photos("train/") | _photos("Training/"), "are the same split; merge them"),
        (
            _photos("animals/") | _photos("plants/", {"rose": "red", "tulip": "pink"}),
            "'animals/cat/0.png' is not in a class folder (the first of 12 such files). Put the",
        ),
        (_photos("train/") | _photos("holdout/"), "`valid`, `validation` and `testing` are known"),
        (_photos("train/") | _photos("test/") | _photos("more/"), "`more` is no split; rename it"),
        (_photos("val/") | _photos("test/"), "There is no training split beside `test`; name it"),
        (
            {f"train/{n}.png": b"" for n in range(2)} | {"labels.csv": b"0,cat"},
            "'train/0.png' is not in a class folder (the first of 2 such files). Put the images "
            "of each class into a folder (CLASS/FILE)",
        ),
        (_photos() | {"bird/readme.txt": b"none"}, "'bird' holds no image; add images or delete"),
        (
            _photos("x/train/") | _photos("x/val/") | {"x/val/owl/a.txt": b""},
            "'x/val/owl' holds no",
        ),
        ({"x.npy": b"1", "y.npy": b"2"}, "holds no image, only other files such as 'x.npy'"),
        (sources.cifar10(), "It looks like `cifar10`: prepare it under that name."),
    ],
)
def test_a_layout_that_is_not_read_is_explained(
    tmp_path: Path, members: dict[str, bytes], sentence: str
) -> None:
    source = sources.write_zip(tmp_path / "a.zip", members)
    assert sentence in _refusal("imagefolder", source)


@pytest.mark.parametrize("writer", ["folder", "zip", "tar"])
@pytest.mark.parametrize(
    ("root", "empty"), [("", "bird"), ("train/", "train/bird"), ("train/", "val")]
)
def test_an_empty_folder_is_named(tmp_path: Path, writer: str, root: str, empty: str) -> None:
    members = _photos(root)
    source = tmp_path / "given"
    if writer == "folder":
        (sources.write_folder(source, members) / empty).mkdir()
    elif writer == "zip":
        sources.write_zip(source, members | {f"{empty}/": b""})
    else:
        with tarfile.open(source, "w") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            info = tarfile.TarInfo(f"./{empty}")
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
    shown = f"`{empty}` holds no class" if empty == "val" else f"{empty!r} holds no image"
    assert shown in _refusal("imagefolder", source)


def test_links_to_one_folder_are_named(tmp_path: Path) -> None:
    real = sources.write_folder(tmp_path / "real", _photos())
    for name, links, sentence in (
        (
            "classes",
            {"cat": "cat", "dog": "dog", "pet": "cat"},
            "'pet' is the same folder as 'cat'",
        ),
        ("splits", {"train": "", "val": ""}, "'val' is the same folder as 'train'"),
        ("mixed", {"train": "", "val/cat": "cat"}, "'val/cat' is the same folder as 'train/cat'"),
    ):
        for link, target in links.items():
            path = tmp_path / name / link
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(real / target, target_is_directory=True)
        assert sentence in _refusal("imagefolder", tmp_path / name)
    (real / "dog" / "more").symlink_to(real, target_is_directory=True)
    assert "'dog/more' is a link to a folder that holds it" in _refusal("imagefolder", real)


def test_linked_classes_and_images_are_read(tmp_path: Path) -> None:
    real = sources.write_folder(tmp_path / "real", _photos())
    linked = tmp_path / "linked"
    (linked / "dog").mkdir(parents=True)
    (linked / "cat").symlink_to(real / "cat", target_is_directory=True)
    for image in (real / "dog").iterdir():
        (linked / "dog" / image.name).symlink_to(image)
    expected = _prepared("imagefolder", real)["fingerprint"]
    assert _prepared("imagefolder", linked)["fingerprint"] == expected


def test_a_class_has_one_name_in_both_forms_of_unicode(tmp_path: Path) -> None:
    colors = {"dog": "blue"}
    members = _photos("train/", {_NFD: "red"} | colors) | _photos("val/", {_NFC: "red"}, n=1)
    manifest = _prepared("imagefolder", sources.write_folder(tmp_path / "a", members))
    assert manifest["class_names"] == [_NFC, "dog"]
    assert _images(manifest) == {"train": 6, "test": 1}
    both = sources.write_folder(tmp_path / "b", _photos("", {_NFC: "red", _NFD: "pink"}))
    assert r"'caf\xe9'" in _refusal("imagefolder", both)


@pytest.mark.parametrize("writer", ["folder", "tar"])
def test_class_names_that_are_not_utf8_are_refused(tmp_path: Path, writer: str) -> None:
    """They would break the report after all training."""
    name = os.fsdecode(b"caf\xe9")
    members = _photos("", {name: "red", "dog": "blue"})
    message = _refusal("imagefolder", _WRITERS[writer](tmp_path / "a", members))
    assert r"class folder 'caf\udce9' is not UTF-8" in message
    files = {f"{key}{name}.png": value for key, value in _photos().items()}
    assert _images(_prepared("imagefolder", _WRITERS[writer](tmp_path / "b", files))) == {
        "train": 4,
        "test": 2,
    }


def test_a_source_whose_path_is_not_utf8_can_be_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sources.write_folder(tmp_path / os.fsdecode(b"caf\xe9"), _photos())
    where = ["--data-dir", str(tmp_path / "data")]
    assert data.main(["prepare", "imagefolder", "--source", str(source), *where]) == 0
    assert data.main(["list", *where]) == 0
    listed = capsys.readouterr().out
    assert r"caf\udce9" in listed.replace("\n", "")
    listed.encode()  # could be printed


def test_the_command_prints_classes_splits_and_skipped_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = _photos() | {"cat/notes.txt": b"hi"}
    source = sources.write_folder(tmp_path / "photos", members)
    command = ["prepare", "imagefolder", "--source", str(source), "--data-dir", str(tmp_path)]
    for _ in range(2):  # a dataset that is there already is described too
        assert data.main(command) == 0
        first, *others = capsys.readouterr().out.splitlines()
        assert ": 4 train, 2 test images of 2 classes, fingerprint " in first
        assert others == [
            "The test split is 10 % of every class, because the source has no folder for it.",
            "2 of 2 test images have the same pixels as a training image, so test accuracy will be "
            "too high; remove the copies from the source.",
            "Skipped 1 file (hidden, text or data); the first is 'cat/notes.txt'.",
        ]


_ROOT = "tiny-imagenet-200/"


def _sorted_val(inner: str) -> dict[str, bytes]:
    """Tiny ImageNet with the images of `val` in class folders, without val_annotations.txt."""
    members = sources.tinyimagenet(val=4)
    annotations = members.pop(f"{_ROOT}val/val_annotations.txt").decode()
    for line in annotations.splitlines():
        file, wnid = line.split("\t")[:2]
        members[f"{_ROOT}val/{wnid}/{inner}{file}"] = members.pop(f"{_ROOT}val/images/{file}")
    return members


@pytest.mark.parametrize("writer", ["folder", "zip", "tar"])
@pytest.mark.parametrize("inner", ["", "images/"])
@pytest.mark.parametrize("annotated", [False, True])
def test_val_of_tinyimagenet_can_be_sorted_into_class_folders(
    tmp_path: Path, writer: str, inner: str, annotated: bool
) -> None:
    official = sources.tinyimagenet(val=4)
    expected = _prepared("tinyimagenet", sources.write_zip(tmp_path / "a.zip", official))
    members = _sorted_val(inner)
    if annotated:
        name = f"{_ROOT}val/val_annotations.txt"
        members[name] = official[name].replace(b"\n", b"\r\n")
    got = _prepared("tinyimagenet", _WRITERS[writer](tmp_path / "sorted", members))
    assert got["fingerprint"] == expected["fingerprint"]
    assert _images(got) == {"train": 9, "test": 4}


def test_a_partly_sorted_val_takes_each_label_from_where_it_is(tmp_path: Path) -> None:
    official = sources.tinyimagenet(val=4)
    members = dict(official)
    members[f"{_ROOT}val/n02/val_0.JPEG"] = members.pop(f"{_ROOT}val/images/val_0.JPEG")
    expected = _prepared("tinyimagenet", sources.write_zip(tmp_path / "a.zip", official))
    got = _prepared("tinyimagenet", sources.write_zip(tmp_path / "b.zip", members))
    assert _images(got) == _images(expected)
    moved = {name.replace("val/n02/", "val/n03/"): value for name, value in members.items()}
    assert "gives 'val_0.JPEG' the class 'n02'; its folder is another" in _refusal(
        "tinyimagenet", sources.write_zip(tmp_path / "c.zip", moved)
    )


def test_tinyimagenet_without_words_has_wordnet_ids_for_names(tmp_path: Path) -> None:
    members = _sorted_val("")
    del members[f"{_ROOT}words.txt"]
    manifest = _prepared("tinyimagenet", sources.write_zip(tmp_path / "a.zip", members))
    assert manifest["class_names"] == manifest["class_ids"] == ["n01", "n02", "n03"]


def test_tinyimagenet_without_any_label_of_val_is_refused(tmp_path: Path) -> None:
    members = sources.tinyimagenet()
    del members[f"{_ROOT}val/val_annotations.txt"]
    message = _refusal("tinyimagenet", sources.write_zip(tmp_path / "a.zip", members))
    assert "it holds no 'tiny-imagenet-200/val/val_annotations.txt'" in message


@pytest.mark.parametrize("file", ["Thumbs.db", "desktop.ini", ".DS_Store", "ehthumbs.db"])
def test_files_of_operating_systems_in_tinyimagenet_are_skipped(tmp_path: Path, file: str) -> None:
    members = sources.tinyimagenet()
    expected = _prepared("tinyimagenet", sources.write_zip(tmp_path / "a.zip", members))
    places = ("", "train/", "train/n01/", "train/n01/images/", "val/", "val/images/", "val/n01/")
    members |= {f"{_ROOT}{place}{file}": b"junk" for place in places}
    members |= {f"__MACOSX/{_ROOT}train/n01/images/._n01_0.JPEG": b"junk"}
    got = _prepared("tinyimagenet", sources.write_zip(tmp_path / "b.zip", members))
    assert got["fingerprint"] == expected["fingerprint"]


def test_cifar_has_one_fingerprint_however_it_is_packed(tmp_path: Path) -> None:
    members = sources.cifar10()
    flat = {name.rpartition("/")[2]: content for name, content in members.items()}
    tar = gzip.decompress(sources.write_tar(tmp_path / "a.tar.gz", members).read_bytes())
    given = {"a.tar.gz": gzip.compress(tar), "a.tar.xz": lzma.compress(tar), "a.tar": tar}
    given["a.tar.bz2"] = bz2.compress(tar)
    packed = [sources.write_folder(tmp_path, given) / name for name in given]
    for number, method in enumerate((zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED)):
        packed.append(tmp_path / f"{number}.zip")
        with zipfile.ZipFile(packed[-1], "w", method) as archive:
            for name, content in flat.items():
                archive.writestr(f"CIFAR10/data/{name}", content)
    packed += [sources.write_folder(tmp_path / "flat", flat)]
    packed += [sources.write_tar(tmp_path / "dot.tgz", _dotted(flat))]
    assert len({_prepared("cifar10", source)["fingerprint"] for source in packed}) == 1


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("text_keys", [False, True])
@pytest.mark.parametrize("labels", [list, np.array, lambda labels: list(np.array(labels))])
def test_cifar_pickled_again_is_read(
    tmp_path: Path, protocol: int, text_keys: bool, labels: Any
) -> None:
    members = sources.cifar10()
    expected = _prepared("cifar10", sources.write_folder(tmp_path / "a", members))
    for name, content in members.items():
        batch = {
            key.decode() if text_keys else key: labels(value) if key == b"labels" else value
            for key, value in pickle.loads(content).items()
        }
        members[name] = pickle.dumps(batch, protocol)
    got = _prepared("cifar10", sources.write_folder(tmp_path / "b", members))
    assert got["fingerprint"] == expected["fingerprint"]


def test_another_form_of_cifar_is_refused_by_what_it_holds(tmp_path: Path) -> None:
    members = {f"cifar-10-batches-bin/{n}.bin": b"abc" for n in ("data_batch_1", "test_batch")}
    message = _refusal("cifar10", sources.write_tar(tmp_path / "a.tar.gz", members))
    assert message.endswith(
        "it holds no 'data_batch_1', but 'cifar-10-batches-bin/data_batch_1.bin', "
        "'cifar-10-batches-bin/test_batch.bin'. Give the archive as it was published "
        "(cifar-10-python.tar.gz), or its extracted folder."
    )


@pytest.mark.parametrize("magic", [b"P5", b"P2"])
def test_a_pgm_of_16_bits_is_scaled_to_8(tmp_path: Path, magic: bytes) -> None:
    values = np.array([[0, 256], [0x8000, 0xFFFF]], ">u2")
    raw = values.tobytes() if magic == b"P5" else b" ".join(b"%d" % v for v in values.ravel())
    content = magic + b"\n2 2\n65535\n" + raw
    assert decode(content, (2, 2), resize=False)[..., 1].tolist() == [[0, 1], [128, 255]]
    assert decode(content, (2, 2), resize=True)[..., 1].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize("kind", ["<i2", "<i4", "<f4"])
def test_pixels_that_cannot_be_scaled_are_named_as_what_they_are(tmp_path: Path, kind: str) -> None:
    """Pillow has one mode for signed 16 and for 32 bits."""
    pixels = np.zeros((8, 8), kind)
    tags = [(256, 8), (257, 8), (258, pixels.itemsize * 8), (262, 1), (273, 122), (278, 8)]
    tags += [(279, pixels.nbytes), (339, 3 if kind == "<f4" else 2)]
    content = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    content += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = content.ljust(122, b"\0") + pixels.tobytes()
    source = sources.write_folder(tmp_path / "a", _photos() | {"cat/odd.tiff": content})
    assert _refusal("imagefolder", source) == (
        "The image 'cat/odd.tiff' cannot be used: its pixels are signed, of 32 bits or fractions; "
        "save it with 8 or 16 bits."
    )


def test_an_image_with_large_text_metadata_is_refused_with_the_reason(tmp_path: Path) -> None:
    image = sources.encoded(sources.image("red"))
    chunk = b"zTXtk\0\0" + zlib.compress(bytes(2 * 10**6))
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    members = _photos() | {"cat/odd.png": image[:33] + chunk + image[33:]}
    message = _refusal("imagefolder", sources.write_folder(tmp_path / "a", members))
    assert "its text metadata unpacks to more than 1 MiB; save it without metadata" in message
