"""A published study: five models on Tiny ImageNet at 64 px, a fixed recipe each, 15 epochs.

Data: `python -m orchestrator.data prepare tinyimagenet`
Command: `python -m orchestrator.sweep tinyimagenet_baselines`
In minutes: `--epochs 1 --trials 1 --variants cnn2,cnn3`, on a sample of the data.
Weights: `resnet50.tv_in1k` for model 5, downloaded; `--weights none` trains from scratch.
Measured on 12,000 of the training images: 12.2 and 12.4 % test top-1 for models 1 and 2 (2,000
    test images, one seed). Published, on all 100,000 (their validation split is our
    test split): 14.2, 22.7, 24.9, 38.6 and 43.1 % for models 1 to 5.

Nothing is searched: the trials of a model differ in their seeds. `tinyimagenet_backbones` has the
backbones of the study's future work.
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
        "Validation is above training, which augmentation and dropout explain; the study takes it "
        "for overfitting, which would be the reverse.",
    ),
    ("cnn6", 0.2950, 0.2488, 140_382_728, ""),
    ("cnn3_bn", 0.3752, 0.3861, 8_866_376, ""),
    (
        "resnet50_mlp1024",
        0.6861,
        0.4314,
        25_890_888,
        "From ImageNet weights, which have seen the classes of Tiny ImageNet. The total counts "
        "26,560 convolution biases that Keras' ResNet-50 has and ours not.",
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
        "Parameter totals are Keras': batch norm's running statistics count too.",
        "Said: 15 epochs for models 1 to 4; Adam for 1 and 2, at 1e-4 for 1; L2 for 1; dropout 0.5 "
        "in 2 and 4; early stopping and learning-rate reduction for 2; the kinds of augmentation.",
        "Not said, Keras' defaults: Adam at 1e-3 (models 2 to 4), epsilon 1e-7, batch 32, factor "
        "0.1 of the reduction.",
        "Not said: optimizer and epochs of model 5, here Adam at 1e-4, since it starts from "
        "weights, and 15; patience of the reduction, here 3 epochs, and of early stopping, here 5.",
        "The strength of L2 is not said: here 0.001, as in TensorFlow's tutorial on "
        "regularization. Keras' default, 0.01, would begin with a penalty of 23 nats on a loss of "
        "5.3. It is put on convolution and dense kernels alike.",
        "The ranges of the augmentation are not said: here rotation 20 degrees, zoom 0.2, "
        "brightness 0.8 to 1.2, and shear 0.2, which Keras takes for degrees, so next to nothing. "
        "Keras fills from the nearest pixel, this project with zeros.",
        "They train on all training images and report the last epoch; here 10 % of them are held "
        "out, and the best epoch on those is evaluated on the test split.",
        "Images are normalised with the dataset's mean and deviation (ResNet-50: its weights' "
        "own), where they only rescale. Batch norm has torch's epsilon and momentum, not Keras'.",
    ),
)
