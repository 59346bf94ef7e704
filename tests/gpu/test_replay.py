"""On a CUDA device: replayed steps equal those taken one by one, and nothing is left behind."""

import gc
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.execution import failure_class, worker
from tests.trainables.digits_trials import (
    CPU,
    EVERY_DRAW,
    assert_same_tensors,
    digits_config,
    learned,
    tensors_of,
)
from trainables.config import TrainConfig
from trainables.training import checkpoint, compiling, cuda_graph, loop
from trainables.training.loop import EpochEnd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # Older versions of torch warn of it when they compile, and a warning is a failure here.
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]

CUDA = torch.device("cuda", 0)

# Everything that draws random numbers or keeps state between steps.
EVERYTHING = {
    **EVERY_DRAW,
    "epochs": 2,
    "steps_per_epoch": 8,
    "optimizer": "adamw",
    "lr": 0.002,
    "deterministic": True,
}
REPLAYABLE = ["sgd", "nesterov", "rmsprop", "adam", "adamw", "radam"]


@pytest.fixture
def captures(monkeypatch) -> list[bool]:
    """Whether each graph that was asked for was captured."""
    found: list[bool] = []
    original = cuda_graph.Replayed._capture

    def watched(self, rows):
        original(self, rows)
        found.append(self._graph is not None)

    monkeypatch.setattr(cuda_graph.Replayed, "_capture", watched)
    return found


def train(
    config: TrainConfig, folder: Path, to: Path | None = None, **options: Any
) -> list[EpochEnd]:
    return list(loop.fit(config, folder, checkpoints=to, **{"device": CUDA, **options}))


def one_by_one(config, folder, to, monkeypatch) -> list[EpochEnd]:
    with monkeypatch.context() as patch:
        patch.setattr(cuda_graph, "can_replay", lambda *_: False)
        return train(config, folder, to)


@pytest.mark.parametrize("optimizer", REPLAYABLE)
def test_replayed_steps_equal_those_taken_one_by_one(
    digits_dir, tmp_path, monkeypatch, captures, optimizer
):
    config = digits_config(digits_dir, **{**EVERYTHING, "optimizer": optimizer})
    plain = one_by_one(config, digits_dir, tmp_path / "plain", monkeypatch)
    assert captures == []
    replayed = train(config, digits_dir, tmp_path / "replayed")
    assert captures == [True]
    assert learned(replayed) == learned(plain)
    assert_same_tensors(tmp_path / "plain/epoch_0001", tmp_path / "replayed/epoch_0001")


@pytest.mark.parametrize(
    "options",
    [
        {"randaugment_ops": 2, "grid_distortion": 0.5, "elastic": 0.5, "vflip": True},
        {"precision": "bfloat16", "drop_path": 0.2, "variant": "efficientnet_b0"},
        {"micro_batch_size": 8},
        {"freeze_epochs": 1, "variant": "efficientnet_b0"},
        {"layer_decay": 0.8, "variant": "efficientnet_b0"},
        {"channels_last": False},
        {"compile": True},
        {"compile": True, "precision": "bfloat16", "variant": "test_efficientnet"},
    ],
    ids="-".join,
)
def test_replayed_steps_equal_those_taken_one_by_one_with(
    digits_dir, tmp_path, monkeypatch, captures, options
):
    config = digits_config(digits_dir, **{**EVERYTHING, **options})
    plain = one_by_one(config, digits_dir, tmp_path / "plain", monkeypatch)
    replayed = train(config, digits_dir, tmp_path / "replayed")
    assert captures == [True] * (2 if config.freeze_epochs else 1)
    assert learned(replayed) == learned(plain)
    assert_same_tensors(tmp_path / "plain/epoch_0001", tmp_path / "replayed/epoch_0001")


@pytest.mark.parametrize("optimizer", [*REPLAYABLE, "lamb"])
def test_two_epochs_equal_one_a_restart_and_one(digits_dir, tmp_path, optimizer):
    config = digits_config(digits_dir, **{**EVERYTHING, "optimizer": optimizer})
    whole = train(config, digits_dir, tmp_path / "whole")
    half = loop.fit(config, digits_dir, checkpoints=tmp_path / "half", device=CUDA)
    next(half)
    half.close()
    rest = train(config, digits_dir, tmp_path / "rest", resume_from=tmp_path / "half/epoch_0000")
    assert learned(rest) == learned(whole)[1:]
    assert_same_tensors(tmp_path / "whole/epoch_0001", tmp_path / "rest/epoch_0001")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "radam", "lamb"])
@pytest.mark.parametrize(("begun_on", "ended_on"), [(CPU, CUDA), (CUDA, CPU)])
def test_a_training_continues_on_another_device(
    digits_dir, tmp_path, begun_on, ended_on, optimizer
):
    # In float32 and without random draws, which differ between devices.
    config = digits_config(
        digits_dir, epochs=2, steps_per_epoch=6, optimizer=optimizer, lr=0.001, deterministic=True
    )
    whole = train(config, digits_dir, device=ended_on)
    half = loop.fit(config, digits_dir, checkpoints=tmp_path / "half", device=begun_on)
    next(half)
    half.close()
    checkpoint_of_one = tmp_path / "half/epoch_0000"
    rest = train(config, digits_dir, device=ended_on, resume_from=checkpoint_of_one)
    assert learned(rest)[0] == pytest.approx(learned(whole)[1], rel=2e-2, abs=1e-6)


