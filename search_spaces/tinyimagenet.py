"""The whole family from scratch on Tiny ImageNet, 200 classes at its native 64 x 64 pixels.

Command: `python -m orchestrator.sweep tinyimagenet`
"""

from search_spaces._family import BASE, BY_VARIANT, CNNS, EFFICIENTNETS, PARAMS
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    name="tinyimagenet",
    dataset="tinyimagenet",
    variants=(*CNNS, "resnet50", *EFFICIENTNETS),
    trials=20,
    image_size="native",
    base={**BASE, "crop_padding_px": 8},
    params=PARAMS,
    by_variant=BY_VARIANT,
    first_rung_epochs=4,
    rung_factor=3,
    final_seeds=3,
)
