"""The test split of the real digits, evaluated with a small trained network."""

import base64
import io
import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.trainables.digits_trials import CPU, digits_config, train
from trainables.config import TrainConfig
from trainables.data import batches, dataset, preprocess
from trainables.evaluation import speed
from trainables.evaluation.classifier import load_classifier
from trainables.evaluation.held_out import (
    Evaluation,
    evaluate_test,
    example_rows,
    mistaken_rows,
)
from trainables.models import build, cost
from trainables.training import checkpoint
from trainables.training.checkpoint import CheckpointError

KEYS = {
    *("split", "images", "epoch", "correct", "top1", "top5", "loss", "ece", "superclass_top1"),
    *("precision", "recall", "f1", "support", "confusion", "calibration"),
    *("parameters", "parameters_with_statistics", "multiply_accumulates", "flops"),
    *("inference_ms", "inference_images_per_s", "inference_batch_size", "device"),
    *("examples", "mistakes"),
}


@pytest.fixture(scope="module")
def trained(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """A trial with a moving average that is far from its last weights, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    config = digits_config(
        digits_dir, variant="cnn3_bn", epochs=1, steps_per_epoch=12, lr=0.05, ema_decay=0.8
    )
    train(config, digits_dir, folder)
    return config, folder / "epoch_0000"


@pytest.fixture(scope="module")
def evaluation(trained: tuple[TrainConfig, Path], digits_dir: Path) -> Evaluation:
    return evaluate_test(trained[0], digits_dir, trained[1], device=CPU)


def by_hand(config: TrainConfig, digits_dir: Path, folder: Path, part: str) -> torch.Tensor:
    """Log-probabilities of the whole test split in float64, in one batch."""
    manifest = dataset.load_manifest(digits_dir)
    images = torch.tensor(dataset.open_split(digits_dir, "test")[0])
    pixels = images.permute(0, 3, 1, 2).double() / 255
    pixels = F.interpolate(pixels, size=config.image_size_px, mode="bicubic").clamp(0, 1)
    model = build.build_model(config, num_classes=10, in_channels=1)
    model.load_state_dict(checkpoint.load(folder)[0][part])
    with torch.no_grad():
        logits = model.double().eval()((pixels - manifest.mean[0]) / manifest.std[0])
    return logits.log_softmax(1)


def test_the_figures_are_those_of_the_averaged_weights_on_the_test_split(
    trained, evaluation, digits_dir
):
    config, folder = trained
    labels = torch.tensor(dataset.open_split(digits_dir, "test")[1])
    averaged, last = (by_hand(config, digits_dir, folder, part) for part in ("average", "model"))
    rows = torch.arange(len(labels))
    assert evaluation.loss == pytest.approx(float(-averaged[rows, labels].mean()), rel=1e-5)
    assert evaluation.loss != pytest.approx(float(-last[rows, labels].mean()), rel=1e-2)
    assert evaluation.top1 == pytest.approx(float((averaged.argmax(1) == labels).double().mean()))
    top5 = (averaged.topk(5).indices == labels[:, None]).any(1).double().mean()
    assert evaluation.top5 == pytest.approx(float(top5))
    confidence = averaged.exp().amax(1)
    assert np.average(
        evaluation.calibration.confidence, weights=evaluation.calibration.count
    ) == pytest.approx(float(confidence.mean()), rel=1e-5)


def test_related_metrics_agree(evaluation, digits_dir):
    matrix = np.array(evaluation.confusion)
    assert (evaluation.split, evaluation.images, evaluation.epoch) == ("test", 359, 0)
    assert evaluation.images == dataset.load_manifest(digits_dir).images["test"]
    assert matrix.sum() == sum(evaluation.calibration.count) == 359
    assert matrix.sum(axis=1).tolist() == evaluation.support
    assert evaluation.top1 == np.trace(matrix) / 359
    assert evaluation.recall.weighted == pytest.approx(evaluation.top1)
    assert evaluation.recall.per_class == pytest.approx(np.diag(matrix) / evaluation.support)
    for figures in (evaluation.precision, evaluation.recall, evaluation.f1):
        assert figures.macro == pytest.approx(np.mean(figures.per_class))
        assert figures.weighted == pytest.approx(
            np.average(figures.per_class, weights=evaluation.support)
        )
    bins = evaluation.calibration
    assert np.average(bins.accuracy, weights=bins.count) == pytest.approx(evaluation.top1)
    gaps = np.abs(np.array(bins.accuracy) - np.array(bins.confidence))
    assert evaluation.ece == pytest.approx(np.average(gaps, weights=bins.count))
    assert 0.2 < evaluation.top1 <= evaluation.top5 <= 1
    assert evaluation.superclass_top1 is None


def test_parameters_and_multiply_accumulates_are_counted(trained, evaluation):
    model = build.build_model(trained[0], num_classes=10, in_channels=1)
    assert evaluation.parameters == cost.count_parameters(model)
    # Two statistics per channel of four batch norms: 64, 128, 256 and 512.
    assert evaluation.parameters_with_statistics == evaluation.parameters + 2 * 960
    assert evaluation.flops == 2 * evaluation.multiply_accumulates
    assert evaluation.multiply_accumulates == cost.count_multiply_accumulates(
        model, image_size_px=32, in_channels=1
    )


def test_speed_is_measured_on_a_named_device(trained, evaluation):
    assert evaluation.inference_ms > 0
    assert 1 <= evaluation.inference_batch_size <= 256
    single_per_s = 1000 / evaluation.inference_ms
    assert 0.2 * single_per_s < evaluation.inference_images_per_s < 200 * single_per_s
    assert evaluation.device == speed.device_name(CPU)
    assert evaluation.device.endswith(", 1 thread")


def test_examples_are_the_stored_images_with_the_networks_predictions(
    trained, evaluation, digits_dir
):
    config, folder = trained
    images, labels = dataset.open_split(digits_dir, "test")
    logs = by_hand(config, digits_dir, folder, "average")
    assert len(evaluation.examples) == 36
    strongest = []
    for example in evaluation.examples:
        assert example.label == labels[example.row]
        picture = Image.open(io.BytesIO(base64.b64decode(example.image_png)))
        assert np.array_equal(np.array(picture), images[example.row, ..., 0])
        classes, shares = zip(*example.top5, strict=True)
        assert list(classes) == logs[example.row].topk(5).indices.tolist()
        assert shares == pytest.approx(logs[example.row].topk(5).values.exp().tolist(), rel=1e-4)
        assert example.map is not None
        assert (example.map.height, example.map.width) == (4, 4)  # 32 px pooled three times
        values = np.frombuffer(base64.b64decode(example.map.values), np.uint8)
        assert len(values) == 16
        strongest.append(int(values.max()))
    # 0 where no place speaks for the class: this network's dense layers are not linear.
    assert set(strongest) <= {0, 255}
    assert strongest.count(255) > 18


def test_examples_are_spread_over_classes_and_depend_on_the_split_alone(digits_dir):
    labels = dataset.open_split(digits_dir, "test")[1]
    rows = example_rows(labels, 0)
    assert rows == example_rows(labels, 0) != example_rows(labels, 1)
    assert len(set(rows)) == 36
    assert set(np.bincount(labels[rows], minlength=10)) == {3, 4}
    assert sorted(example_rows(np.array([2, 2, 5]), 3)) == [0, 1, 2]


def test_mistakes_are_misclassified_images_even_when_there_are_few(evaluation, digits_dir):
    labels = dataset.open_split(digits_dir, "test")[1]
    predicted = labels.copy()
    predicted[[7, 300]] = (labels[[7, 300]] + 1) % 10
    assert sorted(mistaken_rows(labels, predicted, 0)) == [7, 300]
    assert mistaken_rows(labels, labels, 0) == []
    assert len(mistaken_rows(labels, 9 - labels, 0)) == 6
    assert mistaken_rows(labels, predicted, 0, shown=[7]) == [300, 7]
    assert evaluation.top1 < 1 - 6 / 359
    assert len(evaluation.mistakes) == 6
    assert all(example.top5[0][0] != labels[example.row] for example in evaluation.mistakes)


def test_the_ledger_holds_which_test_images_are_right(evaluation):
    packed = np.frombuffer(base64.b64decode(evaluation.correct), np.uint8)
    right = np.unpackbits(packed, count=evaluation.images)
    assert right.mean() == evaluation.top1
    assert not any(right[mistake.row] for mistake in evaluation.mistakes)
    for example in evaluation.examples:
        assert right[example.row] == (example.top5[0][0] == example.label)


def test_all_figures_survive_json_by_their_names(evaluation):
    values = evaluation.to_dict()
    assert set(values) == KEYS
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert set(values["precision"]) == {"per_class", "macro", "weighted"}
    assert set(values["calibration"]) == {"count", "confidence", "accuracy"}
    assert {len(bins) for bins in values["calibration"].values()} == {15}
    assert set(values["examples"][0]) == {"row", "label", "top5", "image_png", "map"}
    assert set(values["examples"][0]["map"]) == {"height", "width", "values"}


def test_micro_batches_and_streamed_images_give_the_same_evaluation(
    trained, evaluation, digits_dir
):
    config = replace(trained[0], micro_batch_size=50)
    steps = []
    started = time.perf_counter()
    other = evaluate_test(
        config,
        digits_dir,
        trained[1],
        device=CPU,
        resident_share=0.0,
        on_step=lambda: steps.append(time.perf_counter() - started),
    )
    assert len(steps) == 8 + 2  # 359 images in fifties; the examples, the speed
    assert other.loss == pytest.approx(evaluation.loss, rel=1e-6)
    assert other.confusion == evaluation.confusion
    assert [example.row for example in other.examples] == [e.row for e in evaluation.examples]
    assert other.inference_batch_size <= 50


def test_superclasses_of_the_manifest_are_counted(trained, evaluation, digits_dir, tmp_path):
    for path in digits_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    manifest = json.loads((digits_dir / "manifest.json").read_text())
    (tmp_path / "manifest.json").unlink()
    manifest["fine_to_coarse"] = [label % 2 for label in range(10)]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found = evaluate_test(trained[0], tmp_path, trained[1], device=CPU)
    matrix = np.array(evaluation.confusion)
    same = sum(matrix[i, j] for i in range(10) for j in range(10) if i % 2 == j % 2)
    assert found.superclass_top1 == pytest.approx(same / 359)
    assert found.top1 == evaluation.top1


def test_a_loaded_model_predicts_as_it_was_evaluated(trained, evaluation, digits_dir):
    config, folder = trained
    manifest = dataset.load_manifest(digits_dir)
    model = load_classifier(folder / "average.safetensors", config, manifest, CPU).model
    assert not model.training
    prepare = preprocess.preparation(config, manifest, CPU)
    store = batches.open_store(digits_dir, "test", CPU)
    example = evaluation.examples[0]
    with torch.inference_mode():
        logits = model(prepare(store.gather(torch.tensor([example.row]))[0], None))
    assert logits.softmax(1).max() == pytest.approx(example.top5[0][1], rel=1e-5)


def test_unusable_checkpoints_and_datasets_are_refused_and_nan_logits_rank_last(
    trained, digits_dir, tmp_path
):
    config, folder = trained
    with pytest.raises(CheckpointError, match=f"belongs to trial {config.signature()}, not"):
        evaluate_test(replace(config, lr=0.9), digits_dir, folder, device=CPU)
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        evaluate_test(config, digits_dir, tmp_path / "none", device=CPU)
    with pytest.raises(dataset.DatasetError, match="the dataset was replaced"):
        evaluate_test(replace(config, dataset_fingerprint="0"), digits_dir, folder, device=CPU)
    weights, optimizer, state = checkpoint.load(folder)
    weights["average"]["classifier.bias"][3] = float("nan")
    checkpoint.save(tmp_path / "nan", weights=weights, optimizer=optimizer, state=state)
    evaluated = evaluate_test(config, digits_dir, tmp_path / "nan", device=CPU)
    assert evaluated.recall.per_class[3] == 0.0  # the class that is not a number is never chosen
    assert evaluated.images == 359
    assert math.isfinite(evaluated.loss)
    del weights["average"]
    checkpoint.save(tmp_path / "lacking", weights=weights, optimizer=optimizer, state=state)
    with pytest.raises(
        CheckpointError, match=r"average\.safetensors is not a readable file of weights"
    ):
        evaluate_test(config, digits_dir, tmp_path / "lacking", device=CPU)


@pytest.mark.parametrize(
    ("variant", "image_size_px", "map_px"),
    [("vgg16_bn", 64, 2), ("inception_v3", 75, None)],
)
def test_vgg_and_inception_are_trained_evaluated_and_explained(
    digits_dir, tmp_path, variant, image_size_px, map_px
):
    """What `tinyimagenet_baselines` names as future work, at small image sizes."""
    config = digits_config(
        digits_dir,
        variant=variant,
        image_size_px=image_size_px,
        epochs=1,
        steps_per_epoch=1,
        batch_size=2,
        momentum=0.0,
        freeze_epochs=1,
        layer_decay=0.8,
        lr=1e-3,
        validation_fraction=0.01,
    )
    (end,) = train(config, digits_dir, tmp_path)
    found = evaluate_test(config, digits_dir, tmp_path / end.checkpoint, device=CPU)
    shutil.rmtree(tmp_path)  # half a gigabyte
    assert np.sum(found.confusion) == found.images == 359
    assert found.multiply_accumulates > 10**8
    sides = {example.map and (example.map.height, example.map.width) for example in found.examples}
    assert sides == {map_px and (map_px, map_px)}  # of one pixel there is no map
