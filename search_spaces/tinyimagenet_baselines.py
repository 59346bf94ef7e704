"""A published study: five models on Tiny ImageNet at 64 px, each with a fixed recipe, 15 epochs.

Data: `python -m orchestrator.data prepare tinyimagenet`
Command: `python -m orchestrator.sweep tinyimagenet_baselines`
Quick check on a sample of the data: `--epochs 1 --trials 1 --variants cnn2,cnn3`
Weights: `resnet50.tv_in1k` for model 5, downloaded; `--weights none` trains from scratch.
Measured with 12,000 training images: 12.2 and 12.4 % test top-1 for models 1 and 2 (2,000 test
    images, one seed).
Published, with all 100,000: 14.2, 22.7, 24.9, 38.6 and 43.1 % for models 1 to 5. The study's
    validation images are our test split.

Nothing is searched: the trials of a model differ only in their seeds. `tinyimagenet_backbones` has
the backbones of the study's future work.
"""

from search_spaces.space import Published, SearchSpace

# Models 1 to 5: variant, training and validation top-1, parameters, note.
_RESULTS = (
    ("cnn2", 0.2296, 0.1419, 13_070_472, ""),
    (
        "cnn3",
        0.2017,
        0.2272,
        2_555_656,
        "Validation accuracy exceeds training accuracy because of augmentation and dropout. The "
        "study calls this overfitting, which would be the opposite.",
    ),
    ("cnn6", 0.2950, 0.2488, 140_382_728, ""),
    ("cnn3_bn", 0.3752, 0.3861, 8_866_376, ""),
    (
        "resnet50_mlp1024",
        0.6861,
        0.4314,
        25_890_888,
        "From weights of ImageNet, which contains the classes of Tiny ImageNet. The total includes "
        "26,560 convolution biases that Keras's ResNet-50 has and ours does not.",
    ),
)

SPACE = SearchSpace(
    name="tinyimagenet_baselines",
    dataset="tinyimagenet",
    variants=tuple(variant for variant, *_ in _RESULTS),
    trials=3,
    image_size="native",
    base={
        "epochs": 15,
        "batch_size": 32,
        "optimizer": "adam",
        "lr": 1e-3,
        "epsilon": 1e-7,
        "schedule": "constant",
        "hflip": True,
        "rotation_deg": 20.0,
        "shear_deg": 0.2,
        "zoom": 0.2,
        "brightness": 0.2,
    },
    by_variant={
        "cnn2": {"lr": 1e-4, "l2": 1e-3},
        "cnn3": {
            "dropout": 0.5,
            "schedule": "plateau",
            "plateau_patience_epochs": 3,
            "plateau_factor": 0.1,
            "early_stop_patience_epochs": 5,
        },
        "cnn3_bn": {"dropout": 0.5},
        "resnet50_mlp1024": {"lr": 1e-4, "weights": "imagenet"},
    },
    source="Channagiri, Suresh, Mandal: Tiny-ImageNet Classification",
    published=tuple(
        Published(
            variant=variant,
            label=f"Model {number}",
            train_top1=train_top1,
            val_top1=val_top1,
            parameters=parameters,
            note=note,
            val_is_test=True,
        )
        for number, (variant, train_top1, val_top1, parameters, note) in enumerate(_RESULTS, 1)
    ),
    recipe_notes=(
        "Published parameter totals include batch norm's running statistics, as Keras counts.",
        "The study states: 15 epochs for models 1 to 4; Adam for 1 and 2, at 1e-4 for 1; L2 for 1; "
        "dropout 0.5 in 2 and 4; early stopping and learning-rate reduction for 2; the kinds of "
        "augmentation.",
        "Not stated; Keras's defaults here: Adam at 1e-3 (models 2 to 4), epsilon 1e-7, batch size "
        "32, reduction of the learning rate by a factor of 0.1.",
        "Not stated; chosen here: Adam at 1e-4 (model 5 starts from pretrained weights) and 15 "
        "epochs for model 5; patience of 3 epochs for the reduction and 5 for early stopping.",
        "The strength of L2 is not stated. Here it is 0.001, as in TensorFlow's tutorial on "
        "regularization, for convolution and dense kernels. With Keras's default, 0.01, training "
        "would start with a penalty of 23 nats on a loss of 5.3.",
        "The ranges of the augmentation are not stated. Here: rotation 20 degrees, zoom 0.2, "
        "brightness 0.8 to 1.2, and shear 0.2 (in degrees, as in Keras, which is barely visible). "
        "Keras fills empty areas with the nearest pixel, this project with zeros.",
        "The study trains on all training images and reports the last epoch. Here 10 % of them are "
        "the validation split, and the epoch that is best on it is evaluated on the test split.",
        "Images are normalized with the dataset's mean and standard deviation (model 5: those of "
        "its weights); the study only rescales them. Batch norm has torch's epsilon and momentum.",
    ),
)
