"""A published study: B0 scaled in depth, width, resolution or all three (B2), on CIFAR-10.

Data: `python -m orchestrator.data prepare cifar10`
Command: `python -m orchestrator.sweep cifar10_scaling`
Their table only: `--variants efficientnet_b0,efficientnet_b0_depth,efficientnet_b0_width,
    efficientnet_b0_resolution,efficientnet_b2` (one word). For what is larger they had no memory;
    here a batch that does not fit is trained in micro-batches by itself.
In minutes: `--epochs 1 --trials 1 --image-size native`, with few variants, on a sample: 32 px,
    and 64 px for `efficientnet_b0_resolution`. `--image-size 32` would make that one B0.
Published: 85.2 % (B2) to 89.5 % (B0).

Nothing is searched: the trials of a model are its seeds. Models run smallest first.
"""

from search_spaces.space import Published, SearchSpace
from trainables.models.build import EFFICIENTNETS

# The five of their table.
_TABLE = (
    "efficientnet_b0",
    "efficientnet_b0_depth",
    "efficientnet_b0_width",
    "efficientnet_b0_resolution",
    "efficientnet_b2",
)

# Of each model in `_TABLE`: their label, test top-1 and FLOPs, and the numbers in `_FLOPS`.
_RESULTS = (
    ("Baseline B0", 0.8945, 820_000_000, (1.07, 0.38, 224)),
    ("Scale by depth (B0)", 0.8631, 3_350_000_000, (1.06, 1.57, 224)),
    ("Scale by width (B0)", 0.8840, 3_020_000_000, (1.04, 1.45, 224)),
    ("Scale by resolution (B0)", 0.8880, 3_270_000_000, (1.06, 1.54, 448)),
    ("Compound scale (B2)", 0.8521, 1_820_000_000, (1.06, 0.86, 256)),
)
# Derived: they count twice the multiply-accumulates, 4 to 7 % more than torch does, which leaves
# out norms and activations. That holds at 224 px, 448 px for the scaled resolution, and for B2 at
# 256 px, but not at the paper's 260.
_FLOPS = "Their FLOPs are {} times twice the {} billion multiply-accumulates at {} px."
_B2_NOTE = (
    " (0.92 times at the paper's 260 px.) They set it beside 1.8 billion of the paper, which are "
    "multiply-accumulates and of a larger network (depth 1.4, width 1.2, resolution 1.3), so their "
    "compound model has 54 to 60 % of the compute of the three others it is compared with."
)

# The paper's label, ImageNet top-1 and FLOPs, and what to add to `_PAPER`.
_PAPERS_RESULTS = (
    ("B0, the paper", 0.773, 400_000_000, ""),
    ("B0 by depth 4, the paper", 0.790, 1_800_000_000, ""),
    ("B0 by width 2, the paper", 0.789, 1_800_000_000, ""),
    ("B0 by resolution 2, the paper", 0.791, 1_900_000_000, ""),
    (
        "Compound, the paper (theirs: B2)",
        0.811,
        1_800_000_000,
        " Depth 1.4, width 1.2, resolution 1.3: not B2.",
    ),
)
_PAPER = (
    "On ImageNet. The paper's FLOPs are multiply-accumulates: in the unit of the other column, "
    "twice as many."
)

SPACE = SearchSpace(
    name="cifar10_scaling",
    dataset="cifar10",
    variants=(*_TABLE, "efficientnet_b1", *EFFICIENTNETS[3:]),
    trials=3,
    image_size="paper",
    image_size_by_variant={"efficientnet_b2": 256},
    base={
        "epochs": 35,
        "batch_size": 128,
        "optimizer": "rmsprop",
        "momentum": 0.9,
        "rmsprop_alpha": 0.9,
        "epsilon": 0.1,
        "lr": 0.008,
        "schedule": "exponential",
        "decay_rate": 0.97,
        "decay_epochs": 2.4,
        "warmup_epochs": 5.0,
        "weight_decay": 1e-5,
        "dropout": 0.2,
        "drop_path": 0.2,
        "hflip": True,
        "crop_padding_px": 4,
    },
    source="A poster on compound scaling of EfficientNet",
    published=(
        *(
            Published(
                variant=variant,
                label=label,
                test_top1=test_top1,
                flops=flops,
                note=_FLOPS.format(*counted) + (_B2_NOTE if variant == "efficientnet_b2" else ""),
            )
            for variant, (label, test_top1, flops, counted) in zip(_TABLE, _RESULTS, strict=True)
        ),
        *(
            Published(label=label, val_top1=val_top1, flops=flops, note=_PAPER + more)
            for label, val_top1, flops, more in _PAPERS_RESULTS
        ),
    ),
    recipe_notes=(
        "Said: RMSProp with momentum 0.9, alpha 0.9, epsilon 0.1; a linear, then exponential "
        "learning rate; 35 epochs (the paper: 350).",
        "The image sizes are not said: derived from their FLOPs, 224 px, 448 for the scaled "
        "resolution, 256 for B2. CIFAR's 32 px are upscaled on the device.",
        "Not said, here the paper's: 0.016 per 256 images, so 0.008 at batch 128; 5 epochs of "
        "warm-up; a factor 0.97 every 2.4 epochs, not shortened with the epochs; weight decay "
        "1e-5; dropout 0.2 and drop path 0.2, for every model, so that only the scaling differs.",
        "Not said: augmentation, here flips and crops with 4 px of padding.",
        "They do not say on which images the accuracy is measured; it is taken for the test split. "
        "Here 10 % of the training images are held out, and the best epoch on them is evaluated.",
        "B1 and B3 to B7 are their future work, at the paper's image sizes (240 to 600 px).",
    ),
)
