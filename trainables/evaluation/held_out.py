"""Evaluates a checkpoint on the test split; the caller chooses the checkpoint and the time."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.config import TrainConfig
from trainables.data import batches, preprocess
from trainables.data.dataset import Manifest, check_fingerprint, load_manifest
from trainables.evaluation import grad_cam, scoring, speed
from trainables.evaluation.classifier import Classifier, load_classifier
from trainables.models import cost
from trainables.training import checkpoint
from trainables.training.device import autocast, default_device, set_up_numerics

MOST_EXAMPLES, MOST_MISTAKES = 36, 6
NO_CHOICE = 1e4  # a logit beyond all others
LARGEST_EXAMPLE_PX = 128  # height or width; every evaluated trial stores its copy in the ledger


@dataclass(frozen=True, slots=True)
class ActivationMap:
    """Where the network saw its first choice: base64 of height x width bytes, 255 strongest."""

    height: int
    width: int
    values: str


@dataclass(frozen=True, slots=True)
class Example:
    """One test image with its prediction.

    `row` is its row in the test split, `top5` the likeliest classes with their probabilities,
    `image_png` base64 of the stored image, of at most `LARGEST_EXAMPLE_PX` in height and width.
    """

    row: int
    label: int
    top5: list[tuple[int, float]]
    image_png: str
    map: ActivationMap | None  # None where the network has no spatial feature map


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The results of one checkpoint on the test split; fractions 0 to 1, losses in nats per image.

    `correct` is base64 of one bit for each image, in the split's order: 1 if top-1 is right.
    `epoch` is the checkpoint's, counted from 0. `superclass_top1` counts a prediction whose
    superclass is right. `ece` is the expected calibration error over 15 bins of the confidence.
    `multiply_accumulates` and `flops` (twice as many) are of one image's forward pass;
    `parameters_with_statistics` counts batch norms' running mean and variance, as Keras totals do.
    `inference_ms` is the median for one image alone, `inference_images_per_s` in batches of
    `inference_batch_size`, both for the network alone on `device`. The `examples` are the same
    images for every trial of one split seed; the `mistakes` are images that this one got wrong.
    """

    split: str
    images: int
    epoch: int
    correct: str
    top1: float
    top5: float
    loss: float
    ece: float
    superclass_top1: float | None
    precision: scoring.ClassFigures
    recall: scoring.ClassFigures
    f1: scoring.ClassFigures
    support: list[int]
    confusion: list[list[int]]  # (k, k); row: true class, column: predicted
    calibration: scoring.Calibration
    parameters: int
    parameters_with_statistics: int
    multiply_accumulates: int
    flops: int
    inference_ms: float
    inference_images_per_s: float
    inference_batch_size: int
    device: str
    examples: list[Example]
    mistakes: list[Example]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        values = asdict(self)
        for example in (*values["examples"], *values["mistakes"]):
            example["top5"] = [list(pair) for pair in example["top5"]]
        return values


def evaluate_test(
    config: TrainConfig,
    dataset: Path,
    checkpoint_folder: Path,
    *,
    device: torch.device | None = None,
    on_step: Callable[[], None] | None = None,
    resident_share: float = batches.RESIDENT_SHARE,
) -> Evaluation:
    """Evaluate a checkpoint on every image of the dataset's test split.

    One of several data-parallel workers calls it; it waits for none of the others.

    Args:
        config: of the checkpoint's trial.
        dataset: folder of the prepared dataset.
        checkpoint_folder: usually the best epoch's.
        device: None chooses.
        on_step: called after every batch and every later measurement.
        resident_share: of a device's memory that images may take before they are streamed.

    Raises:
        data.DatasetError: the dataset is unusable, or not the one of `config`.
        checkpoint.CheckpointError: the checkpoint is damaged or of another trial.
    """
    device = device or default_device()
    set_up_numerics(config, device)
    manifest = load_manifest(dataset)
    check_fingerprint(manifest, dataset, config.dataset_fingerprint)
    store = batches.open_store(dataset, "test", device, resident_share)
    alive = on_step or (lambda: None)
    classifier, epoch = _load(config, manifest, checkpoint_folder, device)
    model = classifier.model
    prepare = preprocess.preparation(config, manifest, device)
    batch = min(config.micro_batch_size or max(config.batch_size, 256), len(store.images))

    # float64 on the host, so that the sums over many images lose nothing.
    logits = _logits(classifier, store, prepare, batch, alive).double().numpy()
    # NaN ranks last. The test split ends no trial: the search would learn from it.
    logits = np.nan_to_num(logits, nan=-NO_CHOICE, posinf=NO_CHOICE, neginf=-NO_CHOICE)
    labels = store.labels.cpu().numpy()
    macs = cost.count_multiply_accumulates(
        model, image_size_px=config.image_size_px, in_channels=manifest.channels
    )
    chosen = example_rows(labels, config.split_seed)
    wrong = mistaken_rows(labels, scoring.ranking(logits)[:, 0], config.split_seed, chosen)
    shown = _examples(classifier, store, prepare, logits, chosen + wrong)
    alive()
    image = prepare(store.gather(_rows(store, [0]))[0], None)
    single_ms, images_per_s, size = speed.inference_time(config, model, image, batch)
    alive()
    return Evaluation(
        split="test",
        images=len(labels),
        epoch=epoch,
        **_figures(logits, labels, manifest),
        parameters=cost.count_parameters(model),
        parameters_with_statistics=cost.count_published(model),
        multiply_accumulates=macs,
        flops=2 * macs,
        inference_ms=single_ms,
        inference_images_per_s=images_per_s,
        inference_batch_size=size,
        device=speed.device_name(device),
        examples=shown[: len(chosen)],
        mistakes=shown[len(chosen) :],
    )


