"""Freezes the backbone while the classifier alone is trained.

The backbone is everything but what a model's `get_classifier` returns; for `resnet50_mlp1024` that
is its whole new head. Frozen weights get no gradient, so momentum and weight decay begin only when
they are trained.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def classifier_modules(model: nn.Module) -> list[nn.Module]:
    """Return the layers of the classifier and all modules in them.

    Raises:
        ValueError: the model does not name its classifier.
    """
    named: Any = getattr(model, "get_classifier", lambda: None)()
    heads = named if isinstance(named, tuple | list) else (named,)
    modules = [part for head in heads if isinstance(head, nn.Module) for part in head.modules()]
    if not any(True for part in modules for _ in part.parameters()):
        raise ValueError(
            f"`freeze_epochs` trains the classifier alone at first, but {type(model).__name__} "
            "does not name its classifier. Set it to 0 for this variant."
        )
    return modules


def backbone(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters that are not the classifier's.

    Raises:
        ValueError: the model does not name its classifier.
    """
    kept = {id(item) for part in classifier_modules(model) for item in part.parameters()}
    return [item for item in model.parameters() if item.requires_grad and id(item) not in kept]


def hold_statistics(model: nn.Module) -> None:
    """Keep the backbone's batch norms in evaluation mode until the next `model.train()`."""
    kept = {id(part) for part in classifier_modules(model)}
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and id(part) not in kept:
            part.eval()
