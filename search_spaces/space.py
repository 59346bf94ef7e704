"""`SearchSpace`: the values that define a search. `search_spaces.check` finds mistakes in it.

A space names a dataset, the variants of a family, and fixed and searched hyperparameters.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from trainables.config import EXCLUSIVE, ConfigError, TrainConfig
from trainables.models.build import ImageSize, weights_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One row of a published table, as printed there, to be shown beside our results.

    Attributes:
        label: the study's name of the model.
        variant: our variant that the row is compared with; None: the row is only shown.
        train_top1: training accuracy, a fraction; None: not published.
        val_top1: accuracy on the images that the study calls validation images.
        test_top1: accuracy on the study's test images.
        loss: cross-entropy in nats, on the test images if `test_top1` is given, else on the
            validation images.
        precision: average over the classes, a fraction.
        recall: average over the classes, a fraction.
        f1: average over the classes, a fraction.
        parameters: total number, as the study counts.
        flops: operations, as the study counts; `note` explains how.
        note: a contradiction or another peculiarity of the row.
        val_is_test: True if the images that the study calls validation images are our test split,
            such as Tiny ImageNet's `val`. `val_top1` is then compared with our test accuracy.
        enqueued: number of the enqueued trial that the row is compared with, if a study has several
            settings of one model; None: the variant's final trials or first trial.
    """

    label: str
    variant: str | None = None
    train_top1: float | None = None
    val_top1: float | None = None
    test_top1: float | None = None
    loss: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    parameters: int | None = None
    flops: int | None = None
    note: str = ""
    val_is_test: bool = False
    enqueued: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """What a sweep tries: models, fixed and searched hyperparameters, how long and how often.

    Attributes:
        name: name of the space, and by default of the sweep.
        dataset: name of a prepared dataset; `--dataset` replaces it.
        variants: names of models. They are searched by increasing multiply-accumulates; models
            that request the same CPUs and GPUs follow one another.
        trials: number of search trials per variant.
        base: hyperparameters that stay fixed, by field of `TrainConfig`; `epochs` is required.
        params: hyperparameters to search, by field of `TrainConfig`. If empty, the trials of a
            variant differ in their seeds only.
        by_variant: for single variants, other fixed values or other ranges.
        image_size: `native` (the dataset's), `paper` (each model's published size), or pixels.
        image_size_by_variant: exceptions from `image_size`.
        metric: field of `EpochMetrics` to optimize.
        mode: whether a larger (`max`) or a smaller (`min`) value of the metric is better.
        first_rung_epochs: epochs after which early stopping compares trials for the first time (at
            the first rung); 0 disables early stopping.
        rung_factor: each further rung is at this many times the epochs of the previous rung. At
            each rung, the best 1 / rung_factor of the trials continue.
        startup_trials: number of random suggestions per variant before the sampler uses results.
        max_attempts: limit of attempts of a trial. Attempts that ended because a process or machine
            was lost, memory ran out or the disk failed do not count.
        keep_best: number of the best trials per variant whose weights are kept.
        final_seeds: number of seeds with which the best configuration of each searched variant is
            trained again and evaluated on the test split.
        enqueued: configurations to try first, such as a published recipe, each with a value for
            every searched hyperparameter. They are never stopped early. Variants with nothing to
            search ignore them.
        source: authors and title of the study whose recipe this is.
        published: the results that the study reports.
        recipe_notes: one text for each detail that the study leaves open or that differs here.
        gpus_per_trial: GPUs, or the share of one, for each worker of a trial.
        gpus_by_variant: exceptions from `gpus_per_trial`.
    """

    name: str
    dataset: str
    variants: tuple[str, ...]
    trials: int
    base: Mapping[str, Any]
    params: Mapping[str, BaseDistribution] = field(default_factory=dict)
    by_variant: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    image_size: ImageSize = "native"
    image_size_by_variant: Mapping[str, ImageSize] = field(default_factory=dict)
    metric: str = "val_top1"
    mode: Literal["max", "min"] = "max"
    first_rung_epochs: int = 0
    rung_factor: int = 3
    startup_trials: int = 10
    max_attempts: int = 3
    keep_best: int = 1
    final_seeds: int = 1
    enqueued: tuple[Mapping[str, Any], ...] = ()
    source: str = ""
    published: tuple[Published, ...] = ()
    recipe_notes: tuple[str, ...] = ()
    gpus_per_trial: float = 1.0
    gpus_by_variant: Mapping[str, float] = field(default_factory=dict)

    def fixed_for(self, variant: str) -> dict[str, Any]:
        """Return the fixed hyperparameters of a variant."""
        values = {**self.base, **self.by_variant.get(variant, {})}
        return {n: value for n, value in values.items() if not isinstance(value, BaseDistribution)}

    def params_for(self, variant: str) -> dict[str, BaseDistribution]:
        """Return the ranges of a variant's searched hyperparameters."""
        own = self.by_variant.get(variant, {})
        values = {**{n: value for n, value in self.params.items() if n not in own}, **own}
        return {n: value for n, value in values.items() if isinstance(value, BaseDistribution)}

    def gpus_for(self, variant: str) -> float:
        """Return the GPUs, or the share of one, for each worker of a variant's trials."""
        return self.gpus_by_variant.get(variant, self.gpus_per_trial)

    def train_config(
        self,
        variant: str,
        params: Mapping[str, Any],
        *,
        dataset: str,
        fingerprint: str,
        image_size_px: int,
        seed: int,
        overrides: Mapping[str, Any],
    ) -> TrainConfig:
        """Return the configuration of a trial with the suggested hyperparameters `params`.

        `dataset` and `fingerprint` are those of the prepared dataset, `image_size_px` is the
        resolved size. `overrides` are values from the command line (`epochs`, `workers`). With
        fewer epochs, `warmup_epochs` and `freeze_epochs` (rounded down) shrink in proportion.
        `weights` "imagenet" applies to the variants that have such weights.

        Raises:
            ConfigError: values are out of their ranges or exclude each other.
        """
        values = {**self.fixed_for(variant), **params}
        if "epochs" not in values and "epochs" not in overrides:
            raise ValueError(f"the space gives no number of epochs for {variant}; use --epochs.")
        of_recipe = values.get("epochs", overrides.get("epochs"))
        epochs = overrides.get("epochs", of_recipe)
        if epochs < of_recipe and values.get("warmup_epochs"):
            values["warmup_epochs"] = values["warmup_epochs"] * epochs / of_recipe
        if epochs < of_recipe and values.get("freeze_epochs"):
            values["freeze_epochs"] = values["freeze_epochs"] * epochs // of_recipe
        values |= overrides
        if overrides.get("weights") == "imagenet" and weights_name(variant) is None:
            values["weights"] = "none"
        config = TrainConfig(
            **values,
            variant=variant,
            dataset=dataset,
            dataset_fingerprint=fingerprint,
            image_size_px=image_size_px,
            seed=seed,
        )
        # Here, not in `TrainConfig`, so that trials of older sweeps stay readable.
        if config.min_lr > config.lr:
            raise ConfigError(
                (f"`min_lr` ({config.min_lr}) must not exceed `lr` ({config.lr})", "")
            )
        return config

    def to_dict(self, variants: Sequence[str] = ()) -> dict[str, Any]:
        """Return the space's values, JSON-ready, to compare it with a later one.

        `variants` are further models, from the command line, whose values are included.
        """
        names = tuple(dict.fromkeys((*self.variants, *variants)))
        return {
            "name": self.name,
            "variants": list(self.variants),
            "fixed": {variant: self.fixed_for(variant) for variant in names},
            "params": {
                variant: {
                    name: json.loads(distribution_to_json(value))
                    for name, value in sorted(self.params_for(variant).items())
                }
                for variant in names
            },
            "enqueued": [dict(values) for values in self.enqueued],
            "image_size": self.image_size,
            "image_size_by_variant": dict(self.image_size_by_variant),
            "metric": self.metric,
            "mode": self.mode,
            "first_rung_epochs": self.first_rung_epochs,
            "rung_factor": self.rung_factor,
            "startup_trials": self.startup_trials,
        }

    def published_to_dict(self) -> dict[str, Any]:
        """Return the study's figures (`rows`) and notes, JSON-ready; they affect no result."""
        return {
            "source": self.source,
            "rows": [asdict(row) for row in self.published],
            "recipe_notes": list(self.recipe_notes),
        }


