"""Optimizers against hand computations, schedules at known epochs, plateau and early stopping."""

import math

import pytest
import timm.optim
import torch
from torch import nn

from tests.golden.make import DEFAULTS
from trainables.config import TrainConfig
from trainables.training.optim import Plateau, build_optimizer, learning_rate, set_learning_rate

GRADIENTS = [[0.5, -1.0], [-0.25, 2.0]]
START = [1.0, -2.0]


def config(**values) -> TrainConfig:
    return TrainConfig(**{**DEFAULTS.to_dict(), **values})


class Tiny(nn.Module):
    """One weight matrix of 1 x 2, which is decayed, and a bias of 2, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([START], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(START, dtype=torch.float64))


def two_steps(**values) -> tuple[list[float], list[float]]:
    """Weight and bias after two steps with `GRADIENTS` on both."""
    model = Tiny()
    optimizer = build_optimizer(model, config(**values))
    for gradient in GRADIENTS:
        model.weight.grad = torch.tensor([gradient], dtype=torch.float64)
        model.bias.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return model.weight.detach()[0].tolist(), model.bias.detach().tolist()


def by_hand(step, decay: float = 0.0) -> list[float]:
    """Each number's way through two steps of `step(t, w, g, state) -> w`, g decayed as L2."""
    result = []
    for start, gradients in zip(START, zip(*GRADIENTS, strict=True), strict=True):
        w, state = start, {}
        for t, g in enumerate(gradients, start=1):
            w = step(t, w, g + decay * w, state)
        result.append(w)
    return result


def test_sgd_adds_up_momentum():
    def step(t, w, g, state):
        state["v"] = g if t == 1 else 0.8 * state["v"] + g
        return w - 0.1 * state["v"]

    weight, bias = two_steps(optimizer="sgd", lr=0.1, momentum=0.8)
    assert weight == pytest.approx(by_hand(step))
    assert bias == pytest.approx(by_hand(step))


def test_nesterov_looks_ahead_and_sgd_does_not():
    def step(t, w, g, state):
        state["v"] = g if t == 1 else 0.8 * state["v"] + g
        return w - 0.1 * (g + 0.8 * state["v"])

    weight, _ = two_steps(optimizer="nesterov", lr=0.1, momentum=0.8)
    assert weight == pytest.approx(by_hand(step))
    assert weight != pytest.approx(two_steps(optimizer="sgd", lr=0.1, momentum=0.8)[0], rel=1e-3)


def test_without_momentum_nesterov_is_plain_gradient_descent():
    weight, _ = two_steps(optimizer="nesterov", lr=0.1, momentum=0.0)
    assert weight == pytest.approx(by_hand(lambda t, w, g, state: w - 0.1 * g))


def test_rmsprop_uses_its_alpha_epsilon_and_momentum():
    def step(t, w, g, state):
        state["s"] = 0.7 * state.get("s", 0.0) + 0.3 * g * g
        state["v"] = 0.6 * state.get("v", 0.0) + g / (math.sqrt(state["s"]) + 0.01)
        return w - 0.1 * state["v"]

    weight, _ = two_steps(
        optimizer="rmsprop", lr=0.1, momentum=0.6, rmsprop_alpha=0.7, epsilon=0.01
    )
    assert weight == pytest.approx(by_hand(step))


def adam_update(t, g, state):
    """beta1 0.8, beta2 0.95, epsilon 0.001."""
    state["m"] = 0.8 * state.get("m", 0.0) + 0.2 * g
    state["s"] = 0.95 * state.get("s", 0.0) + 0.05 * g * g
    return (state["m"] / (1 - 0.8**t)) / (math.sqrt(state["s"] / (1 - 0.95**t)) + 0.001)


ADAM = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "epsilon": 0.001}


def test_adam_decays_through_the_gradient_and_adamw_beside_it():
    def adam(t, w, g, state):
        return w - 0.1 * adam_update(t, g, state)

    def adamw(t, w, g, state):
        return w * (1 - 0.1 * 0.3) - 0.1 * adam_update(t, g, state)

    weight, bias = two_steps(optimizer="adam", weight_decay=0.3, **ADAM)
    assert weight == pytest.approx(by_hand(adam, decay=0.3))
    assert bias == pytest.approx(by_hand(adam))
    weight, bias = two_steps(optimizer="adamw", weight_decay=0.3, **ADAM)
    assert weight == pytest.approx(by_hand(adamw))
    assert bias == pytest.approx(by_hand(adam))


