"""A published study: EfficientNet-B3 from ImageNet weights on Tiny ImageNet, and a search.

The first trial is the published recipe. The others search the study's future work: hyperparameters
and fine-tuning (epochs with a frozen backbone, lower learning rates of early layers).

Data: `python -m orchestrator.data prepare tinyimagenet`
Command: `python -m orchestrator.sweep tinyimagenet_b3`
Only the recipe: `--trials 1 --final-seeds 3`
Quick check on a sample of the data:
    `--epochs 1 --trials 2 --final-seeds 0 --image-size 32 --weights none`
Weights: `tf_efficientnet_b3.aa_in1k`, downloaded; `--weights none` trains from scratch.
Published: 77.0 % on the official validation images, which are our test split.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.space import Published, SearchSpace

SPACE = SearchSpace(
    name="tinyimagenet_b3",
    dataset="tinyimagenet",
    variants=("efficientnet_b3",),
    trials=20,
    image_size=256,
    base={"epochs": 10, "weights": "imagenet", "batch_size": 64, "hflip": True},
    params={
        "optimizer": CategoricalDistribution(["radam", "adamw", "lamb", "nesterov"]),
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "freeze_epochs": IntDistribution(0, 2),
        "layer_decay": FloatDistribution(0.7, 1.0),
        "weight_decay": FloatDistribution(1e-6, 0.1, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "schedule": CategoricalDistribution(["constant", "cosine"]),
        "label_smoothing": FloatDistribution(0.0, 0.2),
    },
    enqueued=(
        {
            "optimizer": "radam",
            "lr": 1e-3,
            "freeze_epochs": 0,
            "layer_decay": 1.0,
            "weight_decay": 1e-4,
            "dropout": 0.3,
            "schedule": "constant",
            "label_smoothing": 0.0,
        },
    ),
    first_rung_epochs=3,  # by then every trial has trained its backbone
    rung_factor=3,
    startup_trials=8,
    final_seeds=3,
    source="Das: Tiny ImageNet Classification with EfficientNet-B3",
    published=(
        Published(
            variant="efficientnet_b3",
            label="EfficientNet-B3, section 5.2",
            val_top1=0.7698,
            loss=0.9887,
            note="Tables 1 and 2 of the same document contradict it with 0.89.",
            val_is_test=True,
        ),
        Published(
            label="EfficientNet-B3, tables 1 and 2",
            val_top1=0.89,
            precision=0.89,
            recall=0.89,
            f1=0.89,
            note="Contradicts section 5.2 of the same document (76.98 %), with which our result "
            "is compared.",
            val_is_test=True,
        ),
        *(
            Published(
                label=f"Baseline model {number}, table 2",
                val_top1=val_top1,
                f1=f1,
                note="Not named or described. Of the table that contradicts section 5.2.",
                val_is_test=True,
            )
            for number, val_top1, f1 in ((1, 0.82, 0.81), (2, 0.75, 0.73))
        ),
    ),
    recipe_notes=(
        "The study states: ImageNet-style pretraining, 10 epochs, RAdam at 1e-3, weight decay "
        "1e-4, 256 x 256 pixels, horizontal flips, normalization. That is trial 0.",
        'The study states pretraining on "a diverse dataset"; here it is on ImageNet with the '
        "paper's AutoAugment recipe. ImageNet contains the classes of Tiny ImageNet.",
        "Not stated; chosen here: batch size 64; in trial 0, a constant learning rate and B3's own "
        "dropout of 0.3; no drop path; no weight decay on biases and batch norm.",
        "The study trains on all training images and reports the official validation images. Here "
        "10 % of the training images form the validation split; the official validation images "
        "are the test split.",
        "The study counts (3 x 1536 + 1) x 2304 parameters for one block of B3; B3 has no such "
        "block.",
    ),
)
