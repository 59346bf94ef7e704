"""`TrainConfig`: the configuration of one training, and its identity, `signature()`.

Everything that can change a trial's result is a field here.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

# Raised when the meaning of a field changes, so that old results are not mistaken for new.
SIGNATURE_SCHEMA = 5

Optimizer = Literal["sgd", "nesterov", "rmsprop", "adam", "adamw", "radam", "lamb"]
Schedule = Literal["constant", "cosine", "exponential", "plateau"]
Precision = Literal["auto", "float32", "bfloat16"]
SelectBy = Literal["val_top1", "val_loss"]


Problem = tuple[str, str]  # a rule, and the value that breaks it or "" if the rule names it


class ConfigError(ValueError):
    """Values that no configuration can have; `problems` are all of them."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)  # the arguments, so that it can be pickled
        self.problems = problems

    def __str__(self) -> str:
        return " ".join(sentences(self.problems))


def sentences(problems: Iterable[Problem]) -> list[str]:
    """Return a sentence for each rule that is broken, with all values that break it."""
    values: dict[str, dict[str, None]] = {}  # in order, without repetition
    for rule, value in problems:
        values.setdefault(rule, {})[value] = None
    return [
        f"{rule}; got {', '.join(got)}." if any(got) else f"{rule}." for rule, got in values.items()
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One configuration of one model on one dataset.

    The documentation's table of hyperparameters is made from the fields' docstrings and `RANGES`.
    A field marked `affects_result: False` is left out of `signature()`.
    """

    # Model and data.
    variant: str
    """Name of the model."""
    dataset: str
    """Name of the prepared dataset."""
    dataset_fingerprint: str
    """The dataset's fingerprint, from its manifest."""
    epochs: int
    """Number of epochs of the training."""
    seed: int
    """Seed of the initial weights, the order of images and the augmentation."""
    image_size_px: int
    """Height and width of the model's input; images of other sizes are resized on the device."""
    stem_stride: Literal[1, 2] = 2
    """Stride of EfficientNet's first convolution; 1 reduces the total stride from 32 to 16."""
    weights: str = "none"
    """Initial weights: `none`, `imagenet`, or the path of a safetensors file."""
    validation_fraction: float = 0.1
    """Share of the training images held out for validation, stratified by class."""
    split_seed: int = 0
    """Seed of the split into training and validation images."""

    # Regularization in the model.
    dropout: float = 0.0
    """Dropout rate before the classifier."""
    drop_path: float = 0.0
    """Stochastic depth: probability of skipping a residual branch in training. It rises linearly
    from 0 at the first block to this value at the last."""

    # Optimization.
    batch_size: int = 128
    """Images per optimizer step, over all workers."""
    optimizer: Optimizer = "sgd"
    """Optimization algorithm."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd, nesterov and rmsprop."""
    beta1: float = 0.9
    """Decay of the first moment of adam, adamw, radam and lamb."""
    beta2: float = 0.999
    """Decay of the second moment of adam, adamw, radam and lamb."""
    rmsprop_alpha: float = 0.9
    """Smoothing constant of rmsprop."""
    epsilon: float = 1e-8
    """Added to the denominator of adam, adamw, radam, lamb and rmsprop, after the root is taken."""
    weight_decay: float = 0.0
    """The optimizer's weight decay, not applied to biases and normalization layers."""
    l2: float = 0.0
    """Factor of a penalty l2 * sum(w^2) added to the loss, like Keras's kernel_regularizer."""
    clip_grad_norm: float = 0.0
    """Norm to which larger gradients are clipped; 0: no clipping."""
    label_smoothing: float = 0.0
    """Share of the target distribution that is spread evenly over all classes."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights; 0: none."""
    schedule: Schedule = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises linearly from 0 to `lr`."""
    final_lr_fraction: float = 0.0
    """Cosine: learning rate at the end of the training, as a fraction of `lr`."""
    decay_rate: float = 0.97
    """Exponential: the learning rate is multiplied by this every `decay_epochs` epochs."""
    decay_epochs: float = 2.4
    """Exponential: epochs in which the learning rate is multiplied by `decay_rate` once."""
    plateau_patience_epochs: int = 5
    """Plateau: epochs without a better validation loss before the learning rate falls."""
    plateau_factor: float = 0.5
    """Plateau: the learning rate is multiplied by this."""
    min_lr: float = 0.0
    """Lowest learning rate that a schedule reaches after the warm-up."""
    early_stop_patience_epochs: int = 0
    """Epochs without a better validation loss before the training ends; 0: never."""
    freeze_epochs: int = 0
    """Number of first epochs in which only the classifier is trained."""
    layer_decay: float = 1.0
    """Factor between the learning rates of a layer and of the next layer, which is nearer to the
    classifier; 1: equal learning rates."""
    select_by: SelectBy = "val_top1"
    """Metric by which the best epoch is chosen."""

    # Augmentation of training images, drawn for each image.
    hflip: bool = False
    """Random horizontal flip."""
    vflip: bool = False
    """Random vertical flip."""
    crop_padding_px: int = 0
    """Padding with zeros on each side before a random crop to the original size."""
    rotation_deg: float = 0.0
    """Largest angle of a random rotation in either direction."""
    shear_deg: float = 0.0
    """Largest angle of a random shear in either direction."""
    zoom: float = 0.0
    """The scale is drawn uniformly from 1 - `zoom` to 1 + `zoom`."""
    brightness: float = 0.0
    """The brightness factor is drawn uniformly from 1 - `brightness` to 1 + `brightness`."""
    grid_distortion: float = 0.0
    """Probability of a grid distortion."""
    elastic: float = 0.0
    """Probability of an elastic distortion."""
    random_erasing: float = 0.0
    """Probability that a random rectangle is erased."""
    randaugment_ops: int = 0
    """RandAugment operations per image; 0: none."""
    randaugment_magnitude: float = 9.0
    """Strength of RandAugment's operations."""
    mixup_alpha: float = 0.0
    """Parameter of mixup's beta distribution; 0: no mixup."""
    cutmix_alpha: float = 0.0
    """Parameter of CutMix's beta distribution; 0: no CutMix."""

    # Precision and hardware; all of these can change results.
    precision: Precision = "auto"
    """`auto`: bfloat16 on GPUs, and on CPUs for the networks that train faster with it."""
    channels_last: bool = True
    """Store images and weights in the channels-last memory format."""
    compile: Literal["auto", True, False] = "auto"
    """Use `torch.compile`; `auto`: in long GPU trainings that are not `deterministic` and have no
    `drop_path`, mixup or CutMix."""
    deterministic: bool = False
    """Use deterministic CUDA kernels, which are slower."""
    threads: int = 1
    """CPU threads of one worker."""
    workers: int = 1
    """Data-parallel workers."""
    steps_per_epoch: int = 0
    """Optimizer steps per epoch, for measurements; 0: one pass over the training images."""

    # Set for each attempt; halved after running out of memory.
    micro_batch_size: int = field(default=0, metadata={"affects_result": False})
    """Images per forward pass, accumulated to `batch_size`; 0: the whole batch."""

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise ConfigError(*problems)
        for name, hint in _hints().items():
            if hint is float:
                # 1 and 1.0, 0.0 and -0.0 are equal, so their signatures must be.
                object.__setattr__(self, name, float(getattr(self, name)) + 0.0)

    def signature(self) -> str:
        """Return the trial's identity: 12 hex digits of a SHA-256 over what affects its result."""
        kept = (item.name for item in fields(self) if item.metadata.get("affects_result", True))
        identity: dict[str, Any] = {name: getattr(self, name) for name in kept}
        identity["schema"] = SIGNATURE_SCHEMA
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build a config from `to_dict`'s output.

        Raises:
            ValueError: a field is unknown, missing or out of its range.
        """
        unknown = sorted(set(values) - set(field_names()))
        problems = [*map(unknown_field, unknown)]
        if unknown:
            problems.append(f"Known: {', '.join(sorted(field_names()))}.")
        problems += [
            f"`{item.name}` is required."
            for item in fields(cls)
            if item.default is MISSING and item.name not in values
        ]
        if problems:
            raise ValueError(" ".join(problems))
        return cls(**values)


def field_names() -> tuple[str, ...]:
    """Return the names of all fields of `TrainConfig`."""
    return tuple(item.name for item in fields(TrainConfig))


def choices(name: str) -> tuple[Any, ...]:
    """Return the allowed values of a field with a closed set of them, else an empty tuple."""
    return get_args(_hints()[name])


def unknown_field(name: str, known: Iterable[str] = ()) -> str:
    """Return the sentence for an unknown field, with the field of `known` that may be meant.

    Other libraries' names of a field suggest that field. Without `known`, all fields are.
    """
    known = tuple(known) or field_names()
    meanings = {_plain(field): field for field in known}
    meanings |= {other: field for other, field in _OTHER_NAMES.items() if field in known}
    plain = _plain(name)
    near = [plain] if plain in meanings else difflib.get_close_matches(plain, meanings, 1, 0.75)
    hint = f" Did you mean {meanings[near[0]]!r}?" if near else ""
    return f"Unknown training parameter {name!r}.{hint}"


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


# What Keras, PyTorch, timm, Hugging Face and papers call the fields, without case and underscores.
_OTHER_NAMES = {
    other: field
    for field, others in {
        "variant": "model modelname arch architecture",
        "lr": "learningrate learnrate lrate eta baselr initlr initiallr maxlr peaklr lr0 stepsize",
        "weight_decay": "wd decay weightdecayrate decoupledweightdecay",
        "l2": "l2reg l2regularization l2regularizer weightpenalty kernelregularizer",
        "batch_size": "bs batch minibatch minibatchsize trainbatchsize perdevicetrainbatchsize",
        "epochs": "epoch numepochs nepochs maxepochs trainepochs numtrainepochs",
        "momentum": "mom mu sgdmomentum nesterovmomentum",
        "beta1": "b1 betas adambeta1",
        "beta2": "b2 adambeta2",
        "rmsprop_alpha": "alpha rho rmsproprho rmspropdecay",
        "epsilon": "eps opteps adameps adamepsilon",
        "optimizer": "opt optim optimiser solver nesterov",
        "dropout": "drop droprate dropoutrate dropoutp dropoutprob pdrop pdropout "
        "classifierdropout",
        "drop_path": "droppathrate stochasticdepth stochasticdepthprob stochasticdepthrate "
        "dropconnect dropconnectrate",
        "clip_grad_norm": "clipgrad clipnorm gradclip gradclipnorm gradientclip gradientclipping "
        "gradientclipval maxgradnorm",
        "label_smoothing": "labelsmooth smoothing ls labelsmoothingfactor labelsmoothingepsilon",
        "ema_decay": "ema modelema modelemadecay emamomentum averagedecay",
        "schedule": "scheduler sched lrschedule lrscheduler lrsched lrschedulertype "
        "learningrateschedule",
        "warmup_epochs": "warmup warmupsteps numwarmupsteps warmupratio numwarmupepochs lrwarmup "
        "lrwarmupepochs",
        "decay_rate": "gamma lrdecay lrgamma lrdecayrate learningratedecay",
        "decay_epochs": "decaysteps lrstepsize lrdecayepochs",
        "plateau_patience_epochs": "plateaupatience lrpatience patienceepochs",
        "plateau_factor": "factor reducefactor lrfactor",
        "min_lr": "lrmin etamin minlearningrate minimumlr endlr lrend finallr",
        "final_lr_fraction": "finallrfactor lrf alphaf",
        "early_stop_patience_epochs": "patience earlystopping earlystop earlystoppingpatience "
        "earlystoppatience",
        "freeze_epochs": "freeze freezebackbone frozenepochs freezebackboneepochs",
        "layer_decay": "llrd layerwisedecay layerwiselrdecay layerlrdecay",
        "select_by": "monitor metricforbestmodel",
        "validation_fraction": "valfraction validationsplit valsplit valsize validationsize",
        "weights": "pretrained initweights checkpoint",
        "hflip": "horizontalflip randomhorizontalflip randomflip flip fliplr",
        "vflip": "verticalflip randomverticalflip flipud",
        "crop_padding_px": "padding croppadding randomcrop randomcroppadding pad",
        "rotation_deg": "rotation rotationrange rotate degrees randomrotation maxrotation",
        "shear_deg": "shear shearrange randomshear",
        "zoom": "zoomrange randomzoom scalerange",
        "brightness": "brightnessrange colorjitter jitter",
        "random_erasing": "reprob erasing randomerase randomerasingprob cutout",
        "randaugment_ops": "randaugment randaugmentn randaugn autoaugment randaugmentnumops",
        "randaugment_magnitude": "randaugmentm randaugm magnitude",
        "mixup_alpha": "mixup mixupbeta",
        "cutmix_alpha": "cutmix cutmixbeta",
        "precision": "amp dtype mixedprecision fp16 bf16 halfprecision",
        "compile": "torchcompile",
        "threads": "numthreads cputhreads",
        "split_seed": "valseed validationseed",
    }.items()
    for other in others.split()
}


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


# Lowest and highest allowed value and unit of each number; None: any finite number.
RANGES: dict[str, tuple[float, float | None, str]] = {
    "epochs": (1, None, "epochs"),
    "seed": (0, 2**63 - 1, ""),
    "image_size_px": (4, 4096, "px"),
    "validation_fraction": (0.0, 0.5, "fraction"),
    "split_seed": (0, 2**32 - 1, ""),
    "dropout": (0.0, 0.99, "probability"),
    "drop_path": (0.0, 0.99, "probability"),
    "batch_size": (1, None, "images"),
    "lr": (0.0, None, ""),
    "momentum": (0.0, 0.9999, ""),
    "beta1": (0.0, 0.9999, ""),
    "beta2": (0.0, 0.99999, ""),
    "rmsprop_alpha": (0.0, 0.99999, ""),
    "epsilon": (0.0, 10.0, ""),
    "weight_decay": (0.0, None, ""),
    "l2": (0.0, None, ""),
    "clip_grad_norm": (0.0, None, ""),
    "label_smoothing": (0.0, 0.99, "fraction"),
    "ema_decay": (0.0, 0.999999, ""),
    "warmup_epochs": (0.0, None, "epochs"),
    "final_lr_fraction": (0.0, 1.0, "fraction"),
    "decay_rate": (0.0, 1.0, ""),
    "decay_epochs": (1e-6, None, "epochs"),
    "plateau_patience_epochs": (0, None, "epochs"),
    "plateau_factor": (0.0, 0.9999, ""),
    "min_lr": (0.0, None, ""),
    "early_stop_patience_epochs": (0, None, "epochs"),
    "freeze_epochs": (0, None, "epochs"),
    "layer_decay": (0.01, 1.0, ""),
    "crop_padding_px": (0, 512, "px"),
    "rotation_deg": (0.0, 180.0, "degrees"),
    "shear_deg": (0.0, 80.0, "degrees"),
    "zoom": (0.0, 0.9, "fraction"),
    "brightness": (0.0, 1.0, "fraction"),
    "grid_distortion": (0.0, 1.0, "probability"),
    "elastic": (0.0, 1.0, "probability"),
    "random_erasing": (0.0, 1.0, "probability"),
    "randaugment_ops": (0, 8, ""),
    "randaugment_magnitude": (0.0, 10.0, ""),
    "mixup_alpha": (0.0, None, ""),
    "cutmix_alpha": (0.0, None, ""),
    "threads": (1, 1024, "threads"),
    "workers": (1, 1024, "workers"),
    "steps_per_epoch": (0, None, "steps"),
    "micro_batch_size": (0, None, "images"),
}


def _problems(config: TrainConfig) -> list[Problem]:
    """Return every field whose type, choice or range is wrong."""
    problems = []
    for name, hint in _hints().items():
        value = getattr(config, name)
        if allowed := get_args(hint):
            # By type too: 2.0 and True equal integers, but not in the signature.
            if not any(type(value) is type(known) and value == known for known in allowed):
                listed = ", ".join(map(repr, allowed))
                problems.append((f"`{name}` must be one of {listed}", repr(value)))
            continue
        number = hint in (int, float)
        accepted = (int, float) if hint is float else hint
        if not isinstance(value, accepted) or (number and isinstance(value, bool)):
            problems.append((f"`{name}` must be of type {hint.__name__}", repr(value)))
        elif number:
            low, high, _ = RANGES[name]
            if not low <= value <= (sys.float_info.max if high is None else high):  # NaN: neither
                top = "or more" if high is None else f"to {high}"
                problems.append((f"`{name}` must be finite and {low} {top}", repr(value)))
    return problems or [(text, "") for text in _contradictions(config)]


# Pairs of fields that exclude some of each other's values, if both can be searched.
EXCLUSIVE = (
    ("lr", "min_lr"),
    ("schedule", "validation_fraction"),
    ("early_stop_patience_epochs", "validation_fraction"),
)


def _contradictions(config: TrainConfig) -> list[str]:
    """Return one text for every pair of fields that exclude each other."""
    problems = []
    if config.batch_size % config.workers:
        problems.append(
            f"`batch_size` ({config.batch_size}) must be divisible by `workers` "
            f"({config.workers}), so that every worker gets the same number of images"
        )
    if config.warmup_epochs > config.epochs:
        problems.append(
            f"`warmup_epochs` ({config.warmup_epochs}) must not exceed `epochs` ({config.epochs})"
        )
    for what, is_used in (
        ("`schedule` 'plateau'", config.schedule == "plateau"),
        ("`early_stop_patience_epochs`", config.early_stop_patience_epochs > 0),
    ):
        if is_used and config.validation_fraction == 0:
            problems.append(f"{what} needs a validation loss; set `validation_fraction` above 0")
    return problems
