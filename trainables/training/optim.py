"""Optimizers and learning-rate schedules from a `TrainConfig`.

Optimizers are torch's own, LAMB is timm's. Schedules are one function of the step, so that a
restart needs no scheduler state; reduce-on-plateau keeps the three numbers it depends on.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainables.config import TrainConfig
from trainables.training import freezing

# Settings of a group that depend on the device, not state.
_OF_THE_DEVICE = ("lr", "fused", "foreach", "capturable")


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer over the model's trainable parameters, at learning rate `config.lr`.

    Weight decay is applied to weights of two or more dimensions only, not to biases and norms.
    With `layer_decay` below 1 every group has its `lr_scale`; with `freeze_epochs` the classifier
    has groups of its own.

    Raises:
        ValueError: the order of the model's layers, or its classifier, is not known.
    """
    groups = (_layer_groups if config.layer_decay < 1 else _plain_groups)(model, config)
    if config.freeze_epochs:
        groups = _split_off(groups, freezing.backbone(model))
    optimizer = _over(groups, config)
    if any(weight.is_cuda for weight in model.parameters()):
        _keep_on_device(optimizer)
    return optimizer


def _over(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    lr, betas, eps = config.lr, (config.beta1, config.beta2), config.epsilon
    fused = True if groups[0]["params"][0].is_cuda else None
    match config.optimizer:
        case "sgd" | "nesterov":
            nesterov = config.optimizer == "nesterov" and config.momentum > 0
            return _uncompiled(torch.optim.SGD)(
                groups, lr=lr, momentum=config.momentum, nesterov=nesterov, fused=fused
            )
        case "rmsprop":
            return _uncompiled(torch.optim.RMSprop)(
                groups, lr=lr, alpha=config.rmsprop_alpha, eps=eps, momentum=config.momentum
            )
        case "adam":
            return _uncompiled(torch.optim.Adam)(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        case "adamw":
            return _uncompiled(torch.optim.AdamW)(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        case "radam":
            return _uncompiled(torch.optim.RAdam)(groups, lr=lr, betas=betas, eps=eps)
        case "lamb":
            from timm.optim.lamb import Lamb

            # timm adapts a layer's step only where weight decay is on, which would make LAMB
            # without it plain Adam; and by default it clips the gradient to norm 1, which here
            # `clip_grad_norm` decides.
            for group in groups:
                group["always_adapt"] = group["params"][0].ndim > 1
            return _uncompiled(Lamb)(groups, lr=lr, betas=betas, eps=eps, max_grad_norm=None)


@functools.cache
def _uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return an optimizer's class without the wrappers that exclude its methods from compiling.

    Their first call imports torch's compiler, which takes 2 s and 180 MB of a process that trains a
    plain CNN (timm imports it too). No optimizer is compiled here.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    # The only part of its wrapper that is needed, as no optimizer here is differentiable.
    bare["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), bare)


def _keep_on_device(optimizer: torch.optim.Optimizer) -> None:
    """Keep learning rates and step counts on the device, where a CUDA graph reads them."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        if group.get("capturable") or group.get("fused"):
            group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)


def state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state for a checkpoint; `restore` is the inverse."""
    kept = optimizer.state_dict()
    kept["param_groups"] = [{**group, "lr": float(group["lr"])} for group in kept["param_groups"]]
    return kept


def restore(optimizer: torch.optim.Optimizer, kept: dict[str, Any]) -> None:
    """Load a `state`, which may be from another device."""
    own = [
        {name: group[name] for name in _OF_THE_DEVICE if name in group}
        for group in optimizer.param_groups
    ]
    # Before loading too, because they decide on which device a step count lies.
    groups = [{**group, **mine} for group, mine in zip(kept["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**kept, "param_groups": groups})
    for group, mine in zip(optimizer.param_groups, own, strict=True):
        group.update(mine)


def _plain_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the weights that decay and those that do not, as two groups."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _layer_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return timm's groups per layer, each with `lr_scale` = layer_decay^(layers above it).

    The model's `group_matcher` defines the layers: a block of an EfficientNet or a ResNet is one;
    in timm's VGGs with batch norm the norms count too. Source: BEiT, arXiv 2106.08254.
    """
    from timm.optim._param_groups import param_groups_layer_decay

    try:
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            model, weight_decay=config.weight_decay, layer_decay=config.layer_decay
        )
        if len({group["lr_scale"] for group in groups}) < 2:
            raise ValueError("all weights are of one layer")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`layer_decay` needs the order of a network's layers, which {type(model).__name__} "
            "does not define. Set it to 1 for this variant."
        ) from error
    return groups


def _split_off(groups: list[dict[str, Any]], backbone: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Return the groups with the backbone's and the classifier's weights in different ones.

    torch's fused SGD and timm's LAMB assume that all weights of a group had the same number of
    steps.
    """
    frozen = {id(weight) for weight in backbone}
    parts = [
        {**group, "params": [w for w in group["params"] if (id(w) in frozen) == is_frozen]}
        for group in groups
        for is_frozen in (True, False)
    ]
    return [part for part in parts if part["params"]]


def forget_idle_steps(optimizer: torch.optim.Optimizer) -> None:
    """Reset the step count of groups whose weights were never updated.

    timm's LAMB counts a group's steps also while its weights are frozen, and would then correct the
    bias of their momentum too little.
    """
    for group in optimizer.param_groups:
        if not any(weight in optimizer.state for weight in group["params"]):
            group.pop("step", None)


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Return the scheduled learning rate after `epoch` epochs (fractional within an epoch).

    Linear warm-up from zero over `warmup_epochs`, then: constant; a half cosine down to
    `final_lr_fraction * lr`; or `lr * decay_rate ** (epochs since warm-up / decay_epochs)`
    (EfficientNet's schedule, arXiv 1905.11946 section 5; its reference code decays in steps, every
    `decay_epochs`, and counts them from the start, not from the end of the warm-up). `plateau` is
    constant here and is scaled by `Plateau.scale`.
    """
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    since = epoch - config.warmup_epochs
    match config.schedule:
        case "cosine":
            span = max(config.epochs - config.warmup_epochs, 1e-9)
            share = 0.5 * (1 + math.cos(math.pi * min(since / span, 1.0)))
            low = config.final_lr_fraction
            return max(config.lr * (low + (1 - low) * share), config.min_lr)
        case "exponential":
            factor: float = config.decay_rate ** (since / config.decay_epochs)
            return max(config.lr * factor, config.min_lr)
        case "constant" | "plateau":
            return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate, times its `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        scaled = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(scaled)
        else:
            group["lr"] = scaled


@dataclass(slots=True)
class Plateau:
    """State of reduce-on-plateau and early stopping."""

    best_val_loss: float = math.inf
    epochs_since_best: int = 0  # for early stopping
    epochs_since_cut: int = 0  # since the best loss or the last reduction, whichever is later
    scale: float = 1.0  # factor on the learning rate

    def update(self, config: TrainConfig, val_loss: float) -> None:
        """Add an epoch's validation loss, and reduce the scale when the patience is used up.

        Keras' ReduceLROnPlateau without its `min_delta`: a strictly lower loss counts as better,
        and `plateau_patience_epochs` epochs without one reduce the rate (torch's scheduler waits
        one epoch more).
        """
        if val_loss < self.best_val_loss:
            self.best_val_loss, self.epochs_since_best, self.epochs_since_cut = val_loss, 0, 0
            return
        self.epochs_since_best += 1
        self.epochs_since_cut += 1
        if config.schedule == "plateau" and self.epochs_since_cut >= config.plateau_patience_epochs:
            floor = config.min_lr / config.lr if config.lr > 0 else 0.0
            self.scale = max(self.scale * config.plateau_factor, floor)
            self.epochs_since_cut = 0

    def is_exhausted(self, config: TrainConfig) -> bool:
        """Return whether early stopping ends the training now."""
        patience = config.early_stop_patience_epochs
        return patience > 0 and self.epochs_since_best >= patience
