"""Variants: names, image sizes, counts, shapes, regularisation, and mistakes."""

import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from trainables.config import TrainConfig
from trainables.models.build import (
    VARIANTS,
    build_model,
    check_variant,
    input_size_px,
    normalisation,
    weights_name,
)
from trainables.models.cost import count_multiply_accumulates, count_parameters, count_published

FAMILY = [f"efficientnet_b{n}" for n in range(8)]


def config(variant: str, **values) -> TrainConfig:
    return TrainConfig(
        **{
            "variant": variant,
            "dataset": "digits",
            "dataset_fingerprint": "0",
            "epochs": 1,
            "seed": 0,
            "image_size_px": 32,
            **values,
        }
    )


def build(variant: str, *, image_size_px: int = 32, classes: int = 10, channels: int = 3, **values):
    return build_model(
        config(variant, image_size_px=image_size_px, **values),
        num_classes=classes,
        in_channels=channels,
        read_weights=False,
    )


def on_meta(variant: str, **options):
    """Build without memory: enough for counts and shapes, and quick."""
    with torch.device("meta"):
        return build(variant, **options)


# Counts.


@pytest.mark.parametrize("variant", FAMILY)
@pytest.mark.parametrize("weights", ["none", "imagenet"])
def test_family_has_the_published_parameters(variant, weights):
    """torchvision publishes the counts of its own implementation, timm builds them."""
    published = torchvision.models.get_model_weights(variant).IMAGENET1K_V1.meta["num_params"]
    model = on_meta(variant, classes=1000, weights=weights)
    with torch.device("meta"):
        assert count_parameters(timm.create_model(variant)) == published
    assert count_parameters(model) == published


@pytest.mark.parametrize(
    ("variant", "image_size_px", "classes", "total"),
    [
        ("cnn2", 64, 200, 13_070_472),
        ("cnn3", 64, 200, 2_555_656),
        ("cnn6", 64, 200, 140_382_728),
        ("cnn3_bn", 64, 200, 8_866_376),
        ("resnet50_mlp1024", 64, 200, 25_890_888 - 26_560),  # Keras has biases in its convolutions
        ("efficientnet_b0", 224, 100, 4_177_664),  # `cifar100_transfer`'s transfer model
        ("cnn9", 32, 100, 13_870_484),
    ],
)
def test_published_totals_of_the_studies(variant, image_size_px, classes, total):
    assert count_published(on_meta(variant, image_size_px=image_size_px, classes=classes)) == total


def test_frozen_parameters_are_published_but_not_trainable():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    assert count_parameters(model) == 6 + 6
    assert count_published(model) == 9 + 6 + 6


@pytest.mark.parametrize(
    ("variant", "image_size_px", "billion"),
    # timm's and the paper's tables, which agree with torchvision's `_ops` on these.
    [("efficientnet_b0", 224, 0.39), ("efficientnet_b2", 260, 0.99), ("efficientnet_b3", 300, 1.8)],
)
def test_multiply_accumulates_are_the_published_ones(variant, image_size_px, billion):
    model = on_meta(variant, classes=1000)
    count = count_multiply_accumulates(model, image_size_px=image_size_px, in_channels=3)
    assert count / 1e9 == pytest.approx(billion, rel=0.06)


def test_multiply_accumulates_of_b0_equal_torchvisions_own_count():
    published = torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1.meta["_ops"]
    model = on_meta("efficientnet_b0", classes=1000)
    count = count_multiply_accumulates(model, image_size_px=224, in_channels=3)
    assert count / 1e9 == pytest.approx(published, abs=0.001)


def test_multiply_accumulates_of_cnn2_equal_a_hand_count():
    """conv 62^2 x 32 x 27, conv 29^2 x 64 x 288, 12544 x 1024, 1024 x 200."""
    by_hand = 62**2 * 32 * 27 + 29**2 * 64 * 288 + 12_544 * 1024 + 1024 * 200
    model = on_meta("cnn2", image_size_px=64, classes=200)
    assert count_multiply_accumulates(model, image_size_px=64, in_channels=3) == by_hand


