"""What the built-in spaces over B0 to B7 and the baselines have in common. Not a space itself."""

from __future__ import annotations

from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

EFFICIENTNETS = tuple(f"efficientnet_b{phi}" for phi in range(8))
CNNS = ("cnn2", "cnn3", "cnn3_bn", "cnn6")

BASE: dict[str, Any] = {
    "epochs": 60,
    "schedule": "cosine",
    "warmup_epochs": 5.0,
    "clip_grad_norm": 5.0,
    "label_smoothing": 0.1,
    "hflip": True,
}

# What the user of this project searches; the learning rate spans what SGD and AdamW want, and
# early stopping ends a wrong pairing at its first rung.
PARAMS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(5e-4, 0.2, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "batch_size": CategoricalDistribution([64, 128, 256, 512]),
    "optimizer": CategoricalDistribution(["nesterov", "adamw", "lamb", "rmsprop"]),
    "weight_decay": FloatDistribution(1e-5, 0.1, log=True),
}

# At 32 and 64 px the stock total stride of 32 leaves 1 x 1 or 2 x 2 features: B0 collapses there.
_DEEP: dict[str, Any] = {"randaugment_ops": 2, "randaugment_magnitude": 7.0, "mixup_alpha": 0.2}
BY_VARIANT: dict[str, dict[str, Any]] = {
    "resnet50": _DEEP,
    **{
        # The paper's own drop-path grows from 0.2; bigger models are regularised harder.
        name: {**_DEEP, "stem_stride": 1, "drop_path": FloatDistribution(0.0, 0.3)}
        for name in EFFICIENTNETS
    },
}