def test_the_first_epoch_on_a_gpu_is_that_of_a_cpu(digits_dir):
    config = digits_config(digits_dir, epochs=1, steps_per_epoch=8, deterministic=True)
    on_cpu, on_cuda = (learned(train(config, digits_dir, device=d))[0] for d in (CPU, CUDA))
    assert on_cuda == pytest.approx(on_cpu, rel=1e-2)


@pytest.mark.parametrize(
    "variant",
    [f"efficientnet_b{size}" for size in range(8)]
    + ["resnet50", "cnn2", "cnn3", "cnn6", "vgg11_bn", "vit_tiny_patch16_224", "convnext_atto"],
)
def test_a_step_of_every_kind_of_network_can_be_captured(digits_dir, captures, caplog, variant):
    side = 224 if variant.startswith("vit") else 32
    config = digits_config(
        digits_dir,
        variant=variant,
        image_size_px=side,
        epochs=1,
        batch_size=8,
        steps_per_epoch=5,
        lr=1e-3,
        precision="auto",
    )
    with caplog.at_level(logging.WARNING, "trainables"):
        train(config, digits_dir)
    assert captures == [True]
    assert caplog.records == []


def test_a_long_training_is_compiled_and_learns_as_one_that_is_not(
    digits_dir, monkeypatch, captures, caplog
):
    monkeypatch.setattr(compiling, "COMPILE_FROM_STEPS", 16)
    options = {"variant": "test_efficientnet", "steps_per_epoch": 8, "optimizer": "adamw"}
    with caplog.at_level(logging.INFO, "trainables"):
        compiled, plain = (
            train(digits_config(digits_dir, **options, lr=1e-3, compile=compile_), digits_dir)
            for compile_ in ("auto", False)
        )
    assert caplog.text.count("Compiled in") == 1
    assert captures == [True, True]
    for mine, theirs in zip(learned(compiled), learned(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-2)


def test_what_cannot_be_captured_continues_step_by_step(
    digits_dir, tmp_path, monkeypatch, captures, caplog
):
    config = digits_config(digits_dir, **EVERYTHING)
    whole = train(config, digits_dir, tmp_path / "whole")
    original = loop._optimize

    def waits(config, model, stepped, optimizer, meter, images, targets):
        original(config, model, stepped, optimizer, meter, images, targets)
        meter.sums.sum().item()

    monkeypatch.setattr(loop, "_optimize", waits)
    rest = train(config, digits_dir, tmp_path / "rest")
    assert captures.count(True) == 1  # of the first training
    assert "without a CUDA graph" in caplog.text
    assert learned(rest) == learned(whole)
    assert train(config, digits_dir)[-1].is_last  # and the process is fit for the next trial


def test_the_host_does_not_wait_within_an_epoch(digits_dir):
    config = digits_config(digits_dir, **{**EVERYTHING, "epochs": 1, "steps_per_epoch": 12})
    steps = 0

    def on_step() -> None:
        nonlocal steps
        steps += 1
        torch.cuda.set_sync_debug_mode("error" if 5 <= steps < 12 else "default")

    try:
        list(loop.fit(config, digits_dir, device=CUDA, on_step=on_step))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps >= 12


@pytest.mark.parametrize("compile_", [False, True])
def test_trials_leave_no_memory_behind(digits_dir, compile_):
    held = []
    for seed in range(6):
        options = {**EVERYTHING, "seed": seed, "compile": compile_}
        train(digits_config(digits_dir, **options), digits_dir)
        gc.collect()
        torch.cuda.empty_cache()
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[-1] == held[1]


def test_a_batch_that_is_too_large_is_out_of_memory_and_smaller_parts_are_not(digits_dir):
    options = {"image_size_px": 224, "batch_size": 1024, "steps_per_epoch": 5, "epochs": 1}
    config = digits_config(digits_dir, **options, variant="efficientnet_b0", lr=1e-3)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(6 * 2**30 / total)
    try:
        with pytest.raises(RuntimeError) as raised:
            train(config, digits_dir)
        assert failure_class.classify(raised.value) == "out_of_memory"
        assert not failure_class.is_process_unusable(raised.value)
        del raised
        worker._release_memory()
        smaller = digits_config(
            digits_dir, **options, variant="efficientnet_b0", lr=1e-3, micro_batch_size=16
        )
        (end,) = train(smaller, digits_dir)
        assert end.is_last
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        worker._release_memory()


def test_a_checkpoint_holds_no_tensor_of_a_device(digits_dir, tmp_path):
    train(digits_config(digits_dir, **EVERYTHING), digits_dir, tmp_path)
    assert {tensor.device for tensor in tensors_of(tmp_path / "epoch_0001").values()} == {CPU}
    _, optimizer, _ = checkpoint.load(tmp_path / "epoch_0001")
    assert all(type(group["lr"]) is float for group in optimizer["param_groups"])
