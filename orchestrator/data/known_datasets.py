"""The known datasets: where each comes from, who reads it, and what it must contain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from trainables.data.dataset import Manifest

DEFAULT_IMAGE_SIZE_PX = 64  # of resized images


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownDataset:
    """One row of the table; counts are of the whole dataset, none if the user's images decide."""

    name: str
    summary: str
    reader: str  # "module:function" in `sources`, imported when needed: `--help` must not wait
    test_split: str  # which images are the test split
    classes: int = 0
    image_size_px: int = 0
    channels: int = 3
    images: Mapping[str, int] = field(default_factory=dict)  # by split
    address: str = ""  # of the published archive; its last part is the archive's official name
    md5: str | None = None  # as published at the address and in torchvision
    sklearn_file: str = ""  # path in the installed package of scikit-learn
    needs_source: bool = False  # the user's own images, of any size, which are resized


_cifar = partial(
    KnownDataset,
    test_split="the official test batch",
    image_size_px=32,
    images={"train": 50_000, "test": 10_000},
)
# To add a dataset: a row here and a reader in `sources/`.
_ROWS = (
    KnownDataset(
        name="digits",
        summary="8 x 8 grey digits from scikit-learn, no download",
        reader="digits:read_digits",
        test_split="20 % of every class",
        classes=10,
        image_size_px=8,
        channels=1,
        images={"train": 1_438, "test": 359},
        sklearn_file="datasets/data/digits.csv.gz",
    ),
    KnownDataset(
        name="tinyimagenet",
        summary="64 x 64, 200 classes",
        reader="tinyimagenet:read_tinyimagenet",
        test_split="the labelled `val` folder",
        classes=200,
        image_size_px=64,
        images={"train": 100_000, "test": 10_000},
        address="http://cs231n.stanford.edu/tiny-imagenet-200.zip",  # no checksum is published
    ),
    _cifar(
        name="cifar10",
        summary="32 x 32, 10 classes",
        reader="cifar:read_cifar10",
        classes=10,
        address="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
    ),
    _cifar(
        name="cifar100",
        summary="32 x 32, 100 classes in 20 superclasses",
        reader="cifar:read_cifar100",
        classes=100,
        address="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
    ),
    KnownDataset(
        name="imagefolder",
        summary="your own images, one folder per class",
        reader="imagefolder:read_imagefolder",
        test_split="the `val` or `test` folder, else 10 % of every class",
        needs_source=True,
    ),
)
KNOWN = {row.name: row for row in _ROWS}


def published_dataset(name: str) -> KnownDataset | None:
    """Return the published dataset that a prepared one is named after, such as "cifar10-small"."""
    found = [row for row in _ROWS if row.address and name.startswith(row.name)]
    return max(found, key=lambda row: len(row.name), default=None)


def expected_manifest(dataset: str, prepared: Iterable[str] = ()) -> Manifest:
    """Return a known dataset's manifest with its expected counts, to plan without the data.

    `prepared` are the names of the prepared datasets, for the error.

    Raises:
        UsageError: the dataset is neither prepared nor known.
    """
    from trainables.data.dataset import Manifest  # imports numpy, which `--help` must not wait for

    row = KNOWN.get(dataset)
    if row is None or not row.images:
        names = {*(row.name for row in _ROWS if row.images), *prepared}
        listed = unknown_name("dataset", dataset, names).removeprefix(
            f"Unknown dataset {dataset!r}. "
        )
        raise UsageError(
            f"The dataset {dataset!r} is not prepared, so the shape of its images is unknown. "
            f"Prepare it first with `python -m orchestrator.data prepare`. {listed}"
        )
    return Manifest(
        name=dataset,
        fingerprint="",
        class_names=tuple(map(str, range(row.classes))),
        height_px=row.image_size_px,
        width_px=row.image_size_px,
        channels=row.channels,
        mean=(0.5,) * row.channels,
        std=(0.25,) * row.channels,
        images={"train": row.images["train"]},
    )
