"""Reading prepared datasets: views without copies, splits, orders, batches, and damaged folders."""

import errno
import io
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.datasets import load_digits

from tests.trainables.digits_trials import CPU, digits_config, learned
from trainables.data import dataset
from trainables.data.batches import (
    ImageStore,
    derived_seed,
    open_store,
    steps_in_epoch,
    train_batches,
)
from trainables.training import loop

ORDER = {"seed": 3, "epoch": 2}


def batches(rows, **values):
    options = {"batch_size": 8, **ORDER, "rank": 0, "workers": 1, **values}
    return [batch.tolist() for batch in train_batches(rows, **options)]


def of_rows(*rows) -> bytes:
    """Return a NumPy file with these row numbers."""
    file = io.BytesIO()
    np.save(file, np.array(rows))
    return file.getvalue()


def copied(digits_dir: Path, folder: Path) -> Path:
    saved = shutil.ignore_patterns("validation")  # by other tests
    return shutil.copytree(digits_dir, folder / "digits", ignore=saved)


# --- files ---------------------------------------------------------------------------------------


def test_a_split_is_a_read_only_view_of_the_mapped_file(digits_dir):
    images, labels = dataset.open_split(digits_dir, "train")
    assert images.shape == (1438, 8, 8, 1)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert not images.flags.owndata
    assert not images.flags.writeable
    assert images.flags.c_contiguous
    address = images.__array_interface__["data"][0]
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(digits_dir / "train.arrow"))
    ]
    assert any(low <= address and address + images.nbytes <= high for low, high in ranges)
    store = open_store(digits_dir, "train", CPU)
    assert store.images.data_ptr() == address  # torch shares the mapping too


def test_images_and_labels_are_those_of_the_source(digits_dir):
    source = load_digits()
    known = {
        (image.astype(np.uint8).tobytes(), int(label))
        for image, label in zip(source.images, source.target, strict=True)
    }
    found = set()
    for split in ("train", "test"):
        images, labels = dataset.open_split(digits_dir, split)
        # The source has 0 to 16 in place of 0 to 255.
        levels = np.round(images[..., 0].astype(float) / 255 * 16).astype(np.uint8)
        found |= {(i.tobytes(), int(k)) for i, k in zip(levels, labels, strict=True)}
    assert found == known


def test_the_manifest_describes_the_files(digits_dir):
    manifest = dataset.load_manifest(digits_dir)
    images, labels = dataset.open_split(digits_dir, "train")
    assert manifest.class_names == tuple("0123456789")
    assert manifest.images == {"train": len(images), "test": 359}
    assert (manifest.image_size_px, manifest.channels) == (8, 1)
    assert manifest.mean == pytest.approx([images.mean() / 255])
    assert manifest.std == pytest.approx([images.std() / 255])
    assert set(labels) == set(range(10))


def test_a_folder_without_a_dataset_is_refused_with_the_command_that_prepares_it(tmp_path):
    with pytest.raises(dataset.DatasetError, match=r"holds no prepared dataset.*prepare digits"):
        dataset.load_manifest(tmp_path / "digits")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"splits": []}', "\udcff", "null", '{"name": 1, "splits": {}}']
)
def test_a_file_that_is_not_a_manifest_is_refused(digits_dir, tmp_path, text):
    folder = copied(digits_dir, tmp_path)
    (folder / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(dataset.DatasetError, match=r"is not a dataset manifest .*prepare it again"):
        dataset.load_manifest(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:50_000]),
        lambda path: path.write_bytes(b"x" * 10_000),
    ],
    ids=["missing", "empty", "cut short", "no Arrow"],
)
def test_a_damaged_split_is_refused(digits_dir, tmp_path, damage):
    folder = copied(digits_dir, tmp_path)
    damage(folder / "train.arrow")
    with pytest.raises(dataset.DatasetError, match=r"cannot be read as a prepared split.*verify"):
        dataset.open_split(folder, "train")


