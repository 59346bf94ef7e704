"""Sums over an epoch: top-1, top-5, soft targets, and nothing lost on the way."""

import pytest
import torch

from trainables.training.meter import EpochMeter

CPU = torch.device("cpu")


def read(logits, labels, loss=0.0):
    meter = EpochMeter(CPU)
    meter.add(torch.tensor(loss), torch.tensor(logits), torch.tensor(labels))
    return meter.read()


def test_top1_and_top5_count_what_is_among_the_first_one_and_five():
    ranked = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    loss, top1, top5, images = read([ranked] * 4, [0, 1, 4, 5], loss=8.0)
    assert (loss, top1, top5, images) == (2.0, 0.25, 0.75, 4)


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_with_five_classes_or_fewer_every_image_is_in_the_top_five(classes):
    logits = torch.arange(classes, dtype=torch.float32).repeat(classes, 1).tolist()
    _, top1, top5, _ = read(logits, list(range(classes)))
    assert top1 == pytest.approx(1 / classes)
    assert top5 == 1.0


def test_soft_targets_hit_with_either_label():
    logits = [[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 3
    targets = [
        [0.3, 0.0, 0.0, 0.0, 0.0, 0.7],  # the smaller share is ranked first
        [0.0, 0.0, 0.0, 0.0, 1.0, 0.0],  # among five
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],  # not among five
    ]
    assert read(logits, targets)[1:] == (1 / 3, 2 / 3, 3)


def test_batches_of_different_sizes_are_weighted_by_their_images():
    meter = EpochMeter(CPU)
    meter.add(torch.tensor(3.0), torch.eye(6)[:3], torch.tensor([0, 1, 2]))
    meter.add(torch.tensor(5.0), torch.eye(6)[:1], torch.tensor([5]))
    loss, top1, _, images = meter.read()
    assert (loss, top1, images) == (2.0, 0.75, 4)


def test_many_small_losses_are_summed_exactly():
    meter = EpochMeter(CPU)
    logits, labels = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    meter.add(torch.tensor(1e8), logits, labels)
    for _ in range(1000):  # each is below float32's resolution at 1e8
        meter.add(torch.tensor(0.5), logits, labels)
    assert meter.read()[0] * 1001 == pytest.approx(1e8 + 500, abs=1e-3)


def test_an_empty_meter_reads_zeros():
    assert EpochMeter(CPU).read() == (0.0, 0.0, 0.0, 0)


def test_a_loss_that_is_not_finite_stays_visible():
    assert read([[0.0, 1.0]], [0], loss=float("nan"))[0] != 0.0
    assert read([[0.0, 1.0]], [0], loss=float("inf"))[0] == float("inf")


def test_gradients_are_not_kept():
    meter = EpochMeter(CPU)
    logits = torch.zeros(2, 3, requires_grad=True)
    meter.add(logits.sum(), logits, torch.tensor([0, 1]))
    assert not meter.sums.requires_grad
