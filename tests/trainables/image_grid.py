"""Pictures for the eye: `python -m tests.trainables.image_grid` writes one PNG per augmentation.

They go to tests/output/augment/. A row shows one image: as it is, then eight random results.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from tests.orchestrator.data.archive_files import SAMPLES
from trainables.config import TrainConfig
from trainables.data.augment import augment
from trainables.data.mixing import mix

REPOSITORY = Path(__file__).resolve().parents[2]
ARCHIVE = SAMPLES / "tiny-imagenet-200-sample.zip"
OUTPUT = REPOSITORY / "tests" / "output" / "augment"

AUGMENTATIONS: dict[str, dict[str, float]] = {
    "flips": {"hflip": True, "vflip": True},
    "flip_and_crop": {"hflip": True, "crop_padding_px": 8},
    "rotation": {"rotation_deg": 30.0},
    "shear": {"shear_deg": 30.0},
    "zoom": {"zoom": 0.4},
    "brightness": {"brightness": 0.5},
    "rotation_shear_zoom_flip_brightness": {
        "rotation_deg": 20.0,
        "shear_deg": 10.0,
        "zoom": 0.2,
        "hflip": True,
        "brightness": 0.3,
    },
    "grid_distortion": {"grid_distortion": 1.0},
    "elastic": {"elastic": 1.0},
    "random_erasing": {"random_erasing": 1.0},
    "randaugment": {"randaugment_ops": 2},
    "mixup": {"mixup_alpha": 1.0},
    "cutmix": {"cutmix_alpha": 1.0},
}


def config_with(**augmentations: float) -> TrainConfig:
    """Return a configuration with nothing but the given augmentations switched on."""
    return TrainConfig(
        variant="cnn2",
        dataset="none",
        dataset_fingerprint="none",
        epochs=1,
        seed=0,
        image_size_px=64,
        **augmentations,  # type: ignore[arg-type]
    )


def real_images(count: int) -> Tensor:
    """Return (count, 3, 64, 64) in 0 to 1 of Tiny ImageNet if the sample is there, else crops."""
    if not ARCHIVE.exists():
        photos = [torch.from_numpy(photo.copy()) for photo in load_sample_images().images]
        crops = []
        for i in range(count):
            top, left = 37 * i % 171, 53 * i % 384  # of photographs of 427 x 640 pixels
            crops.append(photos[i % 2][top : top + 256 : 4, left : left + 256 : 4])
        return torch.stack(crops).permute(0, 3, 1, 2).float() / 255
    images = []
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith("_0.JPEG"))
        for name in names[:: len(names) // count][:count]:
            picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            images.append(torch.from_numpy(np.array(picture)))
    return torch.stack(images).permute(0, 3, 1, 2).float() / 255


def write_grid(name: str, images: Tensor, columns: int = 8, enlarge: int = 2) -> Path:
    """Write the images (n, 3, h, w) and `columns` results of one augmentation; return the path."""
    config = config_with(**AUGMENTATIONS[name])
    generator = torch.Generator().manual_seed(0)
    shown = [images]
    for _ in range(columns):
        if config.mixup_alpha or config.cutmix_alpha:
            labels = torch.arange(len(images))
            shown.append(mix(images, labels, len(images), config, generator)[0])
        else:
            shown.append(augment(images, config, generator))
    gap = 4
    cells = torch.nn.functional.pad(torch.stack(shown, dim=1), (0, gap, 0, gap), value=1.0)
    n, across, c, height, width = cells.shape
    sheet = cells.permute(0, 3, 1, 4, 2).reshape(n * height, across * width, c)
    picture = Image.fromarray((sheet * 255).round().byte().numpy())
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.png"
    picture.resize(
        (picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST
    ).save(path)
    return path


if __name__ == "__main__":
    for each in AUGMENTATIONS:
        print(write_grid(each, real_images(5)))
