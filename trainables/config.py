"""What defines one training: the frozen `TrainConfig` and its identity, `signature()`.

Everything that can change a trial's result is a field here. It knows nothing of how trials are
chosen, started or recorded, and imports neither torch nor ray. It holds no state.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

# Raised when the meaning of a field changes, so that old results are not mistaken for new.
SIGNATURE_SCHEMA = 5

Optimizer = Literal["sgd", "nesterov", "rmsprop", "adam", "adamw", "radam", "lamb"]
Schedule = Literal["constant", "cosine", "exponential", "plateau"]
Precision = Literal["auto", "float32", "bfloat16"]
SelectBy = Literal["val_top1", "val_loss"]

_NOT_IDENTITY = {"affects_result": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One configuration of one model on one dataset.

    Fractions and probabilities are 0 to 1, angles are degrees, sides are pixels, lengths of
    training are epochs. A field marked `affects_result: False` is left out of `signature()`.
    """

    # What is trained on what.
    variant: str
    dataset: str
    dataset_fingerprint: str
    epochs: int
    seed: int
    image_size_px: (
        int  # image size after upscaling on the device; the dataset's own side means none
    )
    stem_stride: Literal[1, 2] = 2  # stride of EfficientNet's stem; 1 halves the total stride to 16
    weights: str = "none"  # "none", "imagenet", or the path of a safetensors file
    validation_fraction: float = 0.1  # of the training part, stratified
    split_seed: int = 0

    # The model's regularisation.
    dropout: float = 0.0
    drop_path: float = 0.0

    # Optimisation.
    batch_size: int = 128  # images per optimizer step, over all workers
    optimizer: Optimizer = "sgd"
    lr: float = 0.1  # peak learning rate
    momentum: float = 0.9  # sgd, nesterov and rmsprop only
    beta1: float = 0.9  # adam, adamw, radam, lamb
    beta2: float = 0.999  # adam, adamw, radam, lamb
    rmsprop_alpha: float = 0.9  # rmsprop's smoothing constant
    epsilon: float = 1e-8  # adam, adamw, radam, lamb, rmsprop
    weight_decay: float = 0.0  # the optimizer's own; not on biases and norms
    l2: float = 0.0  # penalty l2 * sum(w^2) added to the loss, as Keras' kernel_regularizer
    clip_grad_norm: float = 0.0  # 0: none
    label_smoothing: float = 0.0
    ema_decay: float = 0.0  # 0: none
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    final_lr_fraction: float = 0.0  # cosine: the last learning rate as a fraction of `lr`
    decay_rate: float = 0.97  # exponential: factor per `decay_epochs`
    decay_epochs: float = 2.4
    plateau_patience_epochs: int = 5
    plateau_factor: float = 0.5
    min_lr: float = 0.0
    early_stop_patience_epochs: int = 0  # on validation loss; 0: none
    freeze_epochs: int = 0  # first epochs in which the classifier alone is trained
    layer_decay: float = 1.0  # factor on the learning rate per layer, from the classifier down
    select_by: SelectBy = "val_top1"  # which epoch's weights are "the best"

    # Augmentation: batched, per sample, training part only.
    hflip: bool = False
    vflip: bool = False
    crop_padding_px: int = 0  # zero padding, then a random crop of the same side
    rotation_deg: float = 0.0  # uniform in +-rotation_deg
    shear_deg: float = 0.0
    zoom: float = 0.0  # scale uniform in 1 +- zoom
    brightness: float = 0.0  # factor uniform in 1 +- brightness
    grid_distortion: float = 0.0  # probability
    elastic: float = 0.0  # probability
    random_erasing: float = 0.0  # probability
    randaugment_ops: int = 0  # operations per image; 0: none
    randaugment_magnitude: float = 9.0  # 0 to 10
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    # How it is computed; numerics depend on it.
    precision: Precision = "auto"  # auto: bfloat16 where it is faster, see training/device.py
    channels_last: bool = True
    compile: Literal["auto", True, False] = "auto"  # auto: see training/compiling.py
    deterministic: bool = False  # on CUDA: deterministic kernels, slower
    threads: int = 1  # CPU threads of one worker
    workers: int = 1  # data-parallel workers
    steps_per_epoch: int = 0  # 0: the whole training part; for probes and benchmarks

    # How an attempt is run: chosen after running out of memory, recorded per attempt.
    micro_batch_size: int = field(default=0, metadata=_NOT_IDENTITY)  # 0: the whole batch

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ValueError(" ".join(problems))
        for name, hint in _hints().items():
            if hint is float:
                # 1 and 1.0, 0.0 and -0.0 are equal, so their signatures must be.
                object.__setattr__(self, name, float(getattr(self, name)) + 0.0)

    def signature(self) -> str:
        """Return the trial's identity: 12 hex digits of a SHA-256 over what affects its result."""
        identity: dict[str, Any] = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.metadata.get("affects_result", True)
        }
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
        problems = [unknown_field(name) for name in sorted(set(values) - set(field_names()))]
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