def test_radam_starts_without_the_adaptive_part():
    # Liu et al., arXiv 1908.03265, algorithm 2: with beta2 = 0.95 rho_t is at most 4 in both
    # steps, so the update is the bias-corrected momentum alone.
    def step(t, w, g, state):
        state["m"] = 0.8 * state.get("m", 0.0) + 0.2 * g
        return w - 0.1 * state["m"] / (1 - 0.8**t)

    weight, _ = two_steps(optimizer="radam", **ADAM)
    assert weight == pytest.approx(by_hand(step))


def lamb_by_hand(decay: float) -> list[float]:
    """You et al., arXiv 1904.00962, algorithm 2: Adam's step scaled to the layer's norm."""
    w, states = list(START), [{}, {}]
    for t, gradient in enumerate(GRADIENTS, start=1):
        update = [
            adam_update(t, g, state) + decay * x
            for g, state, x in zip(gradient, states, w, strict=True)
        ]
        trust = math.hypot(*w) / math.hypot(*update)
        w = [x - 0.1 * trust * u for x, u in zip(w, update, strict=True)]
    return w


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_scales_adams_step_to_each_weights_norm(decay):
    weight, bias = two_steps(optimizer="lamb", weight_decay=decay, **ADAM)
    assert weight == pytest.approx(lamb_by_hand(decay))
    # Biases and norms are left to Adam, as in the paper's own code.
    assert bias == pytest.approx(by_hand(lambda t, w, g, s: w - 0.1 * adam_update(t, g, s)))


def test_lamb_is_timms_and_clips_no_gradient_by_itself():
    optimizer = build_optimizer(Tiny(), config(optimizer="lamb"))
    assert isinstance(optimizer, timm.optim.Lamb)
    assert optimizer.defaults["max_grad_norm"] is None


KINDS = {
    "sgd": torch.optim.SGD,
    "nesterov": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
    "lamb": timm.optim.Lamb,
}


@pytest.mark.parametrize("name", KINDS)
def test_steps_equal_those_of_the_librarys_own_class_and_record_no_gradient(name):
    """Ours lack what torch's have for its compiler."""
    model = Tiny()
    ours = build_optimizer(model, config(optimizer=name, lr=0.1, weight_decay=0.25))
    assert isinstance(ours, KINDS[name])
    twin = Tiny()
    groups = [
        {**group, "params": [twin.weight if group["params"][0].ndim > 1 else twin.bias]}
        for group in ours.param_groups
    ]
    theirs = KINDS[name](groups, **({"max_grad_norm": None} if name == "lamb" else {}))
    for gradient in GRADIENTS:
        for one in (model, twin):
            one.weight.grad = torch.tensor([gradient], dtype=torch.float64)
            one.bias.grad = torch.tensor(gradient, dtype=torch.float64)
        ours.step()
        theirs.step()
        assert torch.equal(model.weight, twin.weight)
        assert torch.equal(model.bias, twin.bias)
    assert model.weight.is_leaf
    ours.zero_grad()
    assert model.weight.grad is None


@pytest.mark.parametrize("name", KINDS)
def test_biases_and_norms_are_not_decayed(name):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    optimizer = build_optimizer(model, config(optimizer=name, weight_decay=0.25))
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for parameter in model.parameters():
        assert decays[id(parameter)] == (0.25 if parameter.ndim > 1 else 0.0)


def test_frozen_weights_are_not_optimized():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, config())
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(map(id, model[1].parameters()))


def test_the_learning_rate_is_set_for_all_groups():
    optimizer = build_optimizer(Tiny(), config())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "cosine", "exponential", "plateau"])
def test_every_schedule_warms_up_linearly_and_without_a_jump(schedule):
    made = config(schedule=schedule, lr=0.4, epochs=10, warmup_epochs=2.0)
    assert learning_rate(made, 0.0) == 0.0
    assert learning_rate(made, 0.5) == pytest.approx(0.1)
    assert learning_rate(made, 2.0 - 1e-9) == pytest.approx(0.4)
    assert learning_rate(made, 2.0) == pytest.approx(0.4)


