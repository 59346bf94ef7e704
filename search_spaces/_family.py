"""The search that `cifar10`, `cifar100` and `tinyimagenet` share. Not a space itself."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search_spaces.space import SearchSpace
from trainables.models.build import EFFICIENTNETS

# The range of the learning rate covers SGD and AdamW. Early stopping ends trials whose learning
# rate does not suit their optimizer.
_PARAMS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(5e-4, 0.2, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "batch_size": CategoricalDistribution([64, 128, 256, 512]),
    "optimizer": CategoricalDistribution(["nesterov", "adamw", "lamb", "rmsprop"]),
    "weight_decay": FloatDistribution(1e-5, 0.1, log=True),
}

_DEEP: dict[str, Any] = {"randaugment_ops": 2, "randaugment_magnitude": 7.0, "mixup_alpha": 0.2}
# At 32 and 64 px the usual total stride of 32 leaves 1 x 1 or 2 x 2 features: B0 collapses there.
# The paper's drop path starts at 0.2; larger models need more regularization.
_EFFICIENTNET = {**_DEEP, "stem_stride": 1, "drop_path": FloatDistribution(0.0, 0.3)}


def family_space(dataset: str, *, crop_padding_px: int) -> SearchSpace:
    """Return the search over CNNs, ResNet-50 and EfficientNet B0 to B7 at the native size."""
    return SearchSpace(
        name=dataset,
        dataset=dataset,
        variants=("cnn2", "cnn3", "cnn3_bn", "cnn6", "resnet50", *EFFICIENTNETS),
        trials=20,
        image_size="native",
        base={
            "epochs": 60,
            "schedule": "cosine",
            "warmup_epochs": 5.0,
            "clip_grad_norm": 5.0,
            "label_smoothing": 0.1,
            "hflip": True,
            "crop_padding_px": crop_padding_px,
        },
        params=_PARAMS,
        by_variant={"resnet50": _DEEP, **dict.fromkeys(EFFICIENTNETS, _EFFICIENTNET)},
        first_rung_epochs=4,
        rung_factor=3,
        final_seeds=3,
    )
