"""What is compiled, how often, and what happens where it cannot be."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainables.digits_trials import digits_config, learned, train
from trainables.models import build
from trainables.training import compiling, cuda_graph


@pytest.mark.parametrize(
    ("options", "can_replay", "expected"),
    [
        ({"epochs": 100}, True, True),
        ({"epochs": 99}, True, False),
        ({"epochs": 100}, False, False),
        ({"epochs": 100, "deterministic": True}, True, False),
        ({"epochs": 100, "drop_path": 0.1, "variant": "efficientnet_b0"}, True, False),
        ({"epochs": 100, "mixup_alpha": 0.2}, True, False),
        ({"epochs": 100, "cutmix_alpha": 1.0}, True, False),
        ({"epochs": 1, "compile": True}, False, True),
        ({"epochs": 1, "compile": True, "deterministic": True}, True, True),
        ({"epochs": 1000, "compile": False}, True, False),
    ],
)
def test_long_trainings_that_can_be_replayed_are_compiled(
    digits_dir, options, can_replay, expected
):
    config = digits_config(digits_dir, **options)
    assert compiling.should_compile(config, 300, can_replay) is expected


@pytest.fixture
def graphs(monkeypatch) -> Iterator[list[int]]:
    """How many operations each graph has that torch was given to compile."""
    found: list[int] = []
    original = torch.compile

    def backend(graph, _inputs):
        found.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda f, **options: original(f, backend=backend, **options)
    )
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def network(digits_dir: Path, variant: str, **options: Any) -> torch.nn.Module:
    config = digits_config(digits_dir, variant=variant, **options)
    return build.build_model(config, num_classes=10, in_channels=3).train()


def images(count: int, image_size_px: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, image_size_px, image_size_px)


@pytest.mark.parametrize(
    ("variant", "image_size_px"),
    [("cnn3", 32), ("test_efficientnet", 32), ("test_resnet", 32), ("test_vit4", 160)],
)
def test_trials_of_one_network_and_batch_size_share_a_graph(
    digits_dir, graphs, variant, image_size_px
):
    for dropout, seed in ((0.0, 0), (0.1, 1), (0.5, 2)):
        model = network(
            digits_dir, variant, dropout=dropout, seed=seed, image_size_px=image_size_px
        )
        compiling.compiled(model)(images(4, image_size_px)).sum().backward()
        assert all(weight.grad is not None for weight in model.parameters())
    assert len(graphs) == 1


def test_every_batch_size_has_its_own_graph(digits_dir, graphs):
    for batch_size in (4, 6, 8, 4, 6):
        compiling.compiled(network(digits_dir, "cnn3"))(images(batch_size)).sum().backward()
    assert len(graphs) == 3


def test_a_compiled_network_gives_the_logits_of_the_plain_one(digits_dir, graphs):
    model, batch = network(digits_dir, "test_efficientnet").eval(), images(4)
    torch.testing.assert_close(compiling.compiled(model)(batch), model(batch))
    assert len(graphs) == 1


@pytest.fixture
def as_if_replayed(monkeypatch) -> None:
    """Make "auto" compile, as for a long training on a CUDA device."""
    monkeypatch.setattr(compiling, "COMPILE_FROM_STEPS", 1)
    monkeypatch.setattr(cuda_graph, "can_replay", lambda *_: True)
    monkeypatch.setattr(cuda_graph, "Replayed", lambda work, _draws: work)


def test_a_compiled_training_gives_the_same_results(digits_dir, as_if_replayed, graphs):
    config = digits_config(digits_dir, variant="test_efficientnet", epochs=2, lr=0.001)
    compiled = train(config, digits_dir)
    assert graphs
    plain = train(digits_config(digits_dir, **{**config.to_dict(), "compile": False}), digits_dir)
    for mine, theirs in zip(learned(compiled), learned(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_a_model_that_cannot_be_compiled_is_trained_uncompiled(
    digits_dir, as_if_replayed, monkeypatch, caplog
):
    config = digits_config(digits_dir, epochs=1)
    plain = train(digits_config(digits_dir, epochs=1, compile=False), digits_dir)

    def fails(*_, **__):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", fails)
    with caplog.at_level(logging.WARNING, "trainables"):
        rest = train(config, digits_dir)
    assert "Failed to find C compiler" in caplog.text
    assert learned(rest) == learned(plain)
    with pytest.raises(RuntimeError, match="C compiler"):
        train(digits_config(digits_dir, epochs=1, compile=True), digits_dir)


def test_a_batch_too_large_to_compile_is_out_of_memory(digits_dir, as_if_replayed, monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(torch.OutOfMemoryError):
        train(digits_config(digits_dir, epochs=1), digits_dir)


def test_compiling_does_not_change_the_trained_model(digits_dir, graphs):
    model = network(digits_dir, "test_efficientnet")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compiling.compiled_if_possible(model, lambda stepped: stepped(images(4)).sum())
    assert len(graphs) == 1
    assert all(weight.grad is None for weight in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
