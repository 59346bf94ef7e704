"""Tiny ImageNet from its archive's JPEGs to what training reads.

Ours is the command, which starts with the archive and ends with a verified dataset on disk: it
hashes the archive, checks every member and writes with fsync. The opponent starts with the images
extracted already and ends with one tensor in memory. Both import their packages first.
"""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import images
from benchmarks.harness import Benchmark, Measure, scratch
from trainables import limits

# Of the sample's training images: eight are about as many as the whole dataset has.
REPEATS, FULL_REPEATS = 3, 8


def ours(full: bool) -> Measure:
    from orchestrator.data.prepare import prepare

    repeats = FULL_REPEATS if full else REPEATS
    source = _repeated(images.archive(), repeats)
    data_dir = scratch() / "data"
    data_dir.mkdir()
    began_s = time.perf_counter()
    folder = prepare("tinyimagenet", data_dir=data_dir, source=str(source), progress=False)
    took_s = time.perf_counter() - began_s
    from trainables.data.dataset import load_manifest

    number = sum(load_manifest(folder).images.values())
    return Measure(values=[took_s / number], facts={"images": number})


def image_folder(full: bool) -> Measure:
    """Torchvision's ImageFolder: decode, to tensor, stack."""
    import torch
    from torchvision import datasets, transforms

    dataset = datasets.ImageFolder(str(images.extracted() / "train"), transforms.PILToTensor())
    number = len(dataset) * (FULL_REPEATS if full else REPEATS)
    began_s = time.perf_counter()
    torch.stack([dataset[row % len(dataset)][0] for row in range(number)])
    return Measure(values=[(time.perf_counter() - began_s) / number], facts={"images": number})


def _repeated(source: Path, repeats: int) -> Path:
    """Return an archive with each training image `repeats` times, under names of their own."""
    path = scratch() / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            if member.is_dir():
                continue
            content = old.read(member)
            new.writestr(member, content)
            if "/train/" in member.filename and member.filename.endswith(".JPEG"):
                for copy in range(1, repeats):
                    name = member.filename.replace("_", f"_{copy}000", 1)
                    new.writestr(name, content)
    shutil.copystat(source, path)
    return path


def _decoding_s(probes: Mapping[str, float]) -> float:
    """Decode some of the images from memory on one core, and share that among all cores."""
    import simplejpeg

    with zipfile.ZipFile(images.archive()) as archive:
        names = [name for name in archive.namelist() if name.endswith(".JPEG")][:2000]
        contents = [archive.read(name) for name in names]
    began_s = time.perf_counter()
    for content in contents:
        simplejpeg.decode_jpeg(content)
    return (time.perf_counter() - began_s) / len(contents) / limits.num_cpus()


BENCHMARK = Benchmark(
    name="preparing",
    title="preparing Tiny ImageNet from JPEG",
    unit="image",
    contenders={"ours": ours, "ImageFolder, decode and stack": image_folder},
    goals={"ImageFolder, decode and stack": 3},
    limit=_decoding_s,
)
