"""The search space of a recorded ledger; see the README beside it."""

from optuna.distributions import FloatDistribution

from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    dataset="digits",
    image_size=32,
    name="group",
    variants=("cnn3",),
    trials=2,
    base={"epochs": 3, "schedule": "constant", "batch_size": 32, "optimizer": "adamw"},
    params={"lr": FloatDistribution(1e-4, 1e-2, log=True)},
    final_seeds=0,
)
