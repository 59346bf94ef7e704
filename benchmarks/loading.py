"""Shuffled batches of 64 px images, flipped, cropped and normalised, ready for a model.

Every contender yields float32 batches of 128. Ours, ImageFolder's and the memory-mapped one's are
flipped and cropped image by image, TensorDataset's by one draw per batch, as torchvision's
transforms of a batch do it, which is less work.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks import images
from benchmarks.harness import Benchmark, Measure, scratch
from trainables import limits

BATCH, PADDING_PX = 128, 8
MEAN, STD = (0.48, 0.45, 0.40), (0.28, 0.27, 0.28)


def ours(full: bool) -> Measure:
    from trainables.config import TrainConfig
    from trainables.data import preprocess
    from trainables.data.batches import open_store, train_batches
    from trainables.data.dataset import load_manifest
    from trainables.training.device import default_device, set_up_numerics

    folder, device = images.prepared(), default_device()
    manifest = load_manifest(folder)
    config = TrainConfig(
        variant="cnn3",
        dataset="tinyimagenet",
        dataset_fingerprint=manifest.fingerprint,
        epochs=1,
        seed=0,
        image_size_px=images.SIZE_PX,
        batch_size=BATCH,
        hflip=True,
        crop_padding_px=PADDING_PX,
        threads=limits.num_cpus(),
    )
    set_up_numerics(config, device)
    store = open_store(folder, "train", device)
    prepare = preprocess.preparation(config, manifest, device)
    draws = torch.Generator(device).manual_seed(0)
    rows = torch.arange(len(store.labels))

    def batches() -> Iterator[Tensor]:
        for epoch in itertools.count():
            order = train_batches(rows, batch_size=BATCH, seed=0, epoch=epoch, rank=0, workers=1)
            for chosen in order:
                pixels, _ = store.gather(chosen.to(store.images.device))
                yield prepare(pixels, draws)

    return _measure(batches(), 400 if full else 150)


def image_folder(full: bool) -> Measure:
    """ImageFolder and DataLoader, with the number of workers that is fastest here."""
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(images.SIZE_PX, padding=PADDING_PX),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    dataset = datasets.ImageFolder(str(images.extracted() / "train"), transform)
    cores = limits.num_cpus()
    found = {}
    for workers in sorted({0, 1, cores, min(2 * cores, 16)}):
        loader = torch.utils.data.DataLoader(
            dataset,
            BATCH,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        # Blocks of batches are longer than what workers have in hand when one begins, two each.
        number = max(90 if full else 45, 12 * workers)
        found[workers] = _measure(_without_end(loader), number, blocks=3)
    workers = min(found, key=lambda number: statistics.median(found[number].values))
    return Measure(values=found[workers].values, facts={"workers": workers})


def tensor_dataset(full: bool) -> Measure:
    """TensorDataset and DataLoader over normalised images that lie in memory."""
    from torchvision.transforms import v2

    pixels, labels = _pixels()
    ready = _normalised(pixels.permute(0, 3, 1, 2))
    dataset = torch.utils.data.TensorDataset(ready, labels)
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, drop_last=True)
    change = v2.Compose(
        [v2.RandomCrop(images.SIZE_PX, padding=PADDING_PX), v2.RandomHorizontalFlip()]
    )
    batches = (change(batch) for batch in _without_end(loader))
    return _measure(batches, 200 if full else 60)


def memory_map(full: bool) -> Measure:
    """A memory-mapped numpy array of the pixels, indexed batch by batch."""
    import numpy as np

    torch.set_num_threads(limits.num_cpus())
    path = scratch() / "pixels.npy"
    np.save(path, _pixels()[0].numpy())
    array = np.load(path, mmap_mode="r")
    side, padding = images.SIZE_PX, PADDING_PX

    def batches() -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(array)).numpy()
            for start in range(0, len(order) - BATCH + 1, BATCH):
                batch = torch.from_numpy(array[order[start : start + BATCH]])
                batch = _normalised(batch.permute(0, 3, 1, 2))
                flips = torch.rand(BATCH) < 0.5
                batch[flips] = batch[flips].flip(-1)
                padded = torch.nn.functional.pad(batch, [padding] * 4)
                corners = torch.randint(0, 2 * padding + 1, (BATCH, 2)).tolist()
                yield torch.stack(
                    [
                        image[:, y : y + side, x : x + side]
                        for image, (y, x) in zip(padded, corners, strict=True)
                    ]
                )

    return _measure(batches(), 200 if full else 60)


def _pixels() -> tuple[Tensor, Tensor]:
    from trainables.data.batches import open_store

    store = open_store(images.prepared(), "train", torch.device("cpu"))
    return store.images, store.labels


def _normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float().div_(255) - mean) / std


def _without_end(loader: Iterable[Any]) -> Iterator[Tensor]:
    while True:
        for batch, _ in loader:
            yield batch


def _measure(batches: Iterator[Tensor], number: int, blocks: int = 5) -> Measure:
    """Time blocks of batches after a few that warm up; seconds per image."""
    seconds = []
    for batch in itertools.islice(batches, 5):
        assert batch.shape == (BATCH, 3, images.SIZE_PX, images.SIZE_PX)
    _wait(batch)
    for _ in range(blocks):
        began_s = time.perf_counter()
        for batch in itertools.islice(batches, number // blocks):  # noqa: B007
            pass
        _wait(batch)
        seconds.append((time.perf_counter() - began_s) / (number // blocks * BATCH))
    return Measure(values=seconds)


def _wait(batch: Tensor) -> None:
    if batch.is_cuda:
        torch.cuda.synchronize()


def _limit_s(probes: Mapping[str, float]) -> float:
    """Read the pixels once (uint8) and write the batch once (float32), at the speed of a copy."""
    speed = probes.get("cuda_copy_gb_s", probes["copy_gb_s"])
    return images.SIZE_PX**2 * 3 * (1 + 4) / (speed * 1e9)


BENCHMARK = Benchmark(
    name="loading",
    title="loader: shuffled, normalised, flipped and cropped batches at 64 px",
    unit="image",
    contenders={
        "ours": ours,
        "ImageFolder + DataLoader": image_folder,
        "TensorDataset + DataLoader": tensor_dataset,
        "memory-mapped array": memory_map,
    },
    goals={
        "ImageFolder + DataLoader": 20,
        "TensorDataset + DataLoader": 5,
        "memory-mapped array": 2,
    },
    limit=_limit_s,
)
