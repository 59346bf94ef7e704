"""Future work of the study in `tinyimagenet_baselines`: four backbones, fine-tuned.

All start from ImageNet weights. The first trial of each is the recipe of the study's model 5. The
others search optimizer, learning rate, epochs with a frozen backbone, lower learning rates of early
layers, and regularization.

Data: `python -m orchestrator.data prepare tinyimagenet`
Command: `python -m orchestrator.sweep tinyimagenet_backbones`
Quick check on a sample of the data: `--epochs 1 --trials 1 --final-seeds 0 --image-size 75
    --weights none --variants efficientnet_b0,inception_v3.tf_in1k` (Inception needs at least 75 px,
    the others 32 px).
Weights: timm's resnet50.tv_in1k, vgg16_bn.tv_in1k, inception_v3.tf_in1k and
    tf_efficientnet_b0.aa_in1k, downloaded; `--weights none` trains from scratch.
Published: 43.1 % for ResNet-50 at 64 px, on our test split.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import tinyimagenet_baselines as baselines
from search_spaces.space import SearchSpace

_RECIPE = baselines.SPACE.fixed_for("resnet50_mlp1024")
_SEARCHED = ("optimizer", "lr")

SPACE = SearchSpace(
    name="tinyimagenet_backbones",
    dataset="tinyimagenet",
    variants=("resnet50_mlp1024", "vgg16_bn", "inception_v3.tf_in1k", "efficientnet_b0"),
    trials=12,
    image_size=128,
    base={name: value for name, value in _RECIPE.items() if name not in _SEARCHED},
    params={
        "optimizer": CategoricalDistribution(["adam", "adamw", "nesterov"]),
        "lr": FloatDistribution(1e-5, 1e-2, log=True),
        "freeze_epochs": IntDistribution(0, 2),
        "layer_decay": FloatDistribution(0.7, 1.0),
        "dropout": FloatDistribution(0.0, 0.5),
        "label_smoothing": FloatDistribution(0.0, 0.2),
        "mixup_alpha": FloatDistribution(0.0, 0.4),
    },
    enqueued=(
        {
            "optimizer": "adam",
            "lr": 1e-4,
            "freeze_epochs": 0,
            "layer_decay": 1.0,
            "dropout": 0.0,
            "label_smoothing": 0.0,
            "mixup_alpha": 0.0,
        },
    ),
    first_rung_epochs=4,  # by then every trial has trained its backbone for two epochs or more
    rung_factor=3,
    startup_trials=6,
    final_seeds=3,
    source=baselines.SPACE.source,
    published=tuple(row for row in baselines.SPACE.published if row.variant == "resnet50_mlp1024"),
    recipe_notes=(
        "The study only names VGG16, Inception, EfficientNet, more regularization and more "
        "fine-tuning as future work; this project defined the search.",
        "Trial 0 of each model is the recipe of model 5 in `tinyimagenet_baselines`, but at 128 "
        "px: Inception needs 75 px or more, and weights trained at 224 or 299 px work better.",
        "VGG16 has batch norm, like the other three. Inception v3 has TensorFlow's weights, "
        "without the auxiliary classifier.",
        "Layers are numbered as in timm, which counts VGG16's batch norms as layers. The same "
        "`layer_decay` therefore lowers the learning rates of VGG16's early layers more.",
    ),
)
