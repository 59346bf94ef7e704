"""The search space of a recorded ledger; see the README beside it."""

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    dataset="digits",
    image_size=32,
    name="stopped",
    variants=("cnn3",),
    trials=6,
    base={"epochs": 4, "batch_size": 64, "steps_per_epoch": 20},
    params={
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "optimizer": CategoricalDistribution(["adamw", "nesterov"]),
    },
    first_rung_epochs=1,
    rung_factor=2,
    startup_trials=2,
    final_seeds=0,
)
