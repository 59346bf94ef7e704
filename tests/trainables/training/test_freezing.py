"""The frozen backbone and layer-wise learning rates: who moves when, and what a restart finds."""

import pytest
import torch
from torch import nn

from tests.trainables.digits_trials import (
    CPU,
    assert_same_tensors,
    digits_config,
    learned,
    train,
)
from trainables.config import TrainConfig, choices
from trainables.data import batches
from trainables.models import build
from trainables.training import checkpoint, freezing, loop, optim

FROZEN = {"variant": "cnn3_bn", "epochs": 4, "freeze_epochs": 2, "weight_decay": 0.01}


def on_meta(config: TrainConfig) -> nn.Module:
    with torch.device("meta"):
        return build.build_model(
            config,
            num_classes=10,
            in_channels=1,
            read_weights=False,
        )


def weights_after(folder, epoch: int):
    return checkpoint.load(folder / f"epoch_{epoch:04d}")[0]["model"]


# --- freezing ------------------------------------------------------------------------------------


def test_only_the_classifier_changes_until_the_backbone_is_unfrozen(digits_dir, tmp_path):
    config = digits_config(digits_dir, **FROZEN, l2=1e-3, dropout=0.2)
    epochs = loop.fit(config, digits_dir, checkpoints=tmp_path, device=CPU, keep_all=True)
    assert len(list(epochs)) == 4
    torch.manual_seed(batches.derived_seed(config.seed, "model"))
    start = build.build_model(config, num_classes=10, in_channels=1).state_dict()
    for epoch, before in enumerate([start, *(weights_after(tmp_path, n) for n in range(3))]):
        after = weights_after(tmp_path, epoch)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        if epoch < 2:  # neither weights nor batch-norm statistics, nor their count
            assert moved == {"classifier.weight", "classifier.bias"}
        else:
            assert moved == set(after)


@pytest.mark.parametrize(
    ("optimizer", "layer_decay", "resumed_after"),
    [
        *((optimizer, 0.5, 1) for optimizer in choices("optimizer")),
        ("sgd", 1.0, 0),
        ("lamb", 1.0, 1),
        ("adamw", 1.0, 2),
    ],
)
def test_a_restart_before_at_or_after_unfreezing_equals_an_uninterrupted_training(
    digits_dir, tmp_path, optimizer, layer_decay, resumed_after
):
    config = digits_config(
        digits_dir,
        **FROZEN,
        optimizer=optimizer,
        lr=0.003,
        layer_decay=layer_decay,
        steps_per_epoch=1,
        ema_decay=0.5,
    )
    epochs = loop.fit(config, digits_dir, checkpoints=tmp_path / "one", device=CPU, keep_all=True)
    straight = list(epochs)
    resumed = loop.fit(
        config,
        digits_dir,
        checkpoints=tmp_path / "two",
        resume_from=tmp_path / "one" / f"epoch_{resumed_after:04d}",
        device=CPU,
    )
    assert learned(list(resumed)) == learned(straight[resumed_after + 1 :])
    assert_same_tensors(tmp_path / "one" / "epoch_0003", tmp_path / "two" / "epoch_0003")


def test_freezing_for_no_epoch_changes_nothing(digits_dir):
    plain = digits_config(digits_dir, variant="cnn3_bn")
    assert freezing.backbone(on_meta(plain))
    assert all(weight.requires_grad for weight in on_meta(plain).parameters())


@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("cnn3", ["classifier.weight", "classifier.bias"]),
        ("efficientnet_b0", ["classifier.weight", "classifier.bias"]),
        ("efficientnet_b0_phi0.5", ["classifier.weight", "classifier.bias"]),
        ("resnet50", ["fc.weight", "fc.bias"]),
        ("resnet50_mlp1024", ["fc.0.weight", "fc.0.bias", "fc.3.weight", "fc.3.bias"]),
        ("vgg16", ["head.fc.weight", "head.fc.bias"]),
        ("vit_tiny_patch16_224", ["head.weight", "head.bias"]),
    ],
)
def test_the_backbone_is_all_but_the_classifier(digits_dir, variant, head):
    model = on_meta(digits_config(digits_dir, variant=variant))
    rest = {id(weight) for weight in freezing.backbone(model)}
    assert [name for name, weight in model.named_parameters() if id(weight) not in rest] == head


