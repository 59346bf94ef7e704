"""A published study: EfficientNet B0 to B7 from scratch on CIFAR-100, SGD, 200 epochs.

Data: `python -m orchestrator.data prepare cifar100`
Command: `python -m orchestrator.sweep cifar100_family`
Quick check on a sample of the data:
    `--epochs 1 --trials 1 --image-size 32 --variants efficientnet_b0,efficientnet_b1`
Published: 67.9 % (B0) to 70.8 % (B6) on the test split.

Nothing is searched: the trials of a model differ only in their seeds. `scaling_grid` trains other
scalings of B0 with the same recipe.
"""

from search_spaces.space import Published, SearchSpace
from trainables.models.build import EFFICIENTNETS

# The same for all models.
RECIPE = {
    "epochs": 200,
    "batch_size": 128,
    "optimizer": "sgd",
    "momentum": 0.9,
    "lr": 0.1,
    "schedule": "cosine",
    "warmup_epochs": 5.0,
    "weight_decay": 5e-4,
    "stem_stride": 1,
    "drop_path": 0.2,
    "hflip": True,
    "crop_padding_px": 4,
}

# The paper's image sizes over 224, times CIFAR's 32 px; and the paper's dropout.
_SIZES_PX = (32, 34, 37, 43, 54, 65, 75, 86)
_DROPOUT = (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5)

_VAL = (0.6314, 0.6426, 0.6394, 0.6598, 0.6704, 0.6644, 0.6656, 0.6748)
_TEST = (0.6794, 0.6878, 0.6848, 0.6911, 0.6951, 0.7042, 0.7075, 0.7022)
_IMAGENET_VAL = (0.7711, 0.7913, 0.8007, 0.8159, 0.8289, 0.8360, 0.8395, 0.8426)
_IMAGENET_TEST = (0.7723, 0.7917, 0.8016, 0.8172, 0.8294, 0.8369, 0.8404, 0.8433)

# The study concludes a "consistent accuracy improvement"; these rows contradict it.
_NOTES = {
    2: "Below B1 in both columns.",
    5: "Validation below B4's, test above it.",
    7: "Test below B6's, validation above it.",
}

SPACE = SearchSpace(
    name="cifar100_family",
    dataset="cifar100",
    variants=EFFICIENTNETS,
    trials=3,
    image_size="native",
    image_size_by_variant=dict(zip(EFFICIENTNETS, _SIZES_PX, strict=True)),
    base=RECIPE,
    by_variant={
        variant: {"dropout": dropout}
        for variant, dropout in zip(EFFICIENTNETS, _DROPOUT, strict=True)
    },
    source="Khanna, Liu: EfficientNet: Rethinking Model Scaling, a poster",
    published=(
        *(
            Published(
                variant=variant,
                label=f"B{phi}",
                val_top1=_VAL[phi],
                test_top1=_TEST[phi],
                note=_NOTES.get(phi, ""),
            )
            for phi, variant in enumerate(EFFICIENTNETS)
        ),
        *(
            Published(
                label=f"B{phi} on ImageNet (Tan and Le, 2019)",
                val_top1=_IMAGENET_VAL[phi],
                test_top1=_IMAGENET_TEST[phi],
                note="Another dataset, at 224 to 600 px: shown for the shape of the curve.",
            )
            for phi in range(8)
        ),
    ),
    recipe_notes=(
        "The study states: B0 to B7 from scratch, SGD with momentum, cross-entropy, 200 epochs; "
        "width, depth and resolution scaled by the paper's coefficients.",
        "Not stated; chosen here, as usual on CIFAR: momentum 0.9, learning rate 0.1 with cosine "
        "decay to 0, batch size 128, weight decay 5e-4, flips, crops with 4 px of padding, and 5 "
        "epochs of warm-up, which keeps the deep models stable in their first steps.",
        "Not stated; chosen here, as in the paper's code: dropout 0.2 to 0.5 by model, drop path "
        "0.2.",
        "The image sizes are not stated. Here they are the paper's, scaled from 224 to 32 px: 32, "
        "34, 37, 43, 54, 65, 75 and 86. The stem has stride 1, because stride 2 leaves 1 x 1 "
        "feature maps at 32 px.",
        "The published test accuracy is 2.5 to 4.8 points above the validation accuracy for every "
        "model. A random split would not cause this; the study does not state its split. Here 10 % "
        "of the training images, stratified by class, are the validation split.",
        "The study's ImageNet table is headed top-1/5, but contains only top-1.",
    ),
)
