"""A published study: EfficientNet-B0 from ImageNet weights, and a 9-layer CNN, on CIFAR-100.

Data: `python -m orchestrator.data prepare cifar100`
Command: `python -m orchestrator.sweep cifar100_transfer`
Quick check on a sample of the data: `--epochs 1 --trials 1 --image-size 32 --weights none`
Weights: `tf_efficientnet_b0.aa_in1k`, downloaded; `--weights none` trains from scratch.
Published: 82 % (B0) and 59 % (the CNN) on the test split.

Nothing is searched: the trials of a model differ only in their seeds. The space
`cifar100_transfer_settings` tries the settings that the study found worse.
"""

from search_spaces.space import Published, SearchSpace

# Shared by both models.
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
    "For B0, the study states everything except the probabilities of the augmentations and the "
    "optimizer's epsilon. The author's public notebook (CIFAR100_ImageRecognition) has 0.5 for the "
    "flips, 0.2 for grid distortion and elastic transform, and Keras's default epsilon, 1e-7.",
    "The study augments the upscaled image, with albumentations' elastic transform, whose default "
    "strength has no visible effect. Here the stored image is augmented, visibly, then upscaled.",
    "The study feeds pixels from 0 to 1 to the network; here they are normalized as its weights "
    "require. The weights are timm's conversion of the published AutoAugment weights.",
    "The study does not mention drop path; it is not used here. Distortions fill pixels from "
    "outside the image with black here.",
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
            note="A cross-entropy of 0.19 is implausible at 82 % on the same images. The text "
            "calls it the test loss once and the validation loss once. It calls all parameters "
            "trainable, but 42,016 of them are batch norm's running statistics.",
        ),
        Published(
            variant="cnn9",
            label="9-layer CNN",
            test_top1=0.59,
            loss=1.47,
            parameters=13_870_484,
            note="Our model is a reconstruction: the study gives the numbers of layers and "
            "parameters, 100 epochs and 59 %; the rest and the loss are from the author's "
            "public repository.",
        ),
    ),
    recipe_notes=(
        *TRANSFER_NOTES,
        "For the CNN, the study states 9 layers and 100 epochs. The rest is from the script in the "
        "author's public repository: Adam at 1e-4, batch size 64, dropout, early stopping with "
        "patience 20, the best epoch by validation loss, a fifth of the images for validation, "
        "flips, shear 0.2 (Keras's unit is degrees), zoom 0.2.",
        "That script shifts images by a tenth of the width. Here crops with 3 px of padding shift "
        "them in height too. The script also augments validation and test images; here not.",
    ),
)
