"""The training loop: reproducible, restartable, and right to the figure on a single step."""

import json
import math
import pickle
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.golden.make import LOSSES, losses
from tests.trainables.digits_trials import (
    CPU,
    EVERY_DRAW,
    assert_same_tensors,
    digits_config,
    learned,
    seeds_drawn_from,
    tensors_of,
    train,
)
from trainables.config import TrainConfig, choices
from trainables.data import batches, dataset, preprocess
from trainables.models import build
from trainables.training import checkpoint, device, loop, optim
from trainables.training.checkpoint import CheckpointError
from trainables.training.loop import DivergedError
from trainables.training.meter import EpochMeter

# Everything that draws random numbers or keeps state between epochs.
EVERYTHING = {**EVERY_DRAW, "epochs": 4, "schedule": "plateau", "plateau_patience_epochs": 1}


def built(config: TrainConfig, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The model of a digits trial as training starts with it, or with a checkpoint's weights."""
    torch.manual_seed(batches.derived_seed(config.seed, "model"))
    model = build.build_model(
        config,
        num_classes=10,
        in_channels=1,
        read_weights=False,
    )
    if weights is not None:
        model.load_state_dict(weights)
    return model


def evaluated(
    config: TrainConfig, digits_dir: Path, weights: dict[str, Tensor]
) -> tuple[float, float, float]:
    """Validation figures of a checkpoint's weights, computed without `loop`, in one batch."""
    manifest = dataset.load_manifest(digits_dir)
    images, labels = (torch.tensor(column) for column in dataset.open_split(digits_dir, "train"))
    _, rows = dataset.split_indices(labels.numpy(), config.validation_fraction, config.split_seed)
    pixels = images[rows].permute(0, 3, 1, 2).double() / 255
    pixels = F.interpolate(pixels, size=config.image_size_px, mode="bicubic").clamp(0, 1)
    inputs = (pixels - manifest.mean[0]) / manifest.std[0]
    model = built(config, weights).double().eval()
    with torch.no_grad():
        scores = model(inputs).log_softmax(1)
    wanted = labels[rows]
    order = scores.argsort(dim=1, descending=True)
    hits = (order == wanted[:, None]).double()
    loss = -scores[torch.arange(len(rows)), wanted].mean()
    return float(loss), float(hits[:, 0].mean()), float(hits[:, :5].sum(1).mean())


# --- reproducible --------------------------------------------------------------------------------


def test_the_same_seed_gives_bitwise_the_same_result(digits_dir, tmp_path):
    config = digits_config(digits_dir, **{**EVERYTHING, "epochs": 2})
    one = train(config, digits_dir, tmp_path / "one")
    torch.manual_seed(99)
    torch.rand(5)
    other = train(config, digits_dir, tmp_path / "other")
    assert learned(one) == learned(other)
    assert_same_tensors(tmp_path / "one" / "epoch_0001", tmp_path / "other" / "epoch_0001")


def test_another_seed_gives_another_result(digits_dir):
    one, other = (train(digits_config(digits_dir, seed=seed), digits_dir) for seed in (1, 2))
    for ours, theirs in zip(learned(one), learned(other), strict=True):
        assert ours["train_loss"] != theirs["train_loss"]
        assert ours["val_loss"] != theirs["val_loss"]


def test_every_epoch_draws_dropout_and_augmentation_anew(digits_dir):
    layers, augmentation = seeds_drawn_from(digits_config(digits_dir, epochs=3), digits_dir)
    assert (len(layers), len(augmentation)) == (3, 3)
    assert set(layers).isdisjoint(augmentation)
    others = seeds_drawn_from(digits_config(digits_dir, epochs=3, seed=8), digits_dir)
    assert set(layers).isdisjoint(others[0])
    assert set(augmentation).isdisjoint(others[1])


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 0.003), ("sgd", 0.05)])
def test_four_epochs_equal_two_a_restart_and_two(digits_dir, tmp_path, optimizer, lr):
    config = digits_config(digits_dir, **EVERYTHING, optimizer=optimizer, lr=lr)
    straight = train(config, digits_dir, tmp_path / "straight")

    first = loop.fit(config, digits_dir, checkpoints=tmp_path / "first", device=CPU)
    begun = [next(first), next(first)]
    first.close()
    torch.manual_seed(12345)
    rest = loop.fit(
        config,
        digits_dir,
        checkpoints=tmp_path / "second",
        resume_from=tmp_path / "first" / "epoch_0001",
        device=CPU,
    )
    ends = [*begun, *rest]
    assert [end.epoch for end in ends] == [0, 1, 2, 3]
    assert [end.is_last for end in ends] == [False, False, False, True]
    assert learned(ends) == learned(straight)
    assert [end.best_epoch for end in ends] == [end.best_epoch for end in straight]
    assert_same_tensors(tmp_path / "straight" / "epoch_0003", tmp_path / "second" / "epoch_0003")
    states = [checkpoint.load(tmp_path / name / "epoch_0003")[2] for name in ("straight", "second")]
    for state in states:
        del state["metrics"]  # these hold the clock's
    assert states[0] == states[1]
    assert states[0]["plateau"]["scale"] < 1.0  # the plateau had something to remember