def unknown_field(name: str) -> str:
    """Return the sentence that answers an unknown field name, with the nearest known one."""
    near = difflib.get_close_matches(name, field_names(), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown training parameter {name!r}.{hint} Known: {', '.join(sorted(field_names()))}."


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


# Inclusive ranges of the numeric fields; None: unbounded on that side.
_RANGES: dict[str, tuple[float | None, float | None]] = {
    "epochs": (1, None),
    "seed": (0, 2**63 - 1),
    "image_size_px": (4, 4096),
    "validation_fraction": (0.0, 0.5),
    "split_seed": (0, 2**32 - 1),
    "dropout": (0.0, 0.99),
    "drop_path": (0.0, 0.99),
    "batch_size": (1, None),
    "lr": (0.0, None),
    "momentum": (0.0, 0.9999),
    "beta1": (0.0, 0.9999),
    "beta2": (0.0, 0.99999),
    "rmsprop_alpha": (0.0, 0.99999),
    "epsilon": (0.0, 10.0),
    "weight_decay": (0.0, None),
    "l2": (0.0, None),
    "clip_grad_norm": (0.0, None),
    "label_smoothing": (0.0, 0.99),
    "ema_decay": (0.0, 0.999999),
    "warmup_epochs": (0.0, None),
    "final_lr_fraction": (0.0, 1.0),
    "decay_rate": (0.0, 1.0),
    "decay_epochs": (1e-6, None),
    "plateau_patience_epochs": (0, None),
    "plateau_factor": (0.0, 0.9999),
    "min_lr": (0.0, None),
    "early_stop_patience_epochs": (0, None),
    "freeze_epochs": (0, None),
    "layer_decay": (0.01, 1.0),
    "crop_padding_px": (0, 512),
    "rotation_deg": (0.0, 180.0),
    "shear_deg": (0.0, 80.0),
    "zoom": (0.0, 0.9),
    "brightness": (0.0, 1.0),
    "grid_distortion": (0.0, 1.0),
    "elastic": (0.0, 1.0),
    "random_erasing": (0.0, 1.0),
    "randaugment_ops": (0, 8),
    "randaugment_magnitude": (0.0, 10.0),
    "mixup_alpha": (0.0, None),
    "cutmix_alpha": (0.0, None),
    "threads": (1, 1024),
    "workers": (1, 1024),
    "micro_batch_size": (0, None),
    "steps_per_epoch": (0, None),
}


def _problems(config: TrainConfig) -> list[str]:
    """Return one sentence for every field whose type, choice or range is wrong."""
    problems = []
    for name, hint in _hints().items():
        value = getattr(config, name)
        allowed = get_args(hint)
        if allowed:
            # By type too: 2.0 and True equal integers, but not in the signature.
            if not any(type(value) is type(known) and value == known for known in allowed):
                listed = ", ".join(map(repr, allowed))
                problems.append(f"`{name}` must be one of {listed}; got {value!r}.")
            continue
        number = hint in (int, float)
        accepted = (int, float) if hint is float else hint
        if not isinstance(value, accepted) or (number and isinstance(value, bool)):
            problems.append(f"`{name}` must be of type {hint.__name__}; got {value!r}.")
        elif number and not _within(value, *_RANGES[name]):
            low, high = _RANGES[name]
            top = "or more" if high is None else f"to {high}"
            problems.append(f"`{name}` must be finite and {low} {top}; got {value!r}.")
    if not problems:
        if config.batch_size % config.workers:
            problems.append(
                f"`batch_size` ({config.batch_size}) must be divisible by `workers` "
                f"({config.workers}), so that every worker sees as many images."
            )
        if config.warmup_epochs > config.epochs:
            problems.append(
                f"`warmup_epochs` ({config.warmup_epochs}) must not exceed `epochs` "
                f"({config.epochs})."
            )
        if config.validation_fraction == 0:
            problems += [
                f"{what} needs a validation loss; set `validation_fraction` above 0."
                for what, used in (
                    ("`schedule` 'plateau'", config.schedule == "plateau"),
                    ("`early_stop_patience_epochs`", config.early_stop_patience_epochs > 0),
                )
                if used
            ]
    return problems


def _within(value: float, low: float | None, high: float | None) -> bool:
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False
    return finite and (low is None or value >= low) and (high is None or value <= high)
