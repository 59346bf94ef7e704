"""The variants: their names and image sizes, and how each is built.

Built in: EfficientNet B0 to B7 and ResNet-50 through timm, the CNNs of `cnns.py`, the scaled
B0s of `scaling.py`. Every timm model name, with or without a tag, is a variant too. To add one of
ours: a row in `_PAPER_SIZES_PX` or a spec in `cnns.py`, and its place in `VARIANTS`.

torch and timm are imported inside the functions that need them: names are checked without them.
"""

from __future__ import annotations

import contextlib
import difflib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainables.config import TrainConfig
from trainables.models import scaling
from trainables.models.pretrained import find_weights, load_weights, not_safetensors

if TYPE_CHECKING:
    from torch import nn

ImageSize = Literal["native", "paper"] | int

# One recipe for B0 to B7, so that pretrained variants are comparable. In timm 1.0.31 the tags
# that exist for all eight are aa_in1k, ap_in1k and ns_jft_in1k, all on `tf_efficientnet_bN`.
# aa_in1k is the paper's own recipe (AutoAugment, ImageNet alone); ap adds adversarial examples,
# and ns the 300 million images of JFT, so neither compares with the published numbers.
_FAMILY_TAG = "aa_in1k"

_RESNETS = ("resnet50", "resnet50_mlp1024")

EFFICIENTNETS = tuple(f"efficientnet_b{phi}" for phi in range(8))
# The paper's image sizes: EfficientNet's reference code (efficientnet_builder.py,
# `efficientnet_params`), He et al. for ResNet-50. timm's defaults differ for b2 to b5.
_PAPER_SIZES_PX = dict.fromkeys(_RESNETS, 224) | dict(
    zip(EFFICIENTNETS, (224, 240, 260, 300, 380, 456, 528, 600), strict=True)
)

# The built-in variants, smallest first, by multiply-accumulates on native Tiny ImageNet (64 px, 3
# channels, 200 classes).
VARIANTS = (
    "cnn2",
    "cnn3",
    *EFFICIENTNETS[:4],
    "efficientnet_b0_width",
    "efficientnet_b4",
    "efficientnet_b0_resolution",
    "efficientnet_b0_depth",
    "cnn3_bn",
    "efficientnet_b5",
    "efficientnet_b6",
    *_RESNETS,
    "efficientnet_b7",
    "cnn6",
    "cnn9",
)


FEWEST_PATCHES = 16  # 4 x 4


class UnknownRateError(ValueError):
    """A timm model takes no dropout or no drop path, and its rate is above 0."""


def check_variant(config: TrainConfig) -> None:
    """Check that a configuration's variant exists and can be built with its hyperparameters.

    A timm model that is not built in is run once, without memory, at `image_size_px`.

    Raises:
        ValueError: one sentence or more for every mistake.
    """
    problems = _problems(config)
    if not problems and not _is_ours(config.variant):
        problems = _timm_problems(config)
    weights = config.weights
    if weights.endswith(".safetensors") and not Path(weights).expanduser().is_file():
        problems.append(f"There is no weights file at {weights}. Check the path.")
    if problems:
        raise ValueError(" ".join(problems))


def unknown_variants(names: Iterable[str]) -> dict[str, str]:
    """Return the sentence for each name that is no variant; the last lists the known ones."""
    found = {name: text for name in names if (text := _unknown(name))}
    listed = [name for name, text in found.items() if text.startswith("Unknown")]
    if listed:
        found[listed[-1]] += (
            f" Known: {', '.join(sorted(VARIANTS))}, efficientnet_b0_phi<NUMBER>, "
            "efficientnet_b0_d<NUMBER>_w<NUMBER>_r<NUMBER>, and every model name of timm."
        )
    return found


