"""What a model costs, against a count by hand."""

import pytest

from tests.golden.make import DEFAULTS
from trainables.config import TrainConfig
from trainables.models.cost import model_cost


def test_parameters_and_multiply_accumulates_of_a_small_cnn_are_those_counted_by_hand():
    config = TrainConfig(**{**DEFAULTS.to_dict(), "variant": "cnn3", "image_size_px": 32})
    parameters, macs = model_cost(config, num_classes=10, in_channels=1)
    # 3x3 convolutions without padding, halved after each: 32 -> 30, 15 -> 13, 6 -> 4, 2.
    convolutions = [(1, 32, 30), (32, 64, 13), (64, 128, 4)]
    dense = [(128 * 2 * 2, 512), (512, 10)]
    assert parameters == sum(9 * a * b + b for a, b, _ in convolutions) + sum(
        a * b + b for a, b in dense
    )
    assert macs == sum(9 * a * b * side**2 for a, b, side in convolutions) + sum(
        a * b for a, b in dense
    )


def test_a_model_that_cannot_be_built_is_refused():
    config = TrainConfig(**{**DEFAULTS.to_dict(), "variant": "cnn3", "image_size_px": 8})
    with pytest.raises(ValueError, match="needs images of at least"):
        model_cost(config, num_classes=10, in_channels=1)