@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_every_optimizer_resumes_from_its_saved_state(digits_dir, tmp_path, optimizer):
    config = digits_config(digits_dir, optimizer=optimizer, lr=0.003, weight_decay=1e-3)
    straight = train(config, digits_dir, tmp_path / "straight")
    resumed = loop.fit(
        config,
        digits_dir,
        checkpoints=tmp_path / "resumed",
        resume_from=tmp_path / "straight" / "epoch_0000",
        device=CPU,
    )
    assert learned(list(resumed)) == learned(straight[1:])
    assert_same_tensors(tmp_path / "straight" / "epoch_0001", tmp_path / "resumed" / "epoch_0001")


def test_golden_losses_of_five_steps(digits_dir):
    golden = json.loads(LOSSES.read_text())
    assert losses(digits_dir) == pytest.approx(
        golden["train_loss"], rel=golden["tolerance_relative"]
    )


def test_training_learns_the_digits(digits_dir):
    config = digits_config(digits_dir, epochs=5, steps_per_epoch=0, batch_size=64, momentum=0.9)
    ends = train(config, digits_dir)
    assert ends[-1].metrics.val_top1 > 0.9
    assert ends[-1].metrics.train_loss < ends[0].metrics.train_loss / 2


# --- restarts and checkpoints --------------------------------------------------------------------


def test_a_checkpoint_of_another_trial_is_refused(digits_dir, tmp_path):
    config = digits_config(digits_dir, epochs=1)
    train(config, digits_dir, tmp_path)
    other = digits_config(digits_dir, epochs=1, lr=0.03)
    with pytest.raises(CheckpointError, match=f"{config.signature()}, not {other.signature()}"):
        next(loop.fit(other, digits_dir, resume_from=tmp_path / "epoch_0000", device=CPU))


def test_a_training_resumes_with_a_smaller_micro_batch_from_the_same_checkpoint(
    digits_dir, tmp_path
):
    train(digits_config(digits_dir, epochs=2), digits_dir, tmp_path)
    config = digits_config(digits_dir, epochs=2, micro_batch_size=8)
    resumed = loop.fit(config, digits_dir, resume_from=tmp_path / "epoch_0000", device=CPU)
    assert [end.epoch for end in resumed] == [1]


def test_the_last_the_previous_and_the_best_checkpoint_are_kept(digits_dir, tmp_path):
    # Nothing is learned at rate 0, so the first epoch stays the best.
    config = digits_config(digits_dir, epochs=5, steps_per_epoch=1, lr=0.0)
    seen = []
    for end in loop.fit(config, digits_dir, checkpoints=tmp_path, device=CPU):
        assert end.checkpoint == f"epoch_{end.epoch:04d}"
        assert end.best_epoch == 0
        checkpoint.verify(tmp_path / end.checkpoint)
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
    names = [f"epoch_{epoch:04d}" for epoch in range(5)]
    # While an epoch is reported, the one reported before it is there, and the one before that.
    assert seen == [names[:1], names[:2], names[:3], names[:4], [names[0], *names[2:]]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[0], names[3], names[4]]


@pytest.mark.parametrize("select_by", ["val_top1", "val_loss"])
def test_of_equally_good_epochs_the_first_is_the_best(digits_dir, select_by):
    config = digits_config(digits_dir, epochs=4, lr=0.3, schedule="constant", select_by=select_by)
    ends = train(config, digits_dir)
    sign = 1 if select_by == "val_top1" else -1
    values = [sign * getattr(end.metrics, select_by) for end in ends]
    for number, end in enumerate(ends, start=1):
        assert end.best_epoch == values[:number].index(max(values[:number]))