def too_few_patches(config: TrainConfig) -> str | None:
    """Return a sentence if a model divides its images into fewer patches than `FEWEST_PATCHES`.

    Vision transformers and similar models of timm can then be built and trained, but compare hardly
    any parts of an image.
    """
    if _is_ours(config.variant):
        return None
    import torch

    published = _published(config.variant)
    with torch.device("meta"):
        model = _build(config, 2, published.input_size[0])
    counts = [getattr(module, "num_patches", None) for module in model.modules()]
    patches = max((count for count in counts if isinstance(count, int)), default=FEWEST_PATCHES)
    if patches >= FEWEST_PATCHES:
        return None
    number = "1 patch" if patches == 1 else f"{patches} patches"
    return (
        f"{config.variant} divides an image of {config.image_size_px} px into {number} only, fewer "
        f"than {FEWEST_PATCHES}. Choose a larger image size; its own is {published.input_size[-1]} "
        "px."
    )


def has_plain_convolutions(variant: str) -> bool:
    """Return whether a network is known to have no depthwise convolution."""
    return _is_cnn(variant) or variant in _RESNETS


def input_size_px(variant: str, native_size_px: int, choice: ImageSize) -> int:
    """Return height and width of the images that reach the network, in pixels.

    - "native": the dataset's; for a scaled B0 times its resolution multiplier, because
      `cifar10_scaling` scales relative to the base it trains on.
    - "paper": 224 to 600 for B0 to B7, 224 for ResNet-50, 224 times the multiplier for a scaled
      B0, that of their study for the CNNs (64, and 32 for cnn9), timm's for other timm models.
    - a number: that number, for scaled B0s too, which then differ in depth and width alone.

    Raises:
        ValueError: the variant or the choice is unknown.
    """
    if problems := _name_problems(variant):
        raise ValueError(" ".join(problems))
    scaled = scaling.scaling_of(variant)
    if isinstance(choice, int) and not isinstance(choice, bool) and choice > 0:
        return choice
    if choice == "native":
        return scaling.scaled_size_px(scaled, native_size_px) if scaled else native_size_px
    if choice != "paper":
        raise ValueError(
            f"The image size is 'native', 'paper' or a positive number of pixels; got {choice!r}."
        )
    if scaled:
        return scaling.scaled_size_px(scaled, scaling.BASE_SIZE_PX)
    if variant in _PAPER_SIZES_PX:
        return _PAPER_SIZES_PX[variant]
    if _is_cnn(variant):
        from trainables.models.cnns import CNN_SPECS

        return CNN_SPECS[variant].published_size_px
    return int(_published(variant).input_size[-1])


def weights_name(variant: str) -> str | None:
    """Return timm's name, with tag, of a variant's ImageNet weights; None if there are none."""
    if variant in EFFICIENTNETS:
        return f"tf_{variant}.{_FAMILY_TAG}"
    if variant in _RESNETS:
        # torchvision's first weights: the plain recipe, nearest to the Keras weights of the study
        # that `resnet50_mlp1024` is from (search_spaces/tinyimagenet_baselines.py, model 5).
        return "resnet50.tv_in1k"
    if _is_ours(variant):
        return None
    published = _published(variant)
    tag = f".{published.tag}" if published.tag else ""
    return f"{published.architecture}{tag}" if published.has_weights else None


