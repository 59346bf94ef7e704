"""The search space of a recorded ledger; see the README beside it."""

from optuna.distributions import FloatDistribution

from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    dataset="digits",
    image_size=32,
    name="killed",
    variants=("cnn3",),
    trials=3,
    base={"epochs": 4, "batch_size": 64},
    params={"lr": FloatDistribution(1e-4, 1e-1, log=True), "dropout": FloatDistribution(0.0, 0.5)},
    first_rung_epochs=2,
    rung_factor=2,
    startup_trials=2,
    final_seeds=0,
)