def test_counting_changes_no_weights_and_no_modes():
    model = build("efficientnet_b0").train()
    model.blocks[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_multiply_accumulates(model, image_size_px=32, in_channels=3)
    assert model.training
    assert model.blocks[1].training
    assert not any(module.training for module in model.blocks[0].modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Names.


def test_built_in_names_are_ordered_by_compute():
    counts = []
    for name in VARIANTS:
        model = on_meta(name, image_size_px=64, classes=200)
        image_size_px = input_size_px(name, 64, "native")
        counts.append(count_multiply_accumulates(model, image_size_px=image_size_px, in_channels=3))
    assert counts == sorted(counts)
    assert set(FAMILY) | {
        "resnet50",
        "resnet50_mlp1024",
        "cnn2",
        "cnn3",
        "cnn6",
        "cnn3_bn",
        "cnn9",
    } < set(VARIANTS)


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b7",
        "cnn9",
        "efficientnet_b0_phi1.5",
        "efficientnet_b0_d1.4_w1.2_r1.3",
        "resnet18",
        "efficientnet_b0.ra_in1k",
    ],
)
def test_known_names_are_variants(name):
    check_variant(config(name, image_size_px=64))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("efficientnet_b9", "Unknown variant 'efficientnet_b9'. Did you mean 'efficientnet_b"),
        ("cn2", "Unknown variant 'cn2'. Did you mean 'cnn2'? Known: cnn2, cnn3, "),
        ("efficientnet_b0.nope", "Unknown variant 'efficientnet_b0.nope'"),
        ("tf_efficientnet_b0_ns", "Unknown variant"),  # renamed by timm
        ("resnet-18", "Did you mean 'resnet18'?"),
        ("efficientnet_b0_phi99", "scales too far. The depth multiplier"),
        ("hf-hub:timm/resnet18.a1_in1k", "Unknown variant"),
        ("", "Unknown variant ''"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_name(name, sentence):
    with pytest.raises(ValueError, match=r"variant|scales") as caught:
        check_variant(config(name, image_size_px=64))
    assert sentence in str(caught.value)
    with pytest.raises(ValueError, match=r"variant|scales"):
        build(name)


# Shapes, at every image size that a dataset or an upscaling gives.


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("image_size_px", "channels"), [(32, 1), (64, 3)])
def test_every_variant_takes_grey_and_colour(variant, image_size_px, channels):
    image_size_px = input_size_px(variant, image_size_px, "native")
    model = on_meta(variant, image_size_px=image_size_px, channels=channels, classes=7).eval()
    images = torch.empty(2, channels, image_size_px, image_size_px, device="meta")
    assert tuple(model(images).shape) == (2, 7)


@pytest.mark.parametrize("variant", ["cnn3_bn", "cnn9", "efficientnet_b0", "resnet50"])
def test_padded_variants_take_digits_at_their_own_8_px(variant):
    check_variant(config(variant, image_size_px=8))
    model = on_meta(variant, image_size_px=8, channels=1).eval()
    assert tuple(model(torch.empty(2, 1, 8, 8, device="meta")).shape) == (2, 10)


@pytest.mark.parametrize("variant", ["cnn2", "efficientnet_b0", "resnet50"])
def test_forward_and_backward_reach_every_parameter(variant):
    torch.manual_seed(0)
    model = build(variant, channels=1)
    images = torch.randn(4, 1, 32, 32)
    logits = model(images)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    assert logits.shape == (4, 10)
    assert torch.isfinite(logits).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_resnet50_is_the_one_of_timm():
    ours, timms = on_meta("resnet50", classes=1000), timm.create_model("resnet50")
    assert count_parameters(ours) == 25_557_032
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in timms.state_dict().items()
    }


