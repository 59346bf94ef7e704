"""The study of `cifar100_transfer`: settings that it found worse, and a search around them.

The first six trials are the study's: its final recipe, then one change each. With `--trials 30`
the search continues from them, over the optimizers that the study proposes as future work.

Data: `python -m orchestrator.data prepare cifar100`
Command: `python -m orchestrator.sweep cifar100_transfer_settings`
Quick check on a sample of the data:
    `--epochs 1 --trials 2 --final-seeds 0 --image-size 32 --weights none`
Weights: as in `cifar100_transfer`.
Published, with a figure for RMSProp only: learning rates 1e-2 and 1e-3 learn nothing, 1e-5 is slow
    and worse, RMSProp is one point lower, dropout 0.2 overfits.
"""

import dataclasses

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces import cifar100_transfer as study
from search_spaces.space import Published, SearchSpace

_RECIPE = {"lr": 1e-4, "optimizer": "adam", "momentum": 0.0, "dropout": 0.5}
_FIXED = {name: value for name, value in study.BASE.items() if name not in _RECIPE}

SPACE = SearchSpace(
    name="cifar100_transfer_settings",
    dataset="cifar100",
    variants=("efficientnet_b0",),
    trials=6,
    image_size=study.SPACE.image_size,
    base={**_FIXED, **study.TRANSFER},
    params={
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "optimizer": CategoricalDistribution(["adam", "rmsprop", "sgd", "nesterov"]),
        "momentum": CategoricalDistribution([0.0, 0.9]),  # Adam has none
        "dropout": FloatDistribution(0.2, 0.5),
    },
    enqueued=(
        _RECIPE,
        {**_RECIPE, "lr": 1e-2},
        {**_RECIPE, "lr": 1e-3},
        {**_RECIPE, "lr": 1e-5},
        {**_RECIPE, "optimizer": "rmsprop"},
        {**_RECIPE, "dropout": 0.2},
    ),
    final_seeds=3,
    source=study.SPACE.source,
    published=(
        dataclasses.replace(
            study.SPACE.published[0],
            note="The final recipe, here trial 0. The loss is implausible at this accuracy.",
        ),
        Published(
            variant="efficientnet_b0",
            enqueued=4,
            label="the same with RMSProp",
            test_top1=0.81,
            note="The study only states: one point lower.",
        ),
    ),
    recipe_notes=(
        *study.TRANSFER_NOTES,
        "RMSProp has Keras's default momentum, 0, and smoothing constant, 0.9. Its epsilon is "
        "added to the root of the mean square, as in PyTorch; Keras adds it under the root, so its "
        "steps are smaller where gradients are small.",
        "Trials 1 to 5 each change one value of the recipe; the study states no other change.",
    ),
)
