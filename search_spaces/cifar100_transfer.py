"""A published study: EfficientNet-B0 from ImageNet weights on CIFAR-100, against a 9-layer CNN.

Data: `python -m orchestrator.data prepare cifar100`
Command: `python -m orchestrator.sweep cifar100_transfer`
In minutes: `--epochs 1 --trials 1 --image-size 32 --weights none`, on a sample.
Weights: `tf_efficientnet_b0.aa_in1k`, downloaded; `--weights none` trains from scratch.
Published: 82 % (B0) and 59 % (the CNN) on the test split.

Nothing is searched: the trials of a model are its seeds. The space
`cifar100_transfer_settings` tries the settings that the study found worse.
"""

from search_spaces.space import Published, SearchSpace

# What both models have in common.
BASE = {
    "validation_fraction": 0.2,
    "optimizer": "adam",
    "lr": 1e-4,
    "epsilon": 1e-7,
    "dropout": 0.5,
    "hflip": True,
    "select_by": "val_loss",
}
TRANSFER = {
    "epochs": 15,
    "batch_size": 8,
    "weights": "imagenet",
    "schedule": "plateau",
    "plateau_patience_epochs": 5,
    "plateau_factor": 0.5,
    "min_lr": 1e-6,
    "early_stop_patience_epochs": 10,
    "vflip": True,
    "grid_distortion": 0.2,
    "elastic": 0.2,
}
TRANSFER_NOTES = (
    "Said of B0: everything but the probabilities of the augmentation and the optimizer's epsilon. "
    "The author's public notebook (CIFAR100_ImageRecognition) has 0.5 for the flips, 0.2 for grid "
    "distortion and elastic transform, and Keras' default epsilon, 1e-7.",
    "They augment the upscaled image, with the elastic transform of albumentations, whose default "
    "strength moves nothing visibly; here the stored image is augmented, visibly, then upscaled.",
    "They feed pixels in 0 to 1 to the network; here they are normalised as its weights expect. "
    "The weights are timm's conversion of the published AutoAugment ones.",
    "Not said, and here not: drop path. Pixels that distortion and elastic transform bring in from "
    "outside the image are black here.",
)

SPACE = SearchSpace(
    name="cifar100_transfer",
    dataset="cifar100",
    variants=("efficientnet_b0", "cnn9"),
    trials=3,
    image_size=224,
    image_size_by_variant={"cnn9": "native"},
    base=BASE,
    by_variant={
        "efficientnet_b0": TRANSFER,
        "cnn9": {
            "epochs": 100,
            "batch_size": 64,
            "schedule": "constant",
            "early_stop_patience_epochs": 20,
            "shear_deg": 0.2,
            "zoom": 0.2,
            "crop_padding_px": 3,
        },
    },
    source="Khanna: CIFAR-100: Object Recognition using EfficientNet-B0",
    published=(
        Published(
            variant="efficientnet_b0",
            label="EfficientNet-B0, transfer",
            test_top1=0.82,
            loss=0.19,
            parameters=4_177_664,
            note="A cross-entropy of 0.19 does not go with 82 % on the same images. The text calls "
            "it the test loss once and the validation loss another time. The parameters are said "
            "to be trainable, but 42,016 of them are batch norm's running statistics.",
        ),
        Published(
            variant="cnn9",
            label="9-layer CNN",
            test_top1=0.59,
            loss=1.47,
            parameters=13_870_484,
            note="Our model is a reconstruction: the study gives the number of layers, the total, "
            "100 epochs and 59 %; the author's public repository the rest and the loss.",
        ),
    ),
    recipe_notes=(
        *TRANSFER_NOTES,
        "The study gives the CNN 9 layers and 100 epochs. From the script in its author's public "
        "repository: Adam at 1e-4, batch 64, dropout, early stopping with patience 20, the best by "
        "validation loss, a fifth for validation, flips, shear 0.2 (degrees, as Keras takes it), "
        "zoom 0.2.",
        "That script shifts by a tenth of the width; here crops of 3 px of padding, which shift in "
        "height too. It augments validation and test images as well; here they stay as they are.",
    ),
)