def test_resnet50_mlp1024_has_1024_hidden_units_with_relu_and_dropout():
    head = on_meta("resnet50_mlp1024", classes=200, dropout=0.3).fc
    assert [type(module) for module in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (head[0].in_features, head[0].out_features, head[3].out_features) == (2048, 1024, 200)
    assert head[2].p == 0.3


def test_pretrained_models_have_tensorflows_padding_and_epsilon():
    scratch, pinned = on_meta("efficientnet_b0"), on_meta("efficientnet_b0", weights="imagenet")
    assert (scratch.bn1.eps, pinned.bn1.eps) == (1e-5, 1e-3)
    assert type(pinned.conv_stem).__name__ == "Conv2dSame"
    assert scratch.state_dict().keys() == pinned.state_dict().keys()


# Regularisation and stem.


@pytest.mark.parametrize("values", [{"dropout": 0.5}, {"drop_path": 0.5}])
@pytest.mark.parametrize("variant", ["efficientnet_b0", "efficientnet_b0_phi0.5", "resnet50"])
def test_dropout_and_drop_path_act_in_training_alone(variant, values):
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)
    model = build(variant, **values).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's ResNet starts with silent residual branches
    assert not torch.equal(model(images), model(images))
    plain = build(variant).train()
    assert torch.equal(plain(images), plain(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        ("efficientnet_b0", "none"),
        ("efficientnet_b0", "imagenet"),
        ("efficientnet_b0_width", "none"),
        ("tf_efficientnetv2_b0", "none"),
    ],
)
def test_stem_stride_1_doubles_the_size_of_the_feature_maps(variant, weights):
    images = torch.empty(1, 3, 64, 64, device="meta")
    stock = on_meta(variant, weights=weights).eval()
    reduced = on_meta(variant, weights=weights, stem_stride=1).eval()
    assert stock.forward_features(images).shape[2:] == (2, 2)
    assert reduced.forward_features(images).shape[2:] == (4, 4)
    assert count_parameters(stock) == count_parameters(reduced)


def test_timm_models_take_the_image_size_and_get_no_unknown_option_that_is_0():
    images = torch.empty(1, 3, 64, 64, device="meta")
    fixed = on_meta("vit_tiny_patch16_224", image_size_px=64).eval()  # of one fixed image size
    assert fixed(images).shape == (1, 10)
    plain = on_meta("vgg11", image_size_px=64).eval()  # takes no drop_path_rate
    assert plain(images).shape == (1, 10)
    with pytest.raises(ValueError, match=r"'vgg11' takes no `drop_path`; got 0.2"):
        on_meta("vgg11", image_size_px=64, drop_path=0.2)
    with pytest.raises(ValueError, match="takes no `drop_path`") as caught:
        check_variant(config("vgg11", image_size_px=64, drop_path=0.2))
    assert str(caught.value).endswith("Set it to 0 for this variant.")  # not: choose another size


# Mistakes.


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ValueError, match="at least 10 x 10 px") as caught:
        check_variant(
            config("cnn2", image_size_px=8, stem_stride=1, drop_path=0.1, weights="imagenet")
        )
    text = str(caught.value)
    assert "Set the image size to 10 or more." in text
    assert "`drop_path` skips residual blocks, and 'cnn2' has none" in text
    assert "Only EfficientNets take `stem_stride`" in text
    assert "There are no ImageNet weights for 'cnn2'" in text


def test_building_refuses_what_checking_refuses():
    with pytest.raises(ValueError, match="at least 22 x 22 px"):
        build("cnn3", image_size_px=8)
    with pytest.raises(ValueError, match="stem_stride"):
        build("resnet50", stem_stride=1)
    with pytest.raises(ValueError, match=r"\.safetensors file"):
        build("cnn3", weights="weights.pth")


def test_a_timm_model_too_deep_for_the_size_is_refused_before_training():
    check_variant(config("resnet18", image_size_px=32))
    with pytest.raises(ValueError, match=r"'inception_v3' cannot be built for 32 px.*299 px"):
        check_variant(config("inception_v3", image_size_px=32))


@pytest.mark.parametrize(
    ("variant", "least_px"), [("vgg16", 32), ("vgg16_bn", 32), ("inception_v3", 75)]
)
def test_a_size_that_is_refused_is_reported_with_the_smallest_one(variant, least_px):
    """Backbones of `tinyimagenet_backbones`: VGG takes 64 px images, Inception does not."""
    check_variant(config(variant, image_size_px=least_px))
    with pytest.raises(ValueError, match=f"the smallest that it takes {least_px} px"):
        check_variant(config(variant, image_size_px=least_px - 1))
    model = on_meta(variant, image_size_px=least_px, channels=1).eval()
    assert model(torch.empty(2, 1, least_px, least_px, device="meta")).shape == (2, 10)
    assert count_multiply_accumulates(model, image_size_px=least_px, in_channels=1) > 10**8


def test_totals_of_vgg16_and_inception_v3_are_those_of_torchvision():
    for variant, published in (
        ("vgg16", torchvision.models.VGG16_Weights.IMAGENET1K_V1),
        ("vgg16_bn", torchvision.models.VGG16_BN_Weights.IMAGENET1K_V1),
    ):
        model = on_meta(variant, image_size_px=224, classes=1000)
        assert count_parameters(model) == published.meta["num_params"]
    # torchvision's count has the auxiliary classifier, which is built for no trial here.
    with torch.device("meta"):
        whole = timm.create_model("inception_v3", aux_logits=True)
    published = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1
    assert count_parameters(whole) == published.meta["num_params"]
    auxiliary = count_parameters(whole.AuxLogits)
    alone = on_meta("inception_v3", image_size_px=299, classes=1000)
    assert count_parameters(alone) == count_parameters(whole) - auxiliary


