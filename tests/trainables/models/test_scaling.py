"""The compound rule, the names of scaled B0s, and the networks they give."""

import pytest
import timm
import torch

from trainables.models import scaling
from trainables.models.scaling import Scaling, build_scaled_b0, scaled_size_px, scaling_of


def build(scaled: Scaling) -> torch.nn.Module:
    with torch.device("meta"):
        return build_scaled_b0(scaled, num_classes=1000)


def compound(phi: float, **bases: float) -> tuple[float, float, int]:
    """Return depth and width multiplier, and the image size in pixels."""
    scaled = scaling.compound_scaling(phi, **bases)
    return scaled.depth, scaled.width, scaled_size_px(scaled, scaling.BASE_SIZE_PX)


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def official(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(
    ("phi", "depth", "width", "image_size_px"),
    [(0, 1.0, 1.0, 224), (0.5, 1.2**0.5, 1.1**0.5, 240), (1, 1.2, 1.1, 258), (2, 1.44, 1.21, 296)],
)
def test_compound_rule_raises_each_base_to_phi(phi, depth, width, image_size_px):
    assert compound(phi) == (pytest.approx(depth), pytest.approx(width), image_size_px)


def test_compound_rule_takes_other_bases():
    assert compound(2, alpha=1.1, beta=1.2, gamma=1.0) == (
        pytest.approx(1.21),
        pytest.approx(1.44),
        224,
    )


def test_published_bases_about_double_the_compute_per_phi():
    depth, width, _ = compound(1)
    assert depth * width**2 * 1.15**2 == pytest.approx(1.92, abs=0.01)


def test_phi_0_is_b0_and_phi_1_is_b2_layer_by_layer():
    assert shapes(build(scaling.compound_scaling(0))) == shapes(official("efficientnet_b0"))
    assert shapes(build(scaling.compound_scaling(1))) == shapes(official("efficientnet_b2"))


def test_phi_2_has_b3s_blocks_and_channels_but_for_the_head():
    """1.21 and not 1.2 times 1280 rounds to 1552 and not to 1536."""
    ours, theirs = shapes(build(scaling.compound_scaling(2))), shapes(official("efficientnet_b3"))
    differing = {name for name in theirs if ours[name] != theirs[name]}
    assert ours.keys() == theirs.keys()
    assert {name.split(".")[0] for name in differing} == {"conv_head", "bn2", "classifier"}
    assert ours["conv_head.weight"] == (1552, 384, 1, 1)


def test_official_coefficients_as_a_triple_are_the_official_networks():
    for name, triple in {
        "efficientnet_b1": "efficientnet_b0_d1.1_w1_r1",
        "efficientnet_b3": "efficientnet_b0_d1.4_w1.2_r1.3",
        "efficientnet_b5": "efficientnet_b0_d2.2_w1.6_r2",
    }.items():
        assert shapes(build(scaling_of(triple))) == shapes(official(name))


def test_names_give_their_multipliers():
    assert scaling_of("efficientnet_b0_phi1") == Scaling(depth=1.2, width=1.1, resolution=1.15)
    assert scaling_of("efficientnet_b0_phi1.5").depth == pytest.approx(1.2**1.5)
    assert scaling_of("efficientnet_b0_d1.4_w1.2_r1.3") == Scaling(
        depth=1.4, width=1.2, resolution=1.3
    )
    assert scaling_of("efficientnet_b0_depth") == Scaling(depth=4.0)
    assert scaling_of("efficientnet_b0_width") == Scaling(width=2.0)
    assert scaling_of("efficientnet_b0_resolution") == Scaling(resolution=2.0)


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b0",
        "efficientnet_b0_phi",
        "efficientnet_b0_phi-1",
        "efficientnet_b0_phi1_r2",
        "efficientnet_b0_d1_w1",
        "efficientnet_b1_phi1",
        "xefficientnet_b0_phi1",
    ],
)
def test_other_names_are_no_scaling(name):
    assert scaling_of(name) is None


def test_multipliers_out_of_range_are_all_named():
    with pytest.raises(ValueError, match=r"depth multiplier.*got 0.*resolution multiplier.*got 11"):
        scaling_of("efficientnet_b0_d0_w1_r11")
    with pytest.raises(ValueError, match=r"width multiplier must be over 0 and at most 10"):
        compound(30)
    with pytest.raises(ValueError, match="too large"):
        compound(1e6)
    with pytest.raises(ValueError, match="finite"):
        compound(float("nan"))


def test_sizes_are_rounded_to_the_nearest_pixel():
    assert scaled_size_px(Scaling(resolution=1.15), 32) == 37  # 36.8
    assert scaled_size_px(Scaling(resolution=1.3), 8) == 10  # 10.4
    assert scaled_size_px(Scaling(resolution=1.5), 3) == 5  # 4.5: halves go up
    assert scaled_size_px(Scaling(resolution=1.5), 5) == 8  # 7.5