def test_early_stopping_ends_the_training_and_a_restart_does_not_continue_it(digits_dir, tmp_path):
    config = digits_config(digits_dir, epochs=9, lr=0.0, early_stop_patience_epochs=2)
    ends = train(config, digits_dir, tmp_path)
    assert [(end.epoch, end.is_last) for end in ends] == [(0, False), (1, False), (2, True)]
    assert (
        list(loop.fit(config, digits_dir, resume_from=tmp_path / ends[-1].checkpoint, device=CPU))
        == []
    )


def test_plateau_reduces_the_learning_rate_of_the_next_epoch(digits_dir):
    # A rate too small to change a float32 weight: the validation loss stays as it is.
    config = digits_config(
        digits_dir,
        epochs=4,
        steps_per_epoch=1,
        lr=1e-20,
        schedule="plateau",
        plateau_patience_epochs=1,
        plateau_factor=0.5,
    )
    rates = [end.metrics.lr for end in train(config, digits_dir)]
    assert rates == pytest.approx([1e-20, 1e-20, 0.5e-20, 0.25e-20], rel=1e-9)


def test_without_a_validation_split_the_last_epoch_is_the_best(digits_dir):
    config = digits_config(digits_dir, epochs=3, validation_fraction=0.0)
    ends = train(config, digits_dir)
    assert [end.best_epoch for end in ends] == [0, 1, 2]
    assert (ends[-1].metrics.val_loss, ends[-1].metrics.val_top1) == (0.0, 0.0)


def test_without_a_folder_nothing_is_written(digits_dir):
    assert [end.checkpoint for end in train(digits_config(digits_dir), digits_dir)] == [None] * 2


def test_a_wrong_number_of_workers_is_refused(digits_dir):
    with pytest.raises(ValueError, match="`workers` is 2, but 1 processes train together"):
        next(loop.fit(digits_config(digits_dir, workers=2), digits_dir, device=CPU))


# --- divergence ----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_trial(digits_dir, tmp_path):
    config = digits_config(digits_dir, lr=1e9, schedule="constant", steps_per_epoch=4)
    with pytest.raises(DivergedError, match="training loss of epoch 1 is not finite") as caught:
        train(config, digits_dir, tmp_path)
    assert list(tmp_path.iterdir()) == []
    error = pickle.loads(pickle.dumps(caught.value))
    assert type(error) is DivergedError
    assert (error.epoch, error.part, error.lr) == (0, "training", 1e9)
    assert str(error) == str(caught.value)


def test_a_validation_loss_that_is_not_finite_ends_the_trial(digits_dir):
    # The only step's loss is that of the first weights; what the step makes of them comes next.
    config = digits_config(digits_dir, lr=1e30, schedule="constant", steps_per_epoch=1)
    with pytest.raises(DivergedError, match="validation loss of epoch 1 is not finite"):
        train(config, digits_dir)


# --- one step, by hand ---------------------------------------------------------------------------


def one_step(
    images: Tensor, targets: Tensor, **values: Any
) -> tuple[nn.Linear, nn.Linear, EpochMeter]:
    """A linear model before and after one step of plain gradient descent at rate 0.1."""
    torch.manual_seed(3)
    before, after = nn.Linear(2, 3), nn.Linear(2, 3)
    after.load_state_dict(before.state_dict())
    config = TrainConfig(
        variant="cnn3",
        dataset="d",
        dataset_fingerprint="f",
        epochs=1,
        seed=0,
        image_size_px=32,
        lr=0.1,
        momentum=0.0,
        precision="float32",
        **values,
    )
    meter = EpochMeter(CPU)
    optimizer = optim.build_optimizer(after, config)
    loop._optimize(config, after, after, optimizer, meter, images, targets)
    return before, after, meter


IMAGES = torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 0.0], [-1.0, 1.0], [0.0, 1.0]])
LABELS = torch.tensor([0, 2, 1, 2, 0])


def cross_entropy_by_hand(model: nn.Linear, targets: Tensor) -> tuple[float, Tensor, Tensor]:
    """Summed loss, and the mean loss's gradients for weight and bias."""
    scores = (IMAGES @ model.weight.T + model.bias).detach()
    logs = scores - scores.exp().sum(1, keepdim=True).log()
    error = (logs.exp() - targets) / len(IMAGES)
    return float(-(targets * logs).sum()), error.T @ IMAGES, error.sum(0)


