"""A trained model: from stored pixels to probabilities and activation maps.

Pixels are prepared exactly as in validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainables.config import TrainConfig
from trainables.data import preprocess
from trainables.data.dataset import Manifest
from trainables.evaluation import grad_cam
from trainables.models import build
from trainables.training.checkpoint import CheckpointError
from trainables.training.device import autocast, default_device

# Limits of a batch. 2**21 pixels are 64 images of 181 px, or 5 of B7's 600 px, whose widest feature
# maps take about 70 MB an image.
_BATCH_PIXELS, _BATCH_IMAGES = 2**21, 64


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model in evaluation mode, which prepares images itself."""

    model: nn.Module
    config: TrainConfig
    manifest: Manifest
    device: torch.device

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probability of every class, (n, k), each row summing to 1.

        `pixels` are (n, h, w, c), of the size that the dataset's images have.
        """
        found = [np.empty((0, len(self.manifest.class_names)), np.float32)]
        for chunk in self._prepared(pixels):
            with torch.inference_mode(), autocast(self.config, self.device):
                logits = self.model(chunk).float()
            found.append(logits.softmax(dim=1).cpu().numpy())
        return np.concatenate(found)

    def activation_maps(
        self, pixels: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32] | None:
        """Return where in each image the model saw a class, (n, h', w') in 0 to 1.

        None if the network has no feature map. `pixels` are as for `probabilities`, one image or
        more; `classes` (n,) are the classes to explain.
        """
        found = []
        wanted = torch.from_numpy(classes).to(self.device).split(self.batch_size)
        for images, chunk in zip(self._prepared(pixels), wanted, strict=True):
            with autocast(self.config, self.device):
                maps = grad_cam.activation_maps(self.model, images, chunk)
            if maps is None:
                return None
            found.append(maps.float().cpu().numpy())
        return np.concatenate(found)

    @property
    def batch_size(self) -> int:
        """Images per forward pass; fewer of larger ones, so that memory stays bounded."""
        return max(1, min(_BATCH_IMAGES, _BATCH_PIXELS // self.config.image_size_px**2))

    def _prepared(self, pixels: npt.NDArray[np.uint8]) -> Iterator[Tensor]:
        """Yield the network's input, batch by batch."""
        prepare = preprocess.preparation(self.config, self.manifest, self.device)
        for start in range(0, len(pixels), self.batch_size):
            # Copied, because torch takes no memory that is read-only, such as a mapped file.
            chunk = torch.from_numpy(pixels[start : start + self.batch_size].copy())
            yield prepare(chunk.to(self.device), None)


def load_classifier(
    weights: Path, config: TrainConfig, manifest: Manifest, device: torch.device | None = None
) -> Classifier:
    """Return the classifier of a training, on the default device unless one is given.

    `weights` is a checkpoint's safetensors file: the averaged weights where there are any.

    Raises:
        CheckpointError: the file is missing, damaged, or of another model.
    """
    from safetensors.torch import load_file

    device = device or default_device()
    try:
        tensors = load_file(weights)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise CheckpointError(f"{weights} is not a readable file of weights: {error}.") from error
    num_classes, in_channels = len(manifest.class_names), manifest.channels
    model = build.build_model(
        config, num_classes=num_classes, in_channels=in_channels, read_weights=False
    )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{weights} does not hold the weights of {config.variant} for {num_classes} classes: "
            f"{error}."
        ) from error
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.eval().to(device).to(memory_format=layout)
    return Classifier(model, config, manifest, device)
