"""The known datasets: where each comes from and what it must contain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.data.sources.source import Contents
    from trainables.data.dataset import Manifest

# Whole official datasets: classes, training and test images.
OFFICIAL = {
    "cifar100": (100, 50_000, 10_000),
    "cifar10": (10, 50_000, 10_000),
    "tinyimagenet": (200, 100_000, 10_000),
}
# Classes, side, channels and training images of datasets that need not be prepared to be planned.
_KNOWN = {
    "digits": (10, 8, 1, 1438),
    "cifar10": (10, 32, 3, 50_000),
    "cifar100": (100, 32, 3, 50_000),
    "tinyimagenet": (200, 64, 3, 100_000),
}
DEFAULT_IMAGE_SIZE_PX = 64
IMAGEFOLDER = "imagefolder"


def expected_manifest(dataset: str) -> Manifest:
    """Return what a known dataset's manifest will say of its shape, for a plan without the data.

    Raises:
        UsageError: the dataset is neither prepared nor known.
    """
    from trainables.data.dataset import Manifest  # imports numpy, which `--help` must not wait for

    if dataset not in _KNOWN:
        raise UsageError(
            f"The dataset {dataset!r} is not prepared, so its images' shape is unknown. Prepare "
            f"it first with `python -m orchestrator.data prepare`. Known: {', '.join(_KNOWN)}."
        )
    classes, side, channels, images = _KNOWN[dataset]
    return Manifest(
        name=dataset,
        fingerprint="",
        class_names=tuple(map(str, range(classes))),
        height_px=side,
        width_px=side,
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        images={"train": images},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownDataset:
    """A dataset with a published archive; `file` is the archive's official name."""

    summary: str
    file: str = ""
    address: str = ""
    md5: str | None = None


# To add one: a row here, a reader in `sources/` and its line in `_read`.
KNOWN: dict[str, KnownDataset] = {
    "digits": KnownDataset(summary="8 x 8 grey digits from scikit-learn, no download"),
    "tinyimagenet": KnownDataset(
        summary="64 x 64, 200 classes",
        file="tiny-imagenet-200.zip",
        address="http://cs231n.stanford.edu/tiny-imagenet-200.zip",  # no checksum is published
    ),
    "cifar10": KnownDataset(
        summary="32 x 32, 10 classes",
        file="cifar-10-python.tar.gz",
        address="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",  # as published there and in torchvision
    ),
    "cifar100": KnownDataset(
        summary="32 x 32, 100 classes in 20 coarse ones",
        file="cifar-100-python.tar.gz",
        address="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",  # as published there and in torchvision
    ),
}


def read_source(kind: str, path: Path, image_size_px: int) -> Contents:
    """Return what a source of this kind holds; no image is decoded.

    Raises:
        UsageError: the source does not have the layout of its kind.
    """
    from orchestrator.data.sources import cifar, digits, imagefolder, tinyimagenet

    if kind == "digits":
        return digits.read_digits()
    if kind == "tinyimagenet":
        return tinyimagenet.read_tinyimagenet(path)
    if kind == IMAGEFOLDER:
        return imagefolder.read_imagefolder(path, image_size_px)
    return cifar.read_cifar(path, coarse=kind == "cifar100")
