"""The search space of a recorded ledger; see the README beside it."""

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    dataset="digits",
    image_size=32,
    name="pairs",
    variants=("cnn2", "cnn3"),
    trials=3,
    metric="val_loss",
    mode="min",
    base={"epochs": 3, "steps_per_epoch": 20, "optimizer": "adamw"},
    params={
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "batch_size": CategoricalDistribution([32, 64]),
    },
    first_rung_epochs=1,
    rung_factor=3,
    startup_trials=2,
    final_seeds=1,
)
