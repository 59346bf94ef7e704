"""The embedded default: a small search on scikit-learn's 1,797 real digits, no download.

Command: `python -m orchestrator.sweep digits` (or `make sweep`).
Cost: minutes on two CPU cores.
Expected: not yet measured.
"""

from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
)

from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    name="digits",
    dataset="digits",
    variants=("cnn2", "cnn3", "efficientnet_b0"),
    trials=4,
    image_size=32,
    base={
        "epochs": 8,
        "schedule": "cosine",
        "warmup_epochs": 1.0,
        "crop_padding_px": 1,
        "clip_grad_norm": 5.0,
    },
    params={
        "lr": FloatDistribution(5e-4, 1e-2, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "batch_size": CategoricalDistribution([32, 64, 128]),
        "optimizer": CategoricalDistribution(["adamw", "radam", "lamb"]),
    },
    # At 32 px the stock stride leaves 1 x 1 features.
    by_variant={"efficientnet_b0": {"stem_stride": 1}},
    first_rung_epochs=2,
    rung_factor=3,
    startup_trials=4,
    final_seeds=1,
)
