"""The plain CNNs: published totals, shapes, dropout, initialisation."""

import math

import pytest
import torch
from torch import nn

from tests.trainables.models.test_build import config
from trainables.models.cnns import CNN_SPECS, build_cnn


def build(
    name: str, image_size_px: int = 64, classes: int = 200, channels: int = 3, dropout: float = 0
):
    values = {"image_size_px": image_size_px, "dropout": dropout}
    return build_cnn(config(name, **values), num_classes=classes, in_channels=channels)


def on_meta(name: str, **options):
    with torch.device("meta"):
        return build(name, **options)


def running_statistics(model: nn.Module) -> int:
    return sum(b.numel() for n, b in model.named_buffers() if "running" in n)


@pytest.mark.parametrize(
    ("name", "total"),
    [("cnn2", 13_070_472), ("cnn3", 2_555_656), ("cnn6", 140_382_728), ("cnn3_bn", 8_866_376)],
)
def test_tinyimagenet_baselines_totals_are_the_published_ones(name, total):
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) + running_statistics(model) == total


def test_cnn9_has_the_published_trainable_parameters_in_nine_layers():
    model = on_meta("cnn9", image_size_px=32, classes=100)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(p.numel() for p in model.parameters()) == 13_870_484
    assert len(layers) == 9
    assert running_statistics(model) == 0


def test_layers_of_cnn3_have_the_parameters_of_figure_6():
    parameters = [p.numel() for p in on_meta("cnn3").parameters()]
    layers = [a + b for a, b in zip(parameters[::2], parameters[1::2], strict=True)]
    assert layers == [896, 18_496, 73_856, 2_359_808, 102_600]


@pytest.mark.parametrize(
    ("name", "map_shape"),
    [
        ("cnn2", (64, 14, 14)),
        ("cnn3", (128, 6, 6)),
        ("cnn6", (512, 8, 8)),
        ("cnn3_bn", (256, 8, 8)),
        ("cnn9", (512, 8, 8)),
    ],
)
def test_last_feature_maps_have_the_published_shape_at_64_px(name, map_shape):
    model = on_meta(name).eval()
    images = torch.empty(2, 3, 64, 64, device="meta")
    assert tuple(model.forward_features(images).shape) == (2, *map_shape)
    assert tuple(model(images).shape) == (2, 200)


@pytest.mark.parametrize("name", sorted(CNN_SPECS))
def test_smallest_size_works_and_one_less_is_refused(name):
    smallest_px = CNN_SPECS[name].smallest_size_px()
    model = on_meta(name, image_size_px=smallest_px, channels=1, classes=10).eval()
    images = torch.empty(2, 1, smallest_px, smallest_px, device="meta")
    assert tuple(model(images).shape) == (2, 10)
    with pytest.raises(ValueError, match=rf"at least {smallest_px} x .* got {smallest_px - 1} px"):
        build(name, image_size_px=smallest_px - 1)


def test_smallest_sizes_are_10_for_cnn2_22_for_cnn3_and_8_for_padded_ones():
    assert {name: spec.smallest_size_px() for name, spec in CNN_SPECS.items()} == {
        "cnn2": 10,
        "cnn3": 22,
        "cnn6": 8,
        "cnn3_bn": 8,
        "cnn9": 8,
    }


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("cnn2", [0.5]),
        ("cnn3", [0.5]),
        ("cnn6", [0.5]),
        ("cnn3_bn", [0.5]),
        ("cnn9", [0.2, 0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_dropout_is_where_the_studies_have_it(name, rates):
    model = on_meta(name, dropout=0.5)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == pytest.approx(rates)
    assert isinstance(model.hidden[-1], nn.Dropout)  # the last thing before the classifier


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    model = build("cnn3", image_size_px=22, classes=10, dropout=0.5)
    images = torch.randn(4, 3, 22, 22)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_a_step_down_the_gradient_lowers_the_loss():
    torch.manual_seed(0)
    model = build("cnn3_bn", image_size_px=8, classes=3, channels=1)
    images, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    before = nn.functional.cross_entropy(model(images), labels)
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(1e-3 * parameter.grad)
    assert nn.functional.cross_entropy(model(images), labels) < before


def test_weights_start_glorot_uniform_with_zero_biases():
    torch.manual_seed(0)
    model = build("cnn3_bn", image_size_px=16)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert 0.99 * bound < module.weight.abs().max() <= bound
            assert module.bias.abs().max() == 0
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean.abs().max() == 0
            assert module.running_var.unique().tolist() == [1]
            assert module.num_batches_tracked == 0


def test_same_seed_gives_the_same_weights():
    torch.manual_seed(3)
    first = build("cnn3", image_size_px=22).state_dict()
    torch.manual_seed(3)
    second = build("cnn3", image_size_px=22).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
