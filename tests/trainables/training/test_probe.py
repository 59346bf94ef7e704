"""What a few steps say of a whole epoch."""

from __future__ import annotations

import pytest

from tests.trainables.digits_trials import digits_config
from trainables.data import dataset
from trainables.training.probe import training_time

TRAIN = 1294  # images of the digits that train beside 144 that validate


@pytest.mark.parametrize(
    ("batch_size", "steps"),
    [(32, TRAIN // 32), (512, 2), (2000, 1)],  # many steps, fewer than are measured, one
)
def test_an_epochs_time_is_that_of_its_steps_validation_and_checkpoint(
    digits_dir, batch_size, steps
):
    config = digits_config(digits_dir, batch_size=batch_size, steps_per_epoch=0, epochs=50)
    found = training_time(config, digits_dir)
    assert len(dataset.open_split(digits_dir, "train")[1]) == 1438
    assert found.step_s > 0
    assert found.epoch_s > steps * found.step_s  # validation and checkpoint are the rest
    assert found.peak_gib > 0


def test_a_shortened_epoch_is_measured_as_such(digits_dir):
    config = digits_config(digits_dir, steps_per_epoch=3, validation_fraction=0.0)
    found = training_time(config, digits_dir)
    assert found.epoch_s > 3 * found.step_s
    assert found.epoch_s < 3 * found.step_s + 5  # the checkpoint of a small network


def test_several_workers_and_frozen_epochs_are_measured_as_one_whole_network(digits_dir):
    config = digits_config(digits_dir, workers=2, epochs=4, freeze_epochs=2)
    assert training_time(config, digits_dir).step_s > 0
