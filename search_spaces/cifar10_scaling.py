"""A published study: B0 scaled in depth, width, resolution or all three (B2), on CIFAR-10.

Data: `python -m orchestrator.data prepare cifar10`
Command: `python -m orchestrator.sweep cifar10_scaling`
The study's models only: `--variants efficientnet_b0,efficientnet_b0_depth,efficientnet_b0_width,
    efficientnet_b0_resolution,efficientnet_b2` (no space). The study lacked memory for larger ones;
    here a batch that does not fit in memory is trained in micro-batches.
Quick check on a sample of the data: `--epochs 1 --trials 1 --image-size native` and few variants.
    Do not use `--image-size 32`: it makes `efficientnet_b0_resolution` equal to B0.
Published: 85.2 % (B2) to 89.5 % (B0).

Nothing is searched: the trials of a model differ only in their seeds. Small models run first.
"""

from search_spaces.space import Published, SearchSpace
from trainables.models.build import EFFICIENTNETS

# The five models of the study's table.
_TABLE = (
    "efficientnet_b0",
    "efficientnet_b0_depth",
    "efficientnet_b0_width",
    "efficientnet_b0_resolution",
    "efficientnet_b2",
)

# For each model in `_TABLE`: the study's label, test top-1 and FLOPs, and the numbers in `_FLOPS`.
_RESULTS = (
    ("Baseline B0", 0.8945, 820_000_000, (1.07, 0.38, 224)),
    ("Scale by depth (B0)", 0.8631, 3_350_000_000, (1.06, 1.57, 224)),
    ("Scale by width (B0)", 0.8840, 3_020_000_000, (1.04, 1.45, 224)),
    ("Scale by resolution (B0)", 0.8880, 3_270_000_000, (1.06, 1.54, 448)),
    ("Compound scale (B2)", 0.8521, 1_820_000_000, (1.06, 0.86, 256)),
)
# The study's FLOPs are twice the multiply-accumulates and 4 to 7 % more than torch counts, which
# omits norms and activations. That holds at 224 px, at 448 px for the scaled resolution and at
# 256 px for B2, but not at the paper's 260 px.
_FLOPS = "The FLOPs are {} times ours (twice {} billion multiply-accumulates at {} px)."
_B2_NOTE = (
    " At the paper's 260 px the factor is 0.92. The study compares this model with the paper's 1.8 "
    "billion, which are multiply-accumulates of a larger network (depth 1.4, width 1.2, resolution "
    "1.3), and with three models of its own that take 1.7 to 1.8 times as many operations."
)

# The paper's label, ImageNet top-1 and FLOPs, and what to add to `_PAPER`.
_PAPERS_RESULTS = (
    ("B0, the paper", 0.773, 400_000_000, ""),
    ("B0 by depth 4, the paper", 0.790, 1_800_000_000, ""),
    ("B0 by width 2, the paper", 0.789, 1_800_000_000, ""),
    ("B0 by resolution 2, the paper", 0.791, 1_900_000_000, ""),
    (
        "Compound, the paper (the study: B2)",
        0.811,
        1_800_000_000,
        " Depth 1.4, width 1.2, resolution 1.3: not B2.",
    ),
)
_PAPER = "On ImageNet. The paper's FLOPs are multiply-accumulates; the study's are twice as many."

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
        "The study states: RMSProp with momentum 0.9, alpha 0.9, epsilon 0.1; a linear, then "
        "exponential learning rate; 35 epochs (the paper: 350).",
        "RMSProp is PyTorch's, in which alpha is the smoothing constant. It adds epsilon to the "
        "root of the mean square; TensorFlow's, which the paper used, adds it under the root.",
        "The image sizes are not stated. Derived from the study's FLOPs: 224 px, 448 px for the "
        "scaled resolution, 256 px for B2. CIFAR's 32 px images are upscaled on the device.",
        "Not stated; from the paper: learning rate 0.016 per 256 images, so 0.008 at batch size "
        "128; 5 epochs of warm-up; decay by 0.97 every 2.4 epochs, although there are fewer "
        "epochs; weight decay 1e-5; dropout and drop path 0.2 for every model, so that only the "
        "scaling differs.",
        "The augmentation is not stated; here flips, and crops with 4 px of padding.",
        "The study does not state on which images it measures accuracy; it is compared with the "
        "test split. Here 10 % of the training images form the validation split, and the epoch "
        "that is best on it is evaluated on the test split.",
        "B1 and B3 to B7 are the study's future work, at the paper's image sizes, 240 to 600 px.",
    ),
)
