"""A trained model as files: weights, and what it takes to use them on new images.

It is found in a checkpoint of a sweep, in a run of MLflow, or in a folder of its own, which is what
an MLflow model carries. Nothing here is unpickled, and no file is written half.
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
TOP = 5  # labels of an answer, where there are so many


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """Weights, the configuration they were trained with, and the dataset's manifest.

    `about` says where they come from, for the user: sweep, variant, signature, epoch and others.
    """

    weights: Path
    config: TrainConfig
    manifest: Manifest
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The most probable labels of one image, best first; probabilities are 0 to 1."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    classes: tuple[int, ...]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return what a user gets of it, JSON-ready."""
        return {"labels": list(self.labels), "probabilities": list(self.probabilities)}


def from_checkpoint(folder: Path, manifest: Manifest, about: Mapping[str, Any]) -> TrainedModel:
    """Return the model of a checkpoint, every file of which is intact.

    Args:
        folder: as `trainables.training.checkpoint.save` writes it.
        manifest: of the dataset it was trained on.
        about: where it comes from; the epoch and the signature are added.

    Raises:
        UsageError: a file is missing or damaged, or the dataset is another one.
    """
    from trainables.training import checkpoint

    try:
        checkpoint.verify(folder)
        state = json.loads((folder / "state.json").read_text())
        config = TrainConfig.from_dict(state["config"])
        about = {**about, "epoch": int(state["epoch"]), "signature": config.signature()}
    except (checkpoint.CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"The checkpoint cannot be used: {error}") from error
    if config.dataset_fingerprint != manifest.fingerprint:
        raise UsageError(
            f"{folder} was trained on the dataset {config.dataset!r} with the fingerprint "
            f"{config.dataset_fingerprint!r}; the one at hand has {manifest.fingerprint!r}. Name "
            "the folder of the right one with --data-dir."
        )
    # Where weights are averaged, the averaged ones are those that were evaluated.
    average = folder / "average.safetensors"
    weights = average if average.is_file() else folder / WEIGHTS
    return TrainedModel(weights=weights, config=config, manifest=manifest, about=about)


def write_folder(model: TrainedModel, folder: Path) -> None:
    """Put a model into an empty folder; the weights as a link, for whoever copies the folder."""
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
    """Read back what `write_folder` wrote, with the weights intact.

    Raises:
        UsageError: naming the file that is missing, damaged or of another version.
    """
    weights, path = folder / WEIGHTS, folder / FACTS
    try:
        facts = json.loads(path.read_text())
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r} instead of {FORMAT}")
        config, manifest = TrainConfig.from_dict(facts["config"]), manifest_of(facts["manifest"])
        model = TrainedModel(
            weights=weights, config=config, manifest=manifest, about=facts["about"]
        )
        expected = facts["sha256"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} does not describe a model of ours ({type(error).__name__}: {error}). Export "
            "it again, or use the version that wrote it."
        ) from error
    try:
        intact = files.sha256(weights) == expected
    except OSError as error:
        raise UsageError(f"{weights} cannot be read: {error}.") from error
    if not intact:
        raise UsageError(f"{weights} is damaged: its SHA-256 is not {expected}. Export it again.")
    return model


def manifest_of(values: Mapping[str, Any]) -> Manifest:
    """Return a manifest from its fields as JSON has them.

    Raises:
        TypeError: one is missing or unknown.
    """
    from trainables.data.dataset import Manifest

    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return Manifest(**fields)


def load(model: TrainedModel) -> Classifier:
    """Build the model, on the device there is.

    Raises:
        UsageError: the weights are damaged, or of another model.
    """
    from trainables.evaluation.classifier import load_classifier
    from trainables.training.checkpoint import CheckpointError

    try:
        return load_classifier(model.weights, model.config, model.manifest)
    except (CheckpointError, ValueError) as error:
        raise UsageError(f"The model cannot be built again: {error}") from error


def read_images(
    named: Sequence[tuple[str, bytes | Path]], manifest: Manifest
) -> npt.NDArray[np.uint8]:
    """Decode images of any size as the dataset's were.

    Args:
        named: what the user calls each, and its bytes or path.
        manifest: of the dataset that the model was trained on.

    Returns:
        (n, h, w, c), of the size of the dataset's images.

    Raises:
        UsageError: naming every image that cannot be used, and saying how many can.
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
        good = len(named) - len(problems)
        if good:
            problems.append(
                f"Nothing was predicted; the other {good} can be. Leave out what is named here."
            )
        raise UsageError("\n".join(problems))
    return pixels


def answers(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> list[Answer]:
    """Return the most probable labels of each image, as many as `TOP` or as there are classes.

    Raises:
        OrchestratorError: the model answers with something that is no probability.
    """
    import numpy as np

    names = classifier.manifest.class_names
    probabilities = classifier.probabilities(pixels)
    if not np.isfinite(probabilities).all():
        raise OrchestratorError("The model's answer is not finite; its weights are of no use.")
    # Stable: of equal ones the lower class comes first, on every machine.
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    return [
        Answer(
            labels=tuple(names[k] for k in classes),
            probabilities=tuple(float(row[k]) for k in classes),
            classes=tuple(int(k) for k in classes),
        )
        for row, classes in zip(probabilities, order, strict=True)
    ]