def test_label_smoothing_moves_its_share_evenly_to_all_classes():
    before, after, meter = one_step(IMAGES, LABELS, label_smoothing=0.3)
    smooth = F.one_hot(LABELS, 3) * 0.7 + 0.1
    loss, weight, bias = cross_entropy_by_hand(before, smooth)
    assert meter.read()[0] == pytest.approx(loss / 5, rel=1e-6)
    assert torch.allclose(after.weight, before.weight - 0.1 * weight, atol=1e-6)
    assert torch.allclose(after.bias, before.bias - 0.1 * bias, atol=1e-6)


def test_soft_targets_of_mixed_images_are_learned_in_their_shares():
    soft = torch.lerp(F.one_hot(LABELS, 3).float(), F.one_hot(LABELS.roll(1), 3).float(), 0.25)
    before, after, meter = one_step(IMAGES, soft)
    loss, weight, _ = cross_entropy_by_hand(before, soft)
    assert meter.read()[0] == pytest.approx(loss / 5, rel=1e-6)
    assert torch.allclose(after.weight, before.weight - 0.1 * weight, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_the_l2_penalty_applies_to_weights_and_not_to_biases(micro_batch_size):
    before, after, meter = one_step(IMAGES, LABELS, l2=0.05, micro_batch_size=micro_batch_size)
    loss, weight, bias = cross_entropy_by_hand(before, F.one_hot(LABELS, 3))
    assert meter.read()[0] == pytest.approx(loss / 5, rel=1e-6)  # the penalty is not reported
    pulled = weight + 2 * 0.05 * before.weight
    assert torch.allclose(after.weight, before.weight - 0.1 * pulled, atol=1e-6)
    assert torch.allclose(after.bias, before.bias - 0.1 * bias, atol=1e-6)


@pytest.mark.parametrize(("limit", "clips"), [(0.1, True), (100.0, False)])
def test_gradients_are_clipped_to_their_common_norm(limit, clips):
    before, after, _ = one_step(IMAGES, LABELS, clip_grad_norm=limit)
    _, weight, bias = cross_entropy_by_hand(before, F.one_hot(LABELS, 3))
    norm = math.sqrt(float(weight.square().sum() + bias.square().sum()))
    assert (norm > limit) == clips
    factor = min(1.0, limit / (norm + 1e-6))
    assert torch.allclose(after.weight, before.weight - 0.1 * factor * weight, atol=1e-6)
    assert torch.allclose(after.bias, before.bias - 0.1 * factor * bias, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 4, 5, 9])
def test_micro_batches_add_up_to_the_batch(micro_batch_size):
    _, whole, whole_tally = one_step(IMAGES, LABELS, label_smoothing=0.1)
    _, parts, parts_tally = one_step(
        IMAGES, LABELS, label_smoothing=0.1, micro_batch_size=micro_batch_size
    )
    assert torch.allclose(whole.weight, parts.weight, atol=1e-6, rtol=0)
    assert torch.allclose(whole.bias, parts.bias, atol=1e-6, rtol=0)
    assert parts_tally.read() == pytest.approx(whole_tally.read(), abs=1e-6)


def test_micro_batches_train_a_model_without_batch_norm_the_same(digits_dir, tmp_path):
    options = {"epochs": 1, "l2": 1e-3, "clip_grad_norm": 0.5, "lr": 0.05}
    whole = train(digits_config(digits_dir, **options), digits_dir, tmp_path / "whole")
    config = digits_config(digits_dir, **options, micro_batch_size=5)
    parts = train(config, digits_dir, tmp_path / "parts")
    assert learned(parts)[0] == pytest.approx(learned(whole)[0], abs=1e-6)
    ours, theirs = (tensors_of(tmp_path / name / "epoch_0000") for name in ("whole", "parts"))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6, rtol=0), name


def test_no_micro_batch_is_a_single_left_over_image(digits_dir):
    # Batch norm refuses to train on one value per channel: 33 images in parts of 16 at most
    # must not end with a part of one.
    config = digits_config(
        digits_dir, variant="cnn3_bn", epochs=1, steps_per_epoch=1, batch_size=33
    )
    config = TrainConfig.from_dict({**config.to_dict(), "micro_batch_size": 16})
    assert math.isfinite(train(config, digits_dir)[0].metrics.val_loss)


# --- judging -------------------------------------------------------------------------------------


