"""The whole family from scratch on CIFAR-100 at its native 32 x 32 pixels.

Command: `python -m orchestrator.sweep cifar100`
"""

from search_spaces._family import BASE, BY_VARIANT, CNNS, EFFICIENTNETS, PARAMS
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    name="cifar100",
    dataset="cifar100",
    variants=(*CNNS, "resnet50", *EFFICIENTNETS),
    trials=20,
    image_size="native",
    base={**BASE, "crop_padding_px": 4},
    params=PARAMS,
    by_variant=BY_VARIANT,
    first_rung_epochs=4,
    rung_factor=3,
    final_seeds=3,
)