def normalisation(
    config: TrainConfig, dataset_mean: Sequence[float], dataset_std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation per channel to normalise images with, in 0 to 1.

    From scratch they are those of the training images; pretrained weights expect those of their own
    training. Those are for RGB: one channel gets their average, other numbers of channels repeat
    them, as the first convolution's weights are. Weights of a variant without published ones (the
    CNNs, a scaled B0) use the dataset's.
    """
    published = None if config.weights == "none" else weights_name(config.variant)
    if published is None:
        return tuple(dataset_mean), tuple(dataset_std)
    statistics, channels = _published(published), len(dataset_mean)
    return _to_channels(statistics.mean, channels), _to_channels(statistics.std, channels)


def build_model(
    config: TrainConfig, *, num_classes: int, in_channels: int, read_weights: bool = True
) -> nn.Module:
    """Build a variant for images (n, in_channels, image_size_px, image_size_px), logits (n, k).

    Weights are drawn from torch's global generator, on torch's default device; inside
    `with torch.device("meta")` the model takes no memory.

    From scratch, B0 to B7 are timm's `efficientnet_bN`. With weights, they are the TensorFlow
    variants `tf_efficientnet_bN` ("same" padding, batch-norm epsilon 1e-3) that the weights were
    trained in, also when `config.weights` is a path. `efficientnet_b0.<tag>` picks others.

    Args:
        config: variant, image_size_px, weights, dropout, drop_path and stem_stride are used.
        num_classes: k of the logits.
        in_channels: 1 for grey images, 3 for RGB.
        read_weights: False builds the model for `config.weights` without reading them, to restore
            a checkpoint into it or to count.

    Raises:
        ValueError: the variant is unknown, or cannot be built with these values.
        WeightsError: pretrained weights are missing or do not fit.
    """
    if problems := _problems(config):
        raise ValueError(" ".join(problems))
    weights_path = _weights_path(config) if read_weights else None  # before building: it may fail
    model = _build(config, num_classes, in_channels)
    if config.stem_stride == 1:
        model.conv_stem.stride = (1, 1)  # type: ignore[assignment]
    if weights_path is not None:
        load_weights(model, weights_path)
    return model


def _build(config: TrainConfig, num_classes: int, in_channels: int) -> nn.Module:
    """Build the variant's network with fresh weights."""
    variant = config.variant
    if _is_cnn(variant):
        from trainables.models.cnns import build_cnn

        return build_cnn(config, num_classes=num_classes, in_channels=in_channels)
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_channels,
        "drop_rate": config.dropout,
        "drop_path_rate": config.drop_path,
    }
    if scaled := scaling.scaling_of(variant):
        return scaling.build_scaled_b0(scaled, **options)
    if variant == "resnet50_mlp1024":
        return _build_resnet50_mlp1024(options)
    if variant in EFFICIENTNETS and config.weights != "none":
        return _build_timm(f"tf_{variant}.{_FAMILY_TAG}", options)
    if not _is_ours(variant) and _published(variant).fixed_input_size:
        options["img_size"] = config.image_size_px
    return _build_timm(variant, options)


def _build_resnet50_mlp1024(options: dict[str, Any]) -> nn.Module:
    """Build timm's ResNet-50 with 1024 hidden units with ReLU between pooling and classifier."""
    from torch import nn

    # Dropout is before the classifier, as in the CNNs, not before the hidden layer.
    model = _build_timm("resnet50", {**options, "drop_rate": 0.0})
    model.fc = nn.Sequential(
        nn.Linear(model.num_features, 1024),  # type: ignore[arg-type]
        nn.ReLU(inplace=True),
        nn.Dropout(options["drop_rate"]),
        nn.Linear(1024, options["num_classes"]),
    )
    return model


def _build_timm(name: str, options: dict[str, Any]) -> nn.Module:
    """Build a timm model, without the rates of dropout and drop path that are 0 and unknown to it.

    An unknown rate above 0 is an `UnknownRateError`.
    """
    import timm

    wanted = dict(options)
    while True:
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **wanted)
            return model
        except TypeError as error:
            fields = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}
            refused = next((key for key in wanted if f"argument '{key}'" in str(error)), "")
            if refused not in fields:
                raise
            if rate := wanted.pop(refused):
                raise UnknownRateError(
                    f"The timm model {name!r} takes no `{fields[refused]}`; got {rate}. "
                    "Set it to 0 for this variant."
                ) from error


def _weights_path(config: TrainConfig) -> Path | None:
    if config.weights != "imagenet":
        return None if config.weights == "none" else Path(config.weights).expanduser()
    name = weights_name(config.variant)
    assert name is not None  # _problems refused a variant without weights
    return find_weights(name)