def test_a_network_without_a_named_classifier_is_refused():
    with pytest.raises(ValueError, match=r"`freeze_epochs` trains the classifier alone .* Linear "):
        freezing.backbone(nn.Linear(2, 3))


def test_lamb_counts_steps_from_when_the_backbone_is_unfrozen(digits_dir, tmp_path):
    config = digits_config(digits_dir, **FROZEN, optimizer="lamb", lr=0.003)
    train(config, digits_dir, tmp_path)
    groups = checkpoint.load(tmp_path / "epoch_0003")[1]["param_groups"]
    # Two steps an epoch; backbone and classifier, each with and without decay.
    assert sorted((float(group["step"]), len(group["params"])) for group in groups) == [
        (4.0, 4),
        (4.0, 12),
        (8.0, 1),
        (8.0, 1),
    ]


# --- layer-wise learning rates -------------------------------------------------------------------


def scales(model: nn.Module, config: TrainConfig) -> dict[str, float]:
    """The factor on the learning rate of each parameter."""
    optimizer = optim.build_optimizer(model, config)
    optim.set_learning_rate(optimizer, 0.1)
    rates = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
    return {name: rates[id(weight)] / 0.1 for name, weight in model.named_parameters()}


def test_every_layer_of_a_cnn_learns_slower_than_the_next(digits_dir):
    config = digits_config(digits_dir, variant="cnn3_bn", layer_decay=0.5)
    found = scales(on_meta(config), config)
    expected = {"features.0": 1 / 16, "features.1": 1 / 16, "features.4": 1 / 8}
    expected |= {"features.5": 1 / 8, "features.8": 1 / 4, "features.9": 1 / 4}
    expected |= {"hidden.0": 1 / 2, "hidden.1": 1 / 2, "classifier": 1.0}
    assert {name.rpartition(".")[0]: scale for name, scale in found.items()} == expected


def test_layers_of_timm_models_are_those_that_timm_defines(digits_dir):
    config = digits_config(digits_dir, variant="resnet50_mlp1024", layer_decay=0.8)
    found = scales(on_meta(config), config)
    # The stem, 3 + 4 + 6 + 3 blocks, and the head.
    assert found["fc.0.weight"] == found["fc.3.bias"] == 1.0
    assert found["layer4.2.conv3.weight"] == pytest.approx(0.8)
    assert found["layer1.0.conv1.weight"] == pytest.approx(0.8**16)
    assert found["conv1.weight"] == pytest.approx(0.8**17)


@pytest.mark.parametrize("variant", ["cnn3_bn", "efficientnet_b0", "vgg16_bn", "inception_v3"])
@pytest.mark.parametrize("freeze_epochs", [0, 1])
def test_with_layer_decay_only_matrices_decay_and_every_weight_is_optimized(
    digits_dir, variant, freeze_epochs
):
    config = digits_config(
        digits_dir,
        variant=variant,
        image_size_px=96,
        layer_decay=0.7,
        freeze_epochs=freeze_epochs,
        weight_decay=0.25,
        optimizer="lamb",
    )
    model = on_meta(config)
    groups = optim.build_optimizer(model, config).param_groups
    listed = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(listed) == sorted(map(id, model.parameters()))
    for group in groups:
        for weight in group["params"]:
            assert group["weight_decay"] == (0.25 if weight.ndim > 1 else 0.0)
            assert group["always_adapt"] == (weight.ndim > 1)
    assert max(group["lr_scale"] for group in groups) == 1.0


def test_a_layer_decay_of_1_changes_nothing(digits_dir):
    config = digits_config(digits_dir)
    assert set(scales(on_meta(config), config).values()) == {1.0}


def test_layer_decay_is_refused_where_layers_have_no_order(digits_dir):
    config = digits_config(digits_dir, layer_decay=0.5)
    with pytest.raises(
        ValueError, match=r"`layer_decay` needs the order .* Linear does not define"
    ):
        optim.build_optimizer(nn.Linear(2, 3), config)