@pytest.mark.parametrize(
    "columns",
    [
        {"image": pa.array([1, 2]), "label": pa.array([0, 1])},
        {"pixels": pa.array([1, 2]), "label": pa.array([0, 1])},
        {
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3, 3), np.uint8)),
            "label": pa.array([0, 1]),
        },
        {
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3, 3, 1), np.int32)),
            "label": pa.array([0, 1]),
        },
    ],
    ids=["no tensors", "no images", "no channels", "no bytes"],
)
def test_an_arrow_file_of_another_form_is_refused(tmp_path, columns):
    batch = pa.record_batch(columns)
    with pa.ipc.new_file(str(tmp_path / "train.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(dataset.DatasetError, match="cannot be read as a prepared split"):
        dataset.open_split(tmp_path, "train")


def test_a_split_in_several_record_batches_is_refused(tmp_path):
    image = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3, 3, 1), np.uint8))
    batch = pa.record_batch({"image": image, "label": pa.array([0, 1])})
    with pa.ipc.new_file(str(tmp_path / "train.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    with pytest.raises(dataset.DatasetError, match="2 record batches instead of one"):
        dataset.open_split(tmp_path, "train")


def test_a_trial_of_another_dataset_is_refused(digits_dir):
    config = digits_config(digits_dir, dataset_fingerprint="0123456789abcdef")
    with pytest.raises(dataset.DatasetError, match=r"fingerprint .* but this trial is of '0123"):
        next(loop.fit(config, digits_dir, device=CPU))


# --- splits --------------------------------------------------------------------------------------


def test_the_split_is_stratified_disjoint_and_complete(digits_dir):
    _, labels = dataset.open_split(digits_dir, "train")
    train, val = dataset.split_indices(labels, 0.1, 0)
    assert len(val) == 144
    assert np.array_equal(np.sort(np.concatenate((train, val))), np.arange(1438))
    expected = np.bincount(labels) * 0.1
    assert np.all(np.abs(np.bincount(labels[val]) - expected) < 1)
    assert np.array_equal(train, np.sort(train))
    assert np.array_equal(val, np.sort(val))


def test_the_split_depends_on_its_seed_alone(digits_dir):
    _, labels = dataset.open_split(digits_dir, "train")
    first = dataset.split_indices(labels, 0.1, 0)[1]
    np.random.seed(5)  # the global generator must not matter
    assert np.array_equal(dataset.split_indices(labels, 0.1, 0)[1], first)
    assert not np.array_equal(dataset.split_indices(labels, 0.1, 1)[1], first)


def test_without_a_validation_fraction_all_images_are_training_images():
    train, val = dataset.split_indices(np.array([0, 1, 1]), 0.0, 0)
    assert train.tolist() == [0, 1, 2]
    assert val.tolist() == []


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("sizes", [(2, 2), (2, 2, 3), (3, 3, 3), (2, 9, 2), (1, 8, 8), (1, 1, 2)])
def test_tiny_classes_can_be_split(sizes, fraction):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    train, val = dataset.split_indices(labels, fraction, 0)
    assert np.array_equal(np.sort(np.concatenate((train, val))), np.arange(len(labels)))
    assert len(val) > 0
    assert set(labels[train]) == set(labels)  # every class is trained
    counts = np.bincount(labels, minlength=len(sizes))
    assert np.all(np.bincount(labels[val], minlength=len(sizes))[counts == 1] == 0)
    divided = counts[counts > 1]
    assert len(val) == dataset.validation_size(sum(divided), len(divided), fraction)


def test_classes_of_one_image_each_cannot_be_split():
    with pytest.raises(dataset.DatasetError, match="needs a class with two images or more"):
        dataset.split_indices(np.arange(5), 0.1, 0)


def test_a_saved_validation_split_is_read_by_other_processes(digits_dir, tmp_path, monkeypatch):
    folder = copied(digits_dir, tmp_path)
    fingerprint = dataset.load_manifest(folder).fingerprint
    labels = dataset.open_split(folder, "train")[1]

    def rows(fraction=0.1):
        dataset.training_and_validation_rows.cache_clear()  # as in a new process
        return dataset.training_and_validation_rows(folder, fingerprint, fraction, 3)

    expected = dataset.split_indices(labels, 0.1, 3)
    for _ in range(2):  # found, then read
        for part, same in zip(rows(), expected, strict=True):
            assert np.array_equal(part, same)
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "split_indices", None)
        assert np.array_equal(rows()[1], expected[1])
        with pytest.raises(TypeError):
            rows(0.2)  # another split
    (file,) = (folder / "validation").iterdir()
    whole = file.read_bytes()
    damaged = [
        *(b"", whole[:200], whole[:60], b"PK" + whole[2:], whole.replace(b"shape", b"sh(pe")),
        *(of_rows(9_999_999), of_rows(-1), of_rows(0.5), of_rows(3, 3), of_rows(4, 3), of_rows()),
    ]
    for content in damaged:
        file.write_bytes(content)
        assert np.array_equal(rows()[1], expected[1])
        assert file.read_bytes() == whole
    assert list((folder / "validation").iterdir()) == [file]
    assert rows(0.0)[0].tolist() == list(range(1438))
    assert list((folder / "validation").iterdir()) == [file]


def test_a_validation_split_is_computed_where_it_cannot_be_saved(digits_dir, tmp_path, monkeypatch):
    folder = copied(digits_dir, tmp_path)
    fingerprint = dataset.load_manifest(folder).fingerprint
    monkeypatch.setattr(Path, "mkdir", Mock(side_effect=OSError(errno.EROFS, "read-only")))
    val = dataset.training_and_validation_rows(folder, fingerprint, 0.1, 4)[1]
    monkeypatch.undo()
    assert np.array_equal(
        val, dataset.split_indices(dataset.open_split(folder, "train")[1], 0.1, 4)[1]
    )
    assert not list(folder.glob("validation/*"))


# --- orders --------------------------------------------------------------------------------------


def test_an_epoch_is_a_permutation_of_the_rows():
    rows = torch.arange(100, 164)
    order = [row for batch in batches(rows) for row in batch]
    assert sorted(order) == rows.tolist()
    assert order != rows.tolist()


def test_the_order_depends_on_seed_and_epoch():
    rows = torch.arange(64)
    torch.manual_seed(0)
    one = batches(rows)
    torch.manual_seed(1)  # the global generator must not matter
    assert batches(rows) == one
    assert batches(rows, seed=4) != one
    assert batches(rows, epoch=3) != one


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("images", [64, 61, 6])
def test_workers_batches_together_are_those_of_one_worker(images, workers):
    rows = torch.arange(images)
    whole = batches(rows)
    shares = [batches(rows, rank=rank, workers=workers) for rank in range(workers)]
    assert {len(share) for share in shares} == {len(whole)}
    for step, batch in enumerate(whole):
        together = [row for share in shares for row in share[step]]
        # Where one batch holds everything, it is cut so that all workers see as many images.
        assert together == batch[: len(batch) - len(batch) % workers]
        assert {len(share[step]) for share in shares} == {len(together) // workers}


@pytest.mark.parametrize(
    ("images", "sizes"), [(16, [8, 8]), (23, [8, 8]), (8, [8]), (7, [7]), (1, [1])]
)
def test_a_last_partial_batch_is_left_out_unless_it_is_the_only_one(images, sizes):
    assert [len(batch) for batch in batches(torch.arange(images))] == sizes
    assert steps_in_epoch(images, 8) == len(sizes)


def test_derived_seeds_differ_by_purpose_and_never_change():
    purposes = [("order", 0), ("order", 1), ("layers", 0, 0), ("layers", 0, 1), ("model",)]
    seeds = [derived_seed(seed, *purpose) for seed in (0, 1) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, "order", 2) == 1493370279577090964


# --- batches -------------------------------------------------------------------------------------


def test_gather_returns_the_rows_that_were_asked_for(digits_dir):
    images, labels = dataset.open_split(digits_dir, "train")
    rows = torch.tensor([7, 0, 7, 1437])
    picked, classes = open_store(digits_dir, "train", CPU).gather(rows)
    assert np.array_equal(picked.numpy(), images[rows.numpy()])
    assert classes.tolist() == labels[rows.numpy()].tolist()


def test_a_warm_process_opens_a_split_once(digits_dir):
    assert open_store(digits_dir, "train", CPU) is open_store(digits_dir, "train", CPU)


def test_streamed_batches_equal_resident_ones(digits_dir):
    resident = open_store(digits_dir, "train", CPU)
    streamed = open_store(digits_dir, "train", CPU, 0.0)
    assert (resident.is_resident, streamed.is_resident) == (True, False)
    rows = torch.arange(1438)
    options = {"batch_size": 100, **ORDER, "rank": 0, "workers": 1}
    steps = 0
    for one, other in zip(
        train_batches(rows, **options), train_batches(rows, **options), strict=True
    ):
        for wanted, got in zip(resident.gather(one), streamed.gather(other), strict=True):
            assert torch.equal(wanted, got)
            assert (wanted.dtype, wanted.stride()) == (got.dtype, got.stride())
        steps += 1
    assert steps == 14


def test_streamed_batches_leave_the_images_on_the_host():
    host = torch.arange(48, dtype=torch.uint8).view(4, 3, 4, 1)
    store = ImageStore(host, torch.arange(4), torch.device("meta"), is_resident=False)
    images, labels = store.gather(torch.tensor([2, 0]))
    assert (images.device.type, labels.device.type) == ("meta", "meta")
    assert (images.shape, images.dtype) == ((2, 3, 4, 1), torch.uint8)
    assert (labels.shape, labels.dtype) == ((2,), torch.int64)
    assert store.images.device == CPU


def test_streamed_training_learns_the_same(digits_dir):
    config = digits_config(digits_dir, hflip=True, rotation_deg=10.0)
    one = list(loop.fit(config, digits_dir, device=CPU))
    other = list(loop.fit(config, digits_dir, device=CPU, resident_share=0.0))
    assert learned(one) == learned(other)


def test_the_manifest_is_read_as_the_preparer_writes_it(digits_dir):
    raw = json.loads((digits_dir / "manifest.json").read_text())
    assert dataset.load_manifest(digits_dir).fingerprint == raw["fingerprint"]


def test_a_manifest_that_the_system_does_not_read_is_not_called_wrong(tmp_path: Path) -> None:
    """Deleting the dataset would not help."""
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(dataset.DatasetError, match=r"cannot be read.*Check its owner and mode"):
        dataset.load_manifest(tmp_path)