def _problems(config: TrainConfig) -> list[str]:
    """Return one sentence per mistake that shows without building the network."""
    name, weights = config.variant, config.weights
    if problems := _name_problems(name):
        return problems
    if _is_cnn(name):
        from trainables.models.cnns import too_small

        problems += too_small(name, config.image_size_px)
        if config.drop_path:
            problems.append(
                f"`drop_path` skips residual blocks, and {name!r} has none; got "
                f"{config.drop_path}. Set it to 0 for this variant."
            )
    if config.stem_stride != 2 and not _is_efficientnet(name):
        problems.append(
            f"Only EfficientNets take `stem_stride`; got {config.stem_stride} for {name!r}. Set it "
            "to 2 for this variant."
        )
    if weights == "imagenet" and weights_name(name) is None:
        problems.append(
            f"There are no ImageNet weights for {name!r}. Choose weights 'none', or the path of a "
            "safetensors file of this variant."
        )
    if weights not in ("none", "imagenet") and (problem := not_safetensors(weights)):
        problems.append(problem)
    return problems


def _name_problems(name: str) -> list[str]:
    """Return the sentence for a name that is no variant."""
    return list(unknown_variants([name]).values())


def _unknown(name: str) -> str | None:
    """Return the sentence for a name that is no variant, without the known names."""
    try:
        if name in VARIANTS or scaling.scaling_of(name):
            return None
    except ValueError as error:
        return f"{name!r} scales too far. {error}"

    import timm
    from timm.models import get_deprecated_models, get_pretrained_cfg, is_model

    if is_model(name) and name not in get_deprecated_models():
        with contextlib.suppress(RuntimeError):  # the model exists, the tag after the dot does not
            get_pretrained_cfg(name)
            return None
    known = [*VARIANTS, *timm.list_models(), *timm.list_models(include_tags=True)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown variant {name!r}.{hint}"


def _timm_problems(config: TrainConfig) -> list[str]:
    """Return why a timm model cannot be built or run at the configuration's image size."""
    import torch

    name, image_size_px = config.variant, config.image_size_px
    published = _published(name)
    channels, _, own_px = published.input_size
    smallest = ""
    try:
        with torch.device("meta"):
            model = _build(config, 2, channels).eval()
        if (error := _refusal(model, channels, image_size_px)) is None:
            return []
        if not published.fixed_input_size and _refusal(model, channels, own_px) is None:
            least_px = bisect_left(
                range(own_px),
                True,
                min(image_size_px, own_px),
                key=lambda px: _refusal(model, channels, px) is None,
            )
            smallest = f", the smallest that it takes {least_px} px"
    except UnknownRateError as unknown:
        return [str(unknown)]
    except (AssertionError, RuntimeError, TypeError, ValueError) as building:
        error = building
    reason = str(error).rstrip(".")
    return [
        f"The timm model {name!r} cannot be built for {image_size_px} px images: {reason}. Its own "
        f"image size is {own_px} px{smallest}; choose such a size, or another model."
    ]


def _refusal(model: nn.Module, channels: int, image_size_px: int) -> Exception | None:
    """Return the error of a model on the meta device for images of this size."""
    import torch

    try:
        with torch.no_grad():
            model(torch.empty(1, channels, image_size_px, image_size_px, device="meta"))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        return error
    return None


def _is_ours(name: str) -> bool:
    return name in VARIANTS or scaling.scaling_of(name) is not None


def _is_cnn(name: str) -> bool:
    return name.startswith("cnn") and name in VARIANTS


def _is_efficientnet(name: str) -> bool:
    from timm.models import is_model_in_modules

    is_built_in = bool(scaling.scaling_of(name)) or name in EFFICIENTNETS
    return is_built_in or (not _is_cnn(name) and is_model_in_modules(name, ["efficientnet"]))


def _published(timm_name: str) -> Any:
    """Return timm's record of a model's weights: source, input size, mean and deviation."""
    from timm.models import get_pretrained_cfg

    return get_pretrained_cfg(timm_name)


def _to_channels(rgb: Sequence[float], channels: int) -> tuple[float, ...]:
    if channels == 1:
        return (sum(rgb) / len(rgb),)
    return tuple(rgb[index % len(rgb)] for index in range(channels))