def with_batch_sizes_up_to(space: SearchSpace, images: int) -> SearchSpace:
    """Return the space without searched batch sizes above a number of images.

    A range of which no batch size fits stays as it is, and so does a space with an enqueued one
    that does not fit: both are refused when the configurations are checked.
    """
    if any(values.get("batch_size", 0) > images for values in space.enqueued):
        return space

    def fitted(values: Mapping[str, Any]) -> dict[str, Any]:
        sizes = values.get("batch_size")
        if isinstance(sizes, CategoricalDistribution):
            fits = [size for size in sizes.choices if size <= images]  # type: ignore[operator]
            sizes = CategoricalDistribution(fits) if fits else sizes
        elif isinstance(sizes, IntDistribution) and sizes.low <= images < sizes.high:
            high = images - (images - sizes.low) % sizes.step
            sizes = IntDistribution(sizes.low, high, sizes.log, sizes.step)
        return {**values, "batch_size": sizes} if "batch_size" in values else dict(values)

    own = {variant: fitted(values) for variant, values in space.by_variant.items()}
    return replace(space, params=fitted(space.params), by_variant=own)


def lost_values(given: BaseDistribution, kept: BaseDistribution) -> list[str]:
    """Return as text which values of a range are not in a range that was made from it."""
    if given == kept:
        return []
    if isinstance(kept, CategoricalDistribution):
        return [str(value) for value in ends(given) if value not in kept.choices]
    return [f"above {ends(kept)[-1]}"]


