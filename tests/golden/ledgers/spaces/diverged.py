"""The search space of a recorded ledger; see the README beside it."""

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    dataset="digits",
    image_size=32,
    name="diverged",
    variants=("cnn3",),
    trials=4,
    base={"epochs": 3, "batch_size": 64, "steps_per_epoch": 20},
    params={
        "lr": FloatDistribution(1e-3, 1e6, log=True),
        "optimizer": CategoricalDistribution(["adamw", "nesterov"]),
    },
    enqueued=({"lr": 1e6, "optimizer": "nesterov"}, {"lr": 3e-3, "optimizer": "adamw"}),
    final_seeds=0,
)