def test_validation_over_a_last_partial_batch_equals_a_computation_by_hand(digits_dir, tmp_path):
    config = digits_config(
        digits_dir, epochs=1, steps_per_epoch=0, batch_size=100, validation_fraction=0.3, lr=0.05
    )
    metrics = train(config, digits_dir, tmp_path)[0].metrics
    weights, _, state = checkpoint.load(tmp_path / "epoch_0000")
    loss, top1, top5 = evaluated(config, digits_dir, weights["model"])  # 431 images: 256 and 175
    assert metrics.val_loss == pytest.approx(loss, rel=1e-5)
    assert metrics.val_top1 == pytest.approx(top1, abs=1e-12)
    assert metrics.val_top5 == pytest.approx(top5, abs=1e-12)
    assert round(metrics.val_top1 * 431, 9) % 1 == 0
    assert 0 < metrics.data_s < metrics.epoch_s - metrics.val_s
    kept = metrics.to_dict()
    assert kept.pop("checkpoint_s") > 0  # known only after the checkpoint is written
    assert state["metrics"] == kept


def test_the_average_follows_the_weights_and_is_what_is_evaluated(digits_dir, tmp_path):
    config = digits_config(
        digits_dir, variant="cnn3_bn", epochs=4, steps_per_epoch=1, lr=0.1, ema_decay=0.15
    )
    average = {name: tensor.clone() for name, tensor in built(config).state_dict().items()}
    for end in loop.fit(config, digits_dir, checkpoints=tmp_path, device=CPU):
        weights, _, _ = checkpoint.load(tmp_path / end.checkpoint)
        # TensorFlow's warm-up: 1/10, then 2/11 is over the limit of 0.15.
        kept = [0.1, 0.15, 0.15, 0.15][end.epoch]
        for name, tensor in weights["model"].items():
            if tensor.is_floating_point():
                average[name] = kept * average[name] + (1 - kept) * tensor
                assert torch.allclose(weights["average"][name], average[name], atol=1e-6), name
            else:
                assert torch.equal(weights["average"][name], tensor), name
    assert any(name.endswith("running_var") for name in average)
    loss, _, _ = evaluated(config, digits_dir, weights["average"])
    assert end.metrics.val_loss == pytest.approx(loss, rel=1e-4)
    assert evaluated(config, digits_dir, weights["model"])[0] != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_cnns_training_imports_no_compiler(digits_dir, tmp_path, optimizer):
    """Which takes 2 s and 180 MB of a process, and which its optimizer would have imported."""
    config = digits_config(digits_dir, **{**EVERYTHING, "epochs": 1, "optimizer": optimizer})
    code = (
        "import json, sys; from pathlib import Path; from trainables.training import loop;"
        "from trainables.config import TrainConfig;"
        "config = TrainConfig.from_dict(json.loads(sys.argv[1]));"
        "ends = list(loop.fit(config, Path(sys.argv[2]), checkpoints=Path(sys.argv[3])));"
        "assert len(ends) == 1;"
        "print(sorted({'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, json.dumps(config.to_dict()), digits_dir, tmp_path]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "[]\n"


def test_times_and_memory_of_an_epoch_are_measured_on_this_machine(digits_dir):
    started = time.perf_counter()
    end = train(digits_config(digits_dir, epochs=1, steps_per_epoch=3), digits_dir)[0]
    assert 0 < end.metrics.epoch_s < time.perf_counter() - started
    # 96 images in less than the epoch, which validation is a part of.
    assert end.metrics.images_per_s > 96 / end.metrics.epoch_s
    assert 0.05 < end.metrics.device_peak_gib < 64


# --- how it is computed --------------------------------------------------------------------------


def test_bfloat16_on_a_cpu_gives_nearly_the_losses_of_float32(digits_dir, tmp_path):
    options = {"epochs": 1, "steps_per_epoch": 4, "lr": 0.05}
    exact, coarse = (
        train(
            digits_config(digits_dir, **options, precision=precision),
            digits_dir,
            tmp_path / precision,
        )[0].metrics
        for precision in ("float32", "bfloat16")
    )
    assert coarse.train_loss == pytest.approx(exact.train_loss, rel=0.01)
    assert coarse.val_loss == pytest.approx(exact.val_loss, rel=0.01)
    assert coarse.train_loss != exact.train_loss
    # Weights, average and optimizer stay in float32.
    assert {t.dtype for t in tensors_of(tmp_path / "bfloat16" / "epoch_0000").values()} == {
        torch.float32
    }


@pytest.fixture
def cpu_that_can(monkeypatch) -> Iterator[Callable[[str, bool], None]]:
    """Make the processor one that can do just this, of AMD or not."""

    def can(what: str, is_amd: bool) -> None:
        vendor = "AuthenticAMD" if is_amd else "GenuineIntel"
        monkeypatch.setattr(device, "cpu_info", lambda: f"vendor_id\t: {vendor}")
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {what: True})
        device.is_faster_in_bfloat16.cache_clear()

    yield can
    monkeypatch.undo()
    device.is_faster_in_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("variant", "what", "is_amd", "precision"),
    [
        ("cnn3", "avx2", True, "float32"),
        ("cnn3", "avx512_bf16", True, "bfloat16"),
        ("cnn3", "avx512_bf16", False, "float32"),
        ("cnn3", "amx_bf16", False, "bfloat16"),
        ("efficientnet_b0", "avx512_bf16", True, "float32"),
    ],
)
def test_auto_precision_on_a_cpu_is_bfloat16_where_that_is_faster(
    digits_dir, cpu_that_can, variant, what, is_amd, precision
):
    cpu_that_can(what, is_amd)
    auto, chosen, other = (
        learned(
            train(digits_config(digits_dir, variant=variant, epochs=1, precision=p), digits_dir)
        )
        for p in ("auto", precision, {"float32": "bfloat16"}.get(precision, "float32"))
    )
    assert auto == chosen
    assert auto != other