def ends(distribution: BaseDistribution) -> list[Any]:
    """Return a numeric range's two ends, or all choices of a categorical one."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return [distribution.low, distribution.high]
    raise ValueError(f"Unknown kind of range: {distribution!r}.")


def shown(distribution: BaseDistribution) -> str:
    """Return a range as text: its two ends, or all choices of a categorical one."""
    values = ends(distribution)
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, values))
    is_log = isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log
    return f"{values[0]:g} to {values[-1]:g}{', logarithmic' if is_log else ''}"


def tried(distribution: BaseDistribution) -> list[Any]:
    """Return the values that a range is checked with: its ends, or all choices.

    An integer range is also checked with its second value: a divisor of both divides all values.
    """
    values = ends(distribution)
    if isinstance(distribution, IntDistribution):  # the step of a logarithmic range is 1
        values.append(min(distribution.low + distribution.step, distribution.high))
    return values


def suggestions_to_check(ranges: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return the suggestions that ranges are checked with: one parameter varies, as in `tried`.

    Two parameters vary where they exclude some of each other's values. The last suggestion has the
    first value of every range.
    """
    first = {name: ends(distribution)[0] for name, distribution in ranges.items()}
    varied = [{**first, name: value} for name in ranges for value in tried(ranges[name])]
    for one, other in EXCLUSIVE:
        if one in ranges and other in ranges:
            pairs = itertools.product(tried(ranges[one]), tried(ranges[other]))
            varied += [{**first, one: value, other: second} for value, second in pairs]
    return [*varied, first]


def by_variant(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line for each text, after all variants that it is about.

    `texts` are pairs of a variant and a text.
    """
    variants: dict[str, list[str]] = {}
    for variant, text in texts:
        variants.setdefault(text, []).append(variant)
    return [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in variants.items()]
