"""Preparing, verifying and listing datasets, through the public functions and the command line."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.data import __main__ as data
from orchestrator.data import prepare, prepared
from orchestrator.errors import UsageError
from tests.orchestrator.data import archive_files as sources
from trainables import limits


def _open(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, Any]:
    batch = pa.ipc.open_file(pa.memory_map(str(folder / f"{split}.arrow"))).get_batch(0)
    return batch.column(0).to_numpy_ndarray(), batch.column(1).to_numpy(), batch


def _manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def _prepare(kind: str, data_dir: Path, source: Path | None = None, **options: Any) -> Path:
    where = None if source is None else str(source)
    return prepare.prepare(kind, data_dir=data_dir, source=where, progress=False, **options)


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_digits_are_all_there_scaled_and_split_by_class(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    folder = _prepare("digits", tmp_path)
    train, train_labels, _ = _open(folder, "train")
    test, test_labels, _ = _open(folder, "test")
    assert train.shape == (1438, 8, 8, 1)
    assert test.shape == (359, 8, 8, 1)
    # The official counts per digit; a fifth of each is held out.
    counts = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert np.bincount(test_labels).tolist() == np.round(counts * 0.2).astype(int).tolist()
    assert (np.bincount(train_labels) + np.bincount(test_labels) == counts).all()
    raw = load_digits()
    got = np.sort(np.concatenate([train, test]).reshape(1797, 64).sum(axis=1))
    assert (got == np.sort(np.rint(raw.images * 255 / 16).reshape(1797, 64).sum(axis=1))).all()
    assert train.max() == 255
    manifest = _manifest(folder)
    assert manifest["class_names"] == [str(digit) for digit in range(10)]
    assert manifest["held_out_fraction"] == 0.2
    assert manifest["mean"] == pytest.approx([(train / 255).mean()], abs=1e-12)
    assert manifest["std"] == pytest.approx([(train / 255).std()], abs=1e-12)


def test_digits_fingerprint_is_pinned(tmp_path: Path) -> None:
    """It is part of the identity of every stored result."""
    assert _manifest(_prepare("digits", tmp_path))["fingerprint"] == "06029e7a61040290"


def test_every_buffer_is_aligned_to_64_bytes_for_any_image_size(tmp_path: Path) -> None:
    for image_size_px in (5, 6, 64):
        members = {
            f"{c}/{n}.png": sources.encoded(sources.image(n))
            for c in "ab"
            for n in ("red", "green", "blue")
        }
        folder = sources.write_folder(tmp_path / f"images{image_size_px}", members)
        name = f"side{image_size_px}"
        prepared = _prepare("imagefolder", tmp_path, folder, image_size_px=image_size_px, name=name)
        for split in ("train", "test"):
            with pa.memory_map(str(prepared / f"{split}.arrow")) as mapped:
                start = mapped.read_buffer().address
                mapped.seek(0)
                reader = pa.ipc.open_file(mapped)
                assert reader.num_record_batches == 1
                batch = reader.get_batch(0)
                columns = [batch.column(0).storage, batch.column(1)]
                buffers = [b for column in columns for b in column.buffers() if b is not None]
                assert len(buffers) == 2
                assert [(b.address - start) % 64 for b in buffers] == [0, 0]
                del batch, columns, buffers, reader


def test_tinyimagenet_takes_labels_names_and_pixels_from_their_files(tmp_path: Path) -> None:
    archive = sources.write_zip(tmp_path / "a.zip", sources.tinyimagenet())
    folder = _prepare("tinyimagenet", tmp_path, archive)
    manifest = _manifest(folder)
    assert manifest["class_ids"] == ["n01", "n02", "n03"]
    assert manifest["class_names"] == ["goldfish", "salamander", "bullfrog"]
    assert manifest["splits"]["train"]["images"] == 9
    assert manifest["source"] == {
        "address": str(archive),
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }
    train, labels, batch = _open(folder, "train")
    assert batch.schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), (64, 64, 3))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # n01 is second in the list, so its red is 50; n02 is first; n03 third.
    assert train[:, 10, 20, 0].tolist() == [50, 50, 50, 0, 0, 0, 100, 100, 100]
    assert train[:, 63, 63, 1].tolist() == [0, 1, 2] * 3
    test, test_labels, _ = _open(folder, "test")
    assert test_labels.tolist() == [0, 1]  # val_1 is n01, val_0 is n02
    assert test[:, 0, 0].tolist() == [[200, 1, 9], [200, 0, 9]]
    assert manifest["mean"] == pytest.approx([50 / 255, 1 / 255, 7 / 255])
    assert manifest["std"] == pytest.approx([np.std([0, 50, 100]) / 255, np.sqrt(2 / 3) / 255, 0])


def test_zip_tar_and_extracted_folder_have_one_fingerprint(tmp_path: Path) -> None:
    members = sources.tinyimagenet()
    backwards = dict(reversed(members.items()))
    given = [
        sources.write_zip(tmp_path / "a.zip", members),
        sources.write_tar(tmp_path / "a.tar.gz", backwards),
        sources.write_folder(tmp_path / "extracted", members),
        tmp_path / "extracted" / "tiny-imagenet-200",
    ]
    found = {
        _manifest(_prepare("tinyimagenet", tmp_path / str(number), source))["fingerprint"]
        for number, source in enumerate(given)
    }
    assert len(found) == 1


@pytest.mark.parametrize("changed", ["pixel", "label", "class name"])
def test_the_fingerprint_depends_on_the_content(tmp_path: Path, changed: str) -> None:
    members = sources.tinyimagenet()
    first = _prepare("tinyimagenet", tmp_path, sources.write_zip(tmp_path / "a.zip", members))
    root = "tiny-imagenet-200"
    if changed == "pixel":
        picture = sources.image((0, 0, 7))
        picture.putpixel((5, 5), (1, 0, 7))
        members[f"{root}/train/n02/images/n02_0.JPEG"] = sources.encoded(picture)
    elif changed == "label":
        text = members[f"{root}/val/val_annotations.txt"].replace(b"\tn02", b"\tn01")
        members[f"{root}/val/val_annotations.txt"] = text
    else:
        members[f"{root}/words.txt"] = members[f"{root}/words.txt"].replace(b"bull", b"tree")
    source = sources.write_zip(tmp_path / "b.zip", members)
    second = _prepare("tinyimagenet", tmp_path, source, name="other")
    assert _manifest(first)["fingerprint"] != _manifest(second)["fingerprint"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("train/n02/images/n02_1.JPEG", b"\xff\xd8broken", "'tiny-imagenet-200/train/n02/images"),
        ("train/n77/images/n77_1.JPEG", b"", "class of 'tiny-imagenet-200/train/n77/images/n77_1"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn55\n", "Line 1 of .* gives 'val_0.JPEG' the"),
        ("val/val_annotations.txt", b"val_7.JPEG\tn01\n", "images/val_7.JPEG', which is missing"),
        ("val/val_annotations.txt", b"val_0.JPEG\tn01\n", "images/val_1.JPEG' is not listed"),
        ("wnids.txt", b"n01 n02 n03 n04", "'n04' has no training image"),
        (
            "train/n02/images/n02_1.JPEG",
            sources.encoded(sources.image(1, size=(60, 64))),
            "n02_1.JPEG' cannot be used: it must be 64 x 64 pixels; it is 64 x 60",
        ),
    ],
)
def test_problems_of_tinyimagenet_are_named_and_nothing_is_left(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    members = sources.tinyimagenet() | {f"tiny-imagenet-200/{name}": content}
    archive = sources.write_zip(tmp_path / "a.zip", members)
    with pytest.raises(UsageError, match=sentence):
        _prepare("tinyimagenet", tmp_path / "out", archive)
    assert _visible(tmp_path / "out") == []


def test_all_broken_images_are_named_at_once(tmp_path: Path) -> None:
    members = sources.tinyimagenet()
    broken = [f"tiny-imagenet-200/train/n0{c}/images/n0{c}_1.JPEG" for c in (1, 2, 3)]
    whole = members[broken[2]]
    members |= {broken[0]: b"", broken[1]: b"text", broken[2]: whole[: len(whole) // 2]}
    archive = sources.write_zip(tmp_path / "a.zip", members)
    with pytest.raises(UsageError) as caught:
        _prepare("tinyimagenet", tmp_path, archive)
    assert all(f"The image {name!r} cannot be used" in str(caught.value) for name in broken)


def test_the_error_for_another_archive_names_a_missing_file(tmp_path: Path) -> None:
    archive = sources.write_zip(tmp_path / "a.zip", {"readme.txt": b"hello"})
    with pytest.raises(UsageError, match=r"holds no 'wnids\.txt'"):
        _prepare("tinyimagenet", tmp_path, archive)
    with pytest.raises(UsageError, match="holds no 'data_batch_1'"):
        _prepare("cifar10", tmp_path, archive)


def test_cifar10_batches_keep_their_order_and_planes_become_channels(tmp_path: Path) -> None:
    members = sources.cifar10()
    folder = _prepare("cifar10", tmp_path, sources.write_tar(tmp_path / "c.tar.gz", members))
    train, labels, batch = _open(folder, "train")
    assert train[:, 3, 4, 2].tolist() == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]
    assert labels.tolist() == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert batch.schema.names == ["image", "label"]
    assert _open(folder, "test")[0][:, 0, 0, 0].tolist() == [50, 51]
    assert _manifest(folder)["class_names"] == ["airplane", "automobile"]


def test_cifar100_keeps_fine_and_coarse_labels(tmp_path: Path) -> None:
    members = sources.cifar100()
    folder = _prepare("cifar100", tmp_path, sources.write_tar(tmp_path / "c.tar.gz", members))
    _, labels, batch = _open(folder, "train")
    assert labels.tolist() == [0, 1, 2, 0]
    assert batch.column("coarse_label").to_pylist() == [1, 0, 1, 1]
    manifest = _manifest(folder)
    assert manifest["class_names"] == ["apple", "bear", "cherry"]
    assert manifest["coarse_names"] == ["animals", "fruit"]
    assert manifest["fine_to_coarse"] == [1, 0, 1]
    assert prepared.verify("cifar100", tmp_path) == []


def test_missing_cifar_batch_is_an_error(tmp_path: Path) -> None:
    members = sources.cifar10()
    del members["cifar-10-batches-py/data_batch_3"]
    with pytest.raises(UsageError, match="holds no 'data_batch_3'"):
        _prepare("cifar10", tmp_path, sources.write_tar(tmp_path / "c.tar.gz", members))


def _classes(*labels: str, images: int = 10) -> dict[str, bytes]:
    return {
        f"{label}/{number}.png": sources.encoded(sources.image((number, 50, 100), size=(20, 30)))
        for label in labels
        for number in range(images)
    }


def test_an_imagefolder_without_test_images_holds_out_a_tenth_of_every_class(
    tmp_path: Path,
) -> None:
    members = _classes("cat", "dog") | {"cat/.hidden": b"x", "__MACOSX/cat/0.png": b"x"}
    source = sources.write_folder(tmp_path / "mine", members)
    folder = _prepare("imagefolder", tmp_path, source)
    train, labels, _ = _open(folder, "train")
    assert train.shape == (18, 64, 64, 3)
    assert labels.tolist() == [0] * 9 + [1] * 9
    _, test_labels, _ = _open(folder, "test")
    assert test_labels.tolist() == [0, 1]
    manifest = _manifest(folder)
    assert manifest["class_names"] == ["cat", "dog"]
    assert manifest["held_out_fraction"] == 0.1


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_an_imagefolder_with_train_and_test_folders_uses_them(
    tmp_path: Path, held_out: str
) -> None:
    members = {f"train/{k}": v for k, v in _classes("cat", "dog", images=3).items()}
    members |= {f"{held_out}/{k}": v for k, v in _classes("dog", images=1).items()}
    source = sources.write_folder(tmp_path / "mine", members)
    folder = _prepare("imagefolder", tmp_path, source, image_size_px=16, name="pets")
    assert folder == tmp_path / "pets"
    assert _open(folder, "train")[1].tolist() == [0, 0, 0, 1, 1, 1]
    test, labels, _ = _open(folder, "test")
    assert labels.tolist() == [1]
    assert test[0, 8, 8].tolist() == [0, 50, 100]
    assert "held_out_fraction" not in _manifest(folder)


def test_train_among_other_folders_is_a_class(tmp_path: Path) -> None:
    source = sources.write_folder(tmp_path / "mine", _classes("car", "train", images=3))
    assert _manifest(_prepare("imagefolder", tmp_path, source))["class_names"] == ["car", "train"]


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (_classes("a", images=2) | _classes("b"), "class 'a' needs at least 3 images .* it has 2"),
        (_classes("a"), r"At least 2 classes are needed; got \['a'\]"),
        (_classes("a", "b") | {"a/notes.svg": b"<svg/>"}, "'a/notes.svg' cannot be used: it is no"),
        (_classes("a", "b") | {"c.png": b""}, "'c.png' is not in a class folder"),
        (_classes("a", "b/deep"), "'b/deep/0.png' is not in a class folder"),
        (_classes("train/a", "train/b", "val/x"), "class 'x' in `val` is unknown"),
        ({}, "holds no image"),
    ],
)
def test_problems_of_an_image_folder_are_named(
    tmp_path: Path, members: dict[str, bytes], sentence: str
) -> None:
    source = sources.write_folder(tmp_path / "mine", members)
    source.mkdir(exist_ok=True)
    with pytest.raises(UsageError, match=sentence):
        _prepare("imagefolder", tmp_path / "out", source)
    assert _visible(tmp_path / "out") == []


def test_preparing_again_from_the_same_source_changes_nothing(tmp_path: Path) -> None:
    archive = sources.write_zip(tmp_path / "a.zip", sources.tinyimagenet())
    folder = _prepare("tinyimagenet", tmp_path, archive)
    before = (folder / "manifest.json").stat()
    copy = sources.write_folder(tmp_path, {"copy.zip": archive.read_bytes()}) / "copy.zip"
    for source in (archive, copy, None):
        assert _prepare("tinyimagenet", tmp_path, source) == folder
    assert prepare.ensure_prepared("tinyimagenet", tmp_path) == folder
    after = (folder / "manifest.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_another_source_under_a_taken_name_is_an_error(tmp_path: Path) -> None:
    first = sources.write_zip(tmp_path / "a.zip", sources.tinyimagenet())
    second = sources.write_zip(tmp_path / "b.zip", sources.tinyimagenet(per_class=4))
    folder = _prepare("tinyimagenet", tmp_path, first)
    with pytest.raises(UsageError, match=r"was prepared as 'tinyimagenet' .* `--as NAME`"):
        _prepare("tinyimagenet", tmp_path, second)
    assert _manifest(folder)["splits"]["train"]["images"] == 9
    other = _prepare("tinyimagenet", tmp_path, second, name="bigger")
    assert _manifest(other)["splits"]["train"]["images"] == 12


def test_imagefolder_of_another_size_under_a_taken_name_is_an_error(tmp_path: Path) -> None:
    source = sources.write_folder(tmp_path / "mine", _classes("a", "b"))
    folder = _prepare("imagefolder", tmp_path, source, image_size_px=8)
    assert _prepare("imagefolder", tmp_path, source, image_size_px=8) == folder
    for image_size_px in (None, 16):
        with pytest.raises(UsageError, match="with image size 8"):
            _prepare("imagefolder", tmp_path, source, image_size_px=image_size_px)


def test_a_folder_without_a_dataset_is_not_overwritten(tmp_path: Path) -> None:
    sources.write_folder(tmp_path / "digits", {"thesis.txt": b"precious"})
    with pytest.raises(UsageError, match="is not a prepared dataset"):
        _prepare("digits", tmp_path)
    assert (tmp_path / "digits" / "thesis.txt").read_bytes() == b"precious"


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    left = sources.write_folder(tmp_path / ".digits.preparing-123", {"train.arrow": b"half"})
    other = sources.write_folder(tmp_path / ".digits.preparing-x", {"file": b"not ours"})
    _prepare("digits", tmp_path)
    assert not left.exists()
    assert other.exists()


def test_official_archive_in_the_data_folder_is_found_without_network(tmp_path: Path) -> None:
    path = sources.write_tar(tmp_path / "cifar-10-python.tar.gz", sources.cifar10())
    folder = prepare.ensure_prepared("cifar10", tmp_path)
    assert _manifest(folder)["source"]["address"] == str(path)


def test_unknown_dataset_lists_known_and_prepared_ones(tmp_path: Path) -> None:
    _prepare("imagefolder", tmp_path, sources.write_folder(tmp_path / "m", _classes("a", "b")))
    with pytest.raises(UsageError) as caught:
        prepare.ensure_prepared("tinyimagnet", tmp_path)
    assert str(caught.value) == (
        "Unknown dataset 'tinyimagnet'. Known: cifar10, cifar100, digits, imagefolder, "
        "tinyimagenet. Did you mean 'tinyimagenet'?"
    )


def test_unprepared_imagefolder_says_how_to_prepare_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prepare imagefolder --source FOLDER"):
        prepare.ensure_prepared("imagefolder", tmp_path)


def test_all_wrong_options_are_listed_in_one_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        _prepare("digits", tmp_path, tmp_path, image_size_px=32, name="../up")
    text = str(caught.value)
    assert "got '../up'" in text
    assert "takes no `--source`" in text
    assert "`--image-size` is for `imagefolder`" in text


def test_verify_finds_one_changed_pixel(tmp_path: Path) -> None:
    folder = _prepare("digits", tmp_path)
    assert prepared.verify("digits", tmp_path) == []
    path = folder / "test.arrow"
    content = bytearray(path.read_bytes())
    content[1024] ^= 1
    path.write_bytes(content)
    problems = prepared.verify("digits", tmp_path)
    assert len(problems) == 2
    assert problems[0].startswith("test.arrow was changed")
    assert problems[1].startswith("The fingerprint must be 06029e7a61040290")


def test_verify_finds_a_cut_off_file_and_wrong_statistics(tmp_path: Path) -> None:
    folder = _prepare("digits", tmp_path)
    manifest = _manifest(folder)
    manifest["mean"] = [0.5]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    os.truncate(folder / "test.arrow", 5000)
    problems = prepared.verify("digits", tmp_path)
    assert len(problems) == 2
    assert problems[0].startswith("The manifest's mean and std must be those of train, (")
    assert problems[1].startswith("test.arrow is not an Arrow IPC file")


def test_verify_of_a_missing_file_says_so(tmp_path: Path) -> None:
    (_prepare("digits", tmp_path) / "train.arrow").unlink()
    [problem] = prepared.verify("digits", tmp_path)
    assert "train.arrow" in problem


def test_list_shows_prepared_and_known_datasets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _prepare("digits", tmp_path)
    sources.write_folder(tmp_path / "unrelated", {"manifest.json": b"{}"})
    assert [item.manifest.name for item in prepared.prepared(tmp_path)] == ["digits"]
    assert data.main(["list", "--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    [digits] = [line for line in lines if "digits" in line]
    assert all(part in digits for part in ("1,438 train + 359 test", "8 px", "06029e7a61040290"))
    [cifar] = [line for line in lines if "cifar100" in line]
    assert "not prepared" in cifar
    assert "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz" in cifar
    assert not any("unrelated" in line for line in lines)


def test_exit_statuses_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-dir", str(tmp_path)]
    assert data.main(["prepare", "digits", *where]) == 0
    out = capsys.readouterr().out
    expected = "1,438 train, 359 test images of 10 classes, fingerprint 06029e7a61040290."
    assert out == (f"{tmp_path / 'digits'}: {expected}\nThe test split is 20 % of every class.\n")
    assert data.main(["verify", "digits", *where]) == 0
    (tmp_path / "digits" / "test.arrow").write_bytes(b"")
    assert data.main(["verify", "digits", *where]) == 1
    capsys.readouterr()
    assert data.main(["verify", "digit", *where]) == 2
    assert "Did you mean 'digits'?" in capsys.readouterr().err
    assert data.main(["prepare", "imagefolder", "--source", "/nowhere", *where]) == 2
    assert capsys.readouterr().err == (
        "The source must be an existing file or folder; got /nowhere.\n"
    )


def test_datasets_at_an_address_are_prepared_listed_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    where = ("--data-dir", (tmp_path / "shared").as_uri())
    assert data.main(["prepare", "digits", *where]) == 0
    assert f"{where[1]}/digits: 1,438 train, 359 test images" in capsys.readouterr().out
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))  # another host
    assert data.main(["list", *where]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if " digits " in line]
    assert "1,438 train + 359 test" in row
    assert "0.1 MiB" in row
    assert not (tmp_path / "two").exists()
    assert data.main(["verify", "digits", *where]) == 0
    assert len(list((tmp_path / "two").rglob("*.arrow"))) == 2


def test_interrupt_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_prepared", interrupt)
    assert data.main(["prepare", "digits", "--data-dir", str(tmp_path)]) == 130
    assert "same command" in capsys.readouterr().err
    assert _visible(tmp_path) == []


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, orchestrator.data.__main__\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy', 'PIL', 'sklearn', 'rich'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_second_process_waits_for_the_first_and_uses_its_result(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator.data", "prepare", "digits"]
    command += ["--data-dir", str(tmp_path)]
    from orchestrator.storage.locks import announced_lock

    with announced_lock(tmp_path / ".digits.lock", "busy"):
        waiting = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        assert waiting.stderr is not None
        line = waiting.stderr.readline().decode()
        assert line == "Another process is preparing 'digits'; waiting for it.\n"
        assert not (tmp_path / "digits").exists()
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert b"06029e7a61040290" in out


def test_a_killed_process_leaves_no_prepared_dataset(tmp_path: Path) -> None:
    """Killed while decoding in processes; those end too, and the same command then succeeds."""
    if limits.num_cpus() == 1:
        pytest.skip("one core: decoding starts no processes")
    members = sources.tinyimagenet(per_class=1500)
    archive = sources.write_zip(tmp_path / "a.zip", members)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "orchestrator.data", "prepare", "tinyimagenet"]
    command += ["--source", str(archive), "--data-dir", str(out)]
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    ) as first:
        while len(workers := _children(first.pid)) < 2:
            assert first.poll() is None
            time.sleep(0.01)
        assert len(list(out.glob(".tinyimagenet.preparing-*/train.arrow"))) == 1
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert [path.name for path in out.glob("[!.]*")] == []
    assert prepared.prepared(out) == []
    # The workers held the pipe; they are gone within moments of their parent.
    deadline_s = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    folder = _prepare("tinyimagenet", out, archive)
    assert prepared.verify("tinyimagenet", out) == []
    assert list(out.glob(".tinyimagenet.preparing-*")) == []
    train, labels, _ = _open(folder, "train")
    # Rows are in natural order, whichever worker wrote them: green is the image's number.
    assert train[labels == 1, 0, 0, 1].tolist() == [number % 250 for number in range(1500)]


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def test_real_tinyimagenet_sample_is_prepared(tmp_path: Path) -> None:
    archive = sources.SAMPLES / "tiny-imagenet-200-sample.zip"
    if not archive.exists():
        pytest.skip("Tiny ImageNet sample not present")
    folder = _prepare("tinyimagenet", tmp_path, archive)
    manifest = _manifest(folder)
    assert {name: entry["images"] for name, entry in manifest["splits"].items()} == {
        "train": 12_000,
        "test": 2_000,
    }
    _, labels, _ = _open(folder, "train")
    assert np.bincount(labels).tolist() == [60] * 200
    goldfish = manifest["class_ids"].index("n01443537")
    assert manifest["class_names"][goldfish] == "goldfish"
    # The published statistics of Tiny ImageNet's training part, from 100,000 images.
    assert manifest["mean"] == pytest.approx([0.4802, 0.4481, 0.3975], abs=0.01)
    assert manifest["std"] == pytest.approx([0.2770, 0.2691, 0.2821], abs=0.01)
    assert prepared.verify("tinyimagenet", tmp_path) == []


def test_real_cifar10_sample_is_prepared(tmp_path: Path) -> None:
    archive = sources.SAMPLES / "cifar-10-python-sample.tar.gz"
    if not archive.exists():
        pytest.skip("CIFAR-10 sample not present")
    folder = _prepare("cifar10", tmp_path, archive)
    manifest = _manifest(folder)
    assert manifest["class_names"][:3] == ["airplane", "automobile", "bird"]
    assert {name: entry["images"] for name, entry in manifest["splits"].items()} == {
        "train": 3_000,
        "test": 600,
    }
    # The well-known statistics of CIFAR-10's training part, from 50,000 images.
    assert manifest["mean"] == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)
    assert manifest["std"] == pytest.approx([0.2470, 0.2435, 0.2616], abs=0.01)


@pytest.mark.parametrize("data_dir", [".", "data", "a/data"])
def test_a_data_folder_inside_the_source_is_refused_before_it_is_created(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data_dir: str,
) -> None:
    """`cd photos; python -m orchestrator.data prepare imagefolder --source .`"""
    members = {f"{c}/{n}.png": sources.encoded(sources.image("red")) for c in "ab" for n in "123"}
    photos = sources.write_folder(tmp_path / "photos", members)
    monkeypatch.chdir(photos)
    words = ["prepare", "imagefolder", "--as", "photos", "--data-dir"]
    assert data.main([*words, data_dir, "--source", "."]) == 2
    error = capsys.readouterr().err
    assert "The data folder must be outside the source, because all files in a source" in error
    assert f"such as {tmp_path / 'data'}, to this" in error
    assert sorted(path.name for path in photos.iterdir()) == ["a", "b"]
    assert data.main([*words, str(tmp_path / "data"), "--source", "."]) == 0
    assert data.main([*words, str(tmp_path / "new"), "--source", "missing"]) == 2
    assert not (tmp_path / "new").exists()