def test_a_weights_path_that_does_not_exist_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="There is no weights file at"):
        check_variant(config("cnn3", weights=str(tmp_path / "none.safetensors")))


# Image sizes.


def test_paper_sizes_are_the_published_ones():
    sizes_px = [input_size_px(name, 32, "paper") for name in FAMILY]
    assert sizes_px == [224, 240, 260, 300, 380, 456, 528, 600]
    assert input_size_px("resnet50", 32, "paper") == 224
    assert input_size_px("cnn6", 32, "paper") == 64
    assert input_size_px("cnn9", 64, "paper") == 32
    assert input_size_px("efficientnet_b0_phi1", 32, "paper") == 258
    assert input_size_px("efficientnet_b0_depth", 32, "paper") == 224
    assert input_size_px("inception_v3", 32, "paper") == 299


def test_native_size_is_the_datasets_times_the_resolution_multiplier():
    assert input_size_px("efficientnet_b7", 64, "native") == 64
    assert input_size_px("cnn2", 8, "native") == 8
    assert input_size_px("efficientnet_b0_resolution", 32, "native") == 64
    assert input_size_px("efficientnet_b0_d1.4_w1.2_r1.3", 32, "native") == 42


def test_an_image_size_in_pixels_is_used_as_given():
    assert input_size_px("efficientnet_b3", 64, 96) == 96
    assert input_size_px("efficientnet_b0_resolution", 32, 96) == 96


@pytest.mark.parametrize("choice", ["papers", 0, -8, True])
def test_other_choices_of_size_are_refused(choice):
    with pytest.raises(ValueError, match="'native', 'paper' or a positive number"):
        input_size_px("cnn2", 32, choice)


# Normalisation.


def test_from_scratch_is_normalised_with_the_datasets_statistics():
    assert normalisation(config("efficientnet_b0"), [0.1, 0.2, 0.3], [1, 2, 3]) == (
        (0.1, 0.2, 0.3),
        (1, 2, 3),
    )


def test_pretrained_is_normalised_with_the_weights_statistics():
    mean, std = normalisation(config("efficientnet_b6", weights="imagenet"), [0.5] * 3, [1] * 3)
    assert mean == (0.485, 0.456, 0.406)
    assert std == (0.229, 0.224, 0.225)
    other = config("efficientnet_b0.ra4_e3600_r224_in1k", weights="imagenet")
    assert normalisation(other, [0.1] * 3, [1] * 3) == ((0.5,) * 3, (0.5,) * 3)


def test_grey_images_get_the_average_of_the_weights_statistics():
    mean, std = normalisation(config("efficientnet_b0", weights="imagenet"), [0.3], [0.4])
    assert mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)
    assert std == (pytest.approx((0.229 + 0.224 + 0.225) / 3),)


def test_weights_without_published_statistics_use_the_datasets():
    own = config("cnn3", weights="own.safetensors")
    assert normalisation(own, [0.3], [0.4]) == ((0.3,), (0.4,))


def test_one_recipe_of_weights_exists_for_the_whole_family():
    names = [weights_name(name) for name in FAMILY]
    assert names == [f"tf_efficientnet_b{n}.aa_in1k" for n in range(8)]
    assert set(names) <= set(timm.list_pretrained())
    assert weights_name("resnet50") in timm.list_pretrained()
    assert weights_name("efficientnet_b0_phi1") is None
    assert weights_name("efficientnet_b0.ra_in1k") == "efficientnet_b0.ra_in1k"


def test_built_in_names_are_checked_without_torch_and_timm():
    """Importing them costs seconds."""
    code = (
        "import sys; from trainables.config import TrainConfig;"
        "from trainables.models import build as models;"
        "models.check_variant(TrainConfig(variant='efficientnet_b3', dataset='d',"
        " dataset_fingerprint='f', epochs=1, seed=0, image_size_px=64));"
        "assert models.input_size_px('efficientnet_b3', 64, 'paper') == 300;"
        "assert not {'torch', 'timm'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
