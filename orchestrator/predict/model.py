"""A trained model as files, and its predictions for new images.

The files are a checkpoint of a sweep, artifacts of an MLflow run, or a folder inside an exported
MLflow model. No pickle is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestratorError, UsageError
from trainables import files
from trainables.config import TrainConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trainables.data.dataset import Manifest
    from trainables.evaluation.classifier import Classifier

WEIGHTS, FACTS = "model.safetensors", "model.json"
FORMAT = 1
TOP = 5  # labels of a prediction; fewer if there are fewer classes


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """Weights, the configuration they were trained with, and the dataset's manifest.

    `about` describes their origin for the user: sweep, variant, signature, epoch (from 1), ...
    """

    weights: Path
    config: TrainConfig
    manifest: Manifest
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable labels of one image, best first; probabilities are 0 to 1."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    classes: tuple[int, ...]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return labels and probabilities, ready for JSON."""
        return {"labels": list(self.labels), "probabilities": list(self.probabilities)}


def from_checkpoint(folder: Path, manifest: Manifest, about: Mapping[str, Any]) -> TrainedModel:
    """Return the model of a checkpoint, after checking every file of it.

    The epoch and the signature are added to `about`.

    Raises:
        UsageError: a file is missing or damaged, or the dataset is another one.
    """
    from trainables.training import checkpoint

    try:
        place, state = checkpoint.read_state(folder)
        config = TrainConfig.from_dict(state["config"])
        about = {**about, "epoch": int(state["epoch"]) + 1, "signature": config.signature()}
    except (checkpoint.CheckpointError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"The checkpoint cannot be used: {error}") from error
    if config.dataset_fingerprint != manifest.fingerprint:
        raise UsageError(
            f"{folder} was trained on the dataset {config.dataset!r} with the fingerprint "
            f"{config.dataset_fingerprint!r}, but this dataset has {manifest.fingerprint!r}. Give "
            "the folder of the right dataset with --data-dir."
        )
    # If the trial averaged its weights, the averaged ones were evaluated.
    average = place / "average.safetensors"
    weights = average if average.is_file() else place / WEIGHTS
    return TrainedModel(weights=weights, config=config, manifest=manifest, about=about)


def write_folder(model: TrainedModel, folder: Path) -> None:
    """Write a model into an empty folder; the weights are a link, for a caller that copies it."""
    (folder / WEIGHTS).symlink_to(model.weights.absolute())
    facts = {
        "format": FORMAT,
        "config": model.config.to_dict(),
        "manifest": asdict(model.manifest),
        "about": dict(model.about),
        "sha256": files.sha256(model.weights),
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def read_folder(folder: Path) -> TrainedModel:
    """Return the model that `write_folder` wrote, after checking the weights.

    Raises:
        UsageError: a file is missing, damaged or of another version.
    """
    weights, path = folder / WEIGHTS, folder / FACTS
    try:
        facts = json.loads(path.read_text())
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r} instead of {FORMAT}")
        config, manifest = TrainConfig.from_dict(facts["config"]), manifest_of(facts["manifest"])
        about, expected = facts["about"], facts["sha256"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is not the description of a model exported by this version "
            f"({type(error).__name__}: {error}). Export the model again, or use the version that "
            "wrote it."
        ) from error
    try:
        intact = files.sha256(weights) == expected
    except OSError as error:
        raise UsageError(f"{weights} cannot be read: {error}.") from error
    if not intact:
        raise UsageError(f"{weights} is damaged: its SHA-256 is not {expected}. Export it again.")
    return TrainedModel(weights=weights, config=config, manifest=manifest, about=about)


def manifest_of(values: Mapping[str, Any]) -> Manifest:
    """Return the manifest whose fields are the values of a JSON object.

    Raises:
        TypeError: a field is missing or unknown.
    """
    from trainables.data.dataset import Manifest

    lists: dict[str, Any] = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    return Manifest(**{**values, **lists})


def load(model: TrainedModel) -> Classifier:
    """Return the model with its weights, on a GPU if there is one.

    Raises:
        UsageError: the weights are damaged, or of another model.
    """
    from trainables.evaluation.classifier import load_classifier
    from trainables.training import device
    from trainables.training.checkpoint import CheckpointError

    device.limit_threads()
    try:
        return load_classifier(model.weights, model.config, model.manifest)
    except (CheckpointError, ValueError) as error:
        raise UsageError(f"The model cannot be loaded: {error}") from error


def read_images(
    named: Sequence[tuple[str, bytes | Path]], manifest: Manifest
) -> npt.NDArray[np.uint8]:
    """Return images of any size, cropped and resized like the dataset's, as (n, h, w, c).

    `named` has the user's name for each image, and its bytes or path.

    Raises:
        UsageError: some images cannot be read; it names each of them.
    """
    import numpy as np

    from orchestrator.data.decode import read_image

    shape = (manifest.height_px, manifest.width_px, manifest.channels)
    pixels = np.empty((len(named), *shape), np.uint8)
    problems = []
    for index, (name, content) in enumerate(named):
        try:
            pixels[index] = read_image(content, name, shape)
        except UsageError as error:
            problems.append(str(error))
    if problems:
        if good := len(named) - len(problems):
            text = "No image was classified. Leave out these images to classify the other"
            problems.append(f"{text} {good}.")
        raise UsageError("\n".join(problems))
    return pixels


def predict(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> list[Prediction]:
    """Return the `TOP` most probable labels of each image.

    Raises:
        OrchestratorError: the model's output is not finite.
    """
    import numpy as np

    names = classifier.manifest.class_names
    probabilities = classifier.probabilities(pixels)
    if not np.isfinite(probabilities).all():
        raise OrchestratorError("The model's output is not finite, so its weights are unusable.")
    # Stable sorting: of equal probabilities the lower class number comes first, on every machine.
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    return [
        Prediction(
            labels=tuple(names[k] for k in classes),
            probabilities=tuple(float(row[k]) for k in classes),
            classes=tuple(int(k) for k in classes),
        )
        for row, classes in zip(probabilities, order, strict=True)
    ]