@pytest.mark.parametrize("augmentation", [{}, {"rotation_deg": 10.0}, {"hflip": True}])
@pytest.mark.parametrize("channels_last", [True, False])
def test_batches_have_the_memory_format_of_the_model(digits_dir, augmentation, channels_last):
    config = digits_config(digits_dir, channels_last=channels_last, **augmentation)
    manifest = dataset.Manifest(
        name="colours",
        fingerprint="",
        class_names=("0",),
        height_px=8,
        width_px=8,
        channels=3,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        images={},
    )
    prepare = preprocess.preparation(config, manifest, CPU)
    draws = torch.Generator().manual_seed(0)
    images = prepare(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), draws)
    assert images.shape == (4, 3, 32, 32)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)
    assert torch.equal(images, torch.full((4, 3, 32, 32), -2.0))


def test_both_memory_formats_give_the_same_results(digits_dir):
    one, other = (
        train(digits_config(digits_dir, channels_last=value), digits_dir) for value in (True, False)
    )
    for ours, theirs in zip(learned(one), learned(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


class WaitCounter(TorchDispatchMode):
    """Counts operations that make the host wait for a device, or copy to it from plain memory."""

    WAITS = (
        "_local_scalar_dense",
        "is_nonzero",
        "nonzero",
        "masked_select",
        "unique",
        "lift_fresh",
    )

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name.startswith(wait) for wait in self.WAITS):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


def waits_of(config: TrainConfig, digits_dir: Path) -> Counter[str]:
    """How often one epoch waits, and calls what copies a tensor to the host."""
    counter = WaitCounter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):
            original = getattr(Tensor, name)

            def counted(self, *args, _name=name, _original=original, **options):
                counter.waits[_name] += 1
                return _original(self, *args, **options)

            patch.setattr(Tensor, name, counted)
        with counter:
            assert len(train(config, digits_dir)) == 1
    return counter.waits


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov"])
def test_the_host_does_not_wait_for_the_device_within_an_epoch(digits_dir, optimizer):
    options = {
        **EVERYTHING,
        "epochs": 1,
        "optimizer": optimizer,
        "micro_batch_size": 8,
        "batch_size": 16,
        "grid_distortion": 0.5,
        "elastic": 0.5,
        "randaugment_ops": 2,
        "vflip": True,
        "shear_deg": 5.0,
        "zoom": 0.1,
    }
    few, many = (
        waits_of(digits_config(digits_dir, **options, steps_per_epoch=steps), digits_dir)
        for steps in (1, 4)
    )
    assert few["tolist"] >= 2  # the end of training and of validation are read: it does count
    assert many == few


def test_compiled_training_gives_nearly_the_same_losses(digits_dir):
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler, and this machine has none")
    plain, compiled = (
        train(digits_config(digits_dir, epochs=1, compile=value), digits_dir)
        for value in (False, True)
    )
    assert learned(compiled)[0] == pytest.approx(learned(plain)[0], rel=1e-3)