def _load(
    config: TrainConfig, manifest: Manifest, folder: Path, device: torch.device
) -> tuple[Classifier, int]:
    """Return the model of a checkpoint, and the checkpoint's epoch, counted from 0."""
    place, state = checkpoint.read_state(folder)
    if state.get("signature") != config.signature():
        raise checkpoint.CheckpointError(
            f"{folder} belongs to trial {state.get('signature')}, not {config.signature()}."
        )
    weights = place / f"{'average' if config.ema_decay else 'model'}.safetensors"
    return load_classifier(weights, config, manifest, device), int(state["epoch"])


def example_rows(labels: scoring.Ints, seed: int) -> list[int]:
    """Return up to 36 rows, spread over the classes: no class twice before each has one.

    They depend on the labels (n,) and the seed of the split alone.
    """
    order = np.random.RandomState(seed).permutation(len(labels))  # a stream numpy keeps (NEP 19)
    seen: Counter[int] = Counter()
    turns = []
    for label in labels[order].tolist():
        turns.append(seen[label])
        seen[label] += 1
    rows: list[int] = order[np.argsort(turns, kind="stable")[:MOST_EXAMPLES]].tolist()
    return rows


def mistaken_rows(
    labels: scoring.Ints, predicted: scoring.Ints, seed: int, shown: Collection[int] = ()
) -> list[int]:
    """Return up to 6 rows whose prediction is wrong, in an order that depends on the seed alone.

    Rows in `shown` come last. `labels` and `predicted` are (n,), `seed` is that of the split.
    """
    order = np.random.RandomState(seed).permutation(len(labels))
    rows: list[int] = order[predicted[order] != labels[order]].tolist()
    return sorted(rows, key=lambda row: row in shown)[:MOST_MISTAKES]


def _logits(
    classifier: Classifier,
    store: batches.ImageStore,
    prepare: Callable[[Tensor, torch.Generator | None], Tensor],
    batch: int,
    alive: Callable[[], None],
) -> Tensor:
    """Return the logits of all images, (n, k) float32 on the host."""
    parts = []
    with torch.inference_mode(), autocast(classifier.config, store.device):
        for rows in _rows(store, range(len(store.images))).split(batch):
            pixels, _ = store.gather(rows)
            parts.append(classifier.model(prepare(pixels, None)).float().cpu())
            alive()
    return torch.cat(parts)


def _figures(logits: scoring.Floats, labels: scoring.Ints, manifest: Manifest) -> dict[str, Any]:
    """Return the fields of `Evaluation` that logits and labels determine."""
    num_classes, ranked = len(manifest.class_names), scoring.ranking(logits)
    hits, predicted = ranked == labels[:, None], ranked[:, 0]
    diagram, ece = scoring.calibration(scoring.probabilities(logits).max(axis=1), hits[:, 0])
    precision, recall, f1, support = scoring.class_figures(labels, predicted, num_classes)
    return {
        "correct": base64.b64encode(np.packbits(hits[:, 0]).tobytes()).decode(),
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits.any(axis=1).mean()),
        "loss": scoring.cross_entropy(logits, labels),
        "ece": ece,
        "superclass_top1": scoring.superclass_top1(labels, predicted, manifest.fine_to_coarse),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "support": support,
        "confusion": scoring.confusion(labels, predicted, num_classes),
        "calibration": diagram,
    }


def _examples(
    classifier: Classifier,
    store: batches.ImageStore,
    prepare: Callable[[Tensor, torch.Generator | None], Tensor],
    logits: scoring.Floats,
    rows: list[int],
) -> list[Example]:
    """Return the test images of these rows, each with the map of its predicted class."""
    ranked = scoring.ranking(logits[rows])
    shares = scoring.probabilities(logits[rows])
    maps: list[Tensor | None] = []
    most = classifier.config.micro_batch_size or MOST_EXAMPLES
    for part in torch.arange(len(rows)).split(most):
        pixels, _ = store.gather(_rows(store, [rows[number] for number in part.tolist()]))
        predicted = torch.from_numpy(ranked[part.numpy(), 0]).to(store.device)
        with autocast(classifier.config, store.device):
            found = grad_cam.activation_maps(classifier.model, prepare(pixels, None), predicted)
        maps += [None] * len(part) if found is None else list(found.cpu())
    return [
        Example(
            row=row,
            label=int(store.labels[row]),
            top5=[(label, float(shares[number, label])) for label in ranked[number].tolist()],
            image_png=_png(store.images[row]),
            map=_packed(maps[number]),
        )
        for number, row in enumerate(rows)
    ]


def _rows(store: batches.ImageStore, numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=store.images.device)


def _packed(values: Tensor | None) -> ActivationMap | None:
    if values is None:
        return None
    levels = (values * 255).round().to(torch.uint8).numpy()
    height, width = levels.shape
    return ActivationMap(height, width, base64.b64encode(levels.tobytes()).decode())


def _png(pixels: Tensor) -> str:
    """Return base64 of an image (h, w, c) uint8 as PNG."""
    from PIL import Image

    array = pixels.cpu().numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    image.thumbnail((LARGEST_EXAMPLE_PX, LARGEST_EXAMPLE_PX))  # smaller ones stay as they are
    packed = io.BytesIO()
    image.save(packed, "PNG")
    return base64.b64encode(packed.getvalue()).decode()