def test_constant_and_plateau_keep_the_learning_rate():
    for schedule in ("constant", "plateau"):
        made = config(schedule=schedule, lr=0.4, epochs=10)
        assert [learning_rate(made, epoch) for epoch in (0, 5.5, 10)] == [0.4, 0.4, 0.4]


def test_cosine_falls_by_half_a_period():
    made = config(schedule="cosine", lr=0.4, epochs=12, warmup_epochs=2.0, final_lr_fraction=0.1)
    assert learning_rate(made, 7) == pytest.approx(0.4 * (0.1 + 0.9 * 0.5))
    third = 2 + 10 / 3
    assert learning_rate(made, third) == pytest.approx(0.4 * (0.1 + 0.9 * 0.75))
    assert learning_rate(made, 12) == pytest.approx(0.04)
    assert learning_rate(made, 13) == pytest.approx(0.04)


def test_cosine_over_a_warm_up_of_all_epochs_ends_at_the_peak():
    made = config(schedule="cosine", lr=0.4, epochs=3, warmup_epochs=3.0)
    assert learning_rate(made, 2.999) == pytest.approx(0.4, rel=1e-3)
    assert math.isfinite(learning_rate(made, 3.0))


def test_exponential_decay_is_that_of_efficientnet():
    made = config(schedule="exponential", lr=0.256, epochs=350, warmup_epochs=5.0)
    assert (made.decay_rate, made.decay_epochs) == (0.97, 2.4)
    assert learning_rate(made, 5) == pytest.approx(0.256)
    assert learning_rate(made, 7.4) == pytest.approx(0.256 * 0.97)
    assert learning_rate(made, 29) == pytest.approx(0.256 * 0.97**10)


def test_no_schedule_falls_below_min_lr():
    made = config(schedule="exponential", lr=0.1, epochs=100, min_lr=0.03)
    assert learning_rate(made, 90) == pytest.approx(0.1 * 0.97**37.5)
    assert learning_rate(made, 99) == 0.03
    made = config(schedule="cosine", lr=0.1, epochs=100, min_lr=0.02)
    assert learning_rate(made, 100) == 0.02
    assert learning_rate(made, 50) == pytest.approx(0.05)


def scales(made: TrainConfig, losses: list[float]) -> list[float]:
    plateau, result = Plateau(), []
    for loss in losses:
        plateau.update(made, loss)
        result.append(plateau.scale)
    return result


def test_plateau_reduces_after_as_many_bad_epochs_as_keras():
    # keras.callbacks.ReduceLROnPlateau(patience=2, factor=0.5, min_delta=0), traced by hand:
    # `wait` counts epochs without a lower loss and starts again at 0 with each reduction.
    made = config(schedule="plateau", plateau_patience_epochs=2, plateau_factor=0.5)
    losses = [1.0, 1.1, 1.0, 0.9, 1.0, 0.95, 0.95, 0.91, 0.8, 0.8]
    assert scales(made, losses) == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.125]


def test_plateau_never_falls_below_min_lr():
    made = config(schedule="plateau", plateau_patience_epochs=1, lr=0.1, min_lr=0.03)
    assert scales(made, [1.0, 1.0, 1.0, 1.0]) == pytest.approx([1, 0.5, 0.3, 0.3])


def test_other_schedules_are_not_reduced_on_a_plateau():
    assert scales(config(schedule="cosine", plateau_patience_epochs=1), [1.0] * 5) == [1.0] * 5


def test_early_stopping_waits_for_its_patience():
    made = config(early_stop_patience_epochs=2)
    plateau, stopped = Plateau(), []
    for loss in [1.0, 1.1, 0.9, 0.9, 0.95]:
        plateau.update(made, loss)
        stopped.append(plateau.is_exhausted(made))
    assert stopped == [False, False, False, False, True]


def test_without_a_patience_training_is_never_stopped():
    plateau = Plateau()
    for _ in range(50):
        plateau.update(config(), 1.0)
    assert not plateau.is_exhausted(config())
