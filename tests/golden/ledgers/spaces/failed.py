"""The search space of a recorded ledger; see the README beside it."""

from optuna.distributions import FloatDistribution

from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    dataset="digits",
    image_size=32,
    name="failed",
    variants=("cnn3",),
    trials=4,
    base={"epochs": 3, "batch_size": 64, "steps_per_epoch": 20},
    params={"lr": FloatDistribution(1e-4, 1e-1, log=True), "dropout": FloatDistribution(0.0, 0.5)},
    startup_trials=10,
    final_seeds=0,
)
