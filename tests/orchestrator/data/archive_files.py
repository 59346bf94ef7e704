"""Small datasets in the official layouts, made for tests."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SAMPLES = Path(os.environ.get("SWEEP_SAMPLES", Path(__file__).parents[3] / "../shared/data"))

# Not in sorted order, as in the official list.
WNIDS = ("n02", "n01", "n03")
WORDS = {"n01": "goldfish, Carassius auratus", "n02": "salamander", "n03": "bullfrog, toad"}


def image(color: Any, *, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> Image.Image:
    """Return an image of one color; `size` is width, height."""
    return Image.new(mode, size, color)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def tinyimagenet(per_class: int = 3, val: int = 2) -> dict[str, bytes]:
    """Members of a Tiny ImageNet archive; every image has its own color."""
    root = "tiny-imagenet-200"
    members = {
        f"{root}/wnids.txt": "".join(f"{wnid}\n" for wnid in WNIDS).encode(),
        f"{root}/words.txt": "".join(f"{k}\t{v}\n" for k, v in WORDS.items()).encode()
        + b"n99\tunused\n",
    }
    for label, wnid in enumerate(WNIDS):
        members[f"{root}/train/{wnid}/{wnid}_boxes.txt"] = b"ignored"
        for number in range(per_class):
            content = encoded(image((label * 50, number % 250, 7)))
            members[f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG"] = content
    lines = []
    for number in range(val):
        wnid = WNIDS[number % 3]
        members[f"{root}/val/images/val_{number}.JPEG"] = encoded(image((200, number, 9)))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    members[f"{root}/val/val_annotations.txt"] = "".join(lines).encode()
    members[f"{root}/test/images/test_0.JPEG"] = b"never read"
    return members


def cifar10(per_batch: int = 2) -> dict[str, bytes]:
    """Members of a CIFAR-10 python archive; image i of batch b is filled with 10 b + i."""
    members = {}
    for batch in range(6):
        values = np.arange(per_batch, dtype=np.uint8)[:, None] + 10 * batch
        content = {
            b"batch_label": b"a batch",
            b"labels": [(batch + number) % 2 for number in range(per_batch)],
            b"data": np.ascontiguousarray(np.broadcast_to(values, (per_batch, 3072))),
            b"filenames": [b"x.png"] * per_batch,
        }
        name = "test_batch" if batch == 5 else f"data_batch_{batch + 1}"
        members[f"cifar-10-batches-py/{name}"] = pickle.dumps(content, protocol=2)
    meta = {b"label_names": [b"airplane", b"automobile"], b"num_vis": 3072}
    members["cifar-10-batches-py/batches.meta"] = pickle.dumps(meta, protocol=2)
    return members


def cifar100() -> dict[str, bytes]:
    """Members of a CIFAR-100 python archive with three fine and two coarse classes."""
    members = {}
    for name, fine in (("train", [0, 1, 2, 0]), ("test", [2, 1])):
        content = {
            b"fine_labels": fine,
            b"coarse_labels": [[1, 0, 1][label] for label in fine],
            b"data": np.full((len(fine), 3072), 7, np.uint8),
        }
        members[f"cifar-100-python/{name}"] = pickle.dumps(content, protocol=2)
    meta = {
        b"fine_label_names": [b"apple", b"bear", b"cherry"],
        b"coarse_label_names": [b"animals", b"fruit"],
    }
    members["cifar-100-python/meta"] = pickle.dumps(meta, protocol=2)
    return members


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, members: Mapping[str, bytes]) -> Path:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
