"""`SearchSpace`: what to try, as values, and `check()`, which finds its mistakes before a device.

A space names a dataset, the variants of a family, fixed training parameters and searched ones.
It holds no state and starts nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from trainables.config import TrainConfig, field_names, unknown_field
from trainables.metrics import METRIC_NAMES

Side = Literal["native", "paper"] | int

# What the orchestrator itself decides about each trial; a space may not.
_DECIDED_ELSEWHERE = {
    "variant",
    "dataset",
    "dataset_fingerprint",
    "seed",
    "side_px",
    "workers",
    "micro_batch_size",
}

# Which way a quality gets better; the other metrics can be wanted either way.
_DIRECTION = {
    "train_loss": "min",
    "val_loss": "min",
    "train_top1": "max",
    "val_top1": "max",
    "val_top5": "max",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """What to try.

    Attributes:
        name: the space's, and by default the sweep's.
        dataset: name of a prepared dataset; `--dataset` replaces it.
        variants: models, by name; they run smallest first.
        trials: per variant.
        base: training parameters that stay fixed, by field of `TrainConfig`; `epochs` is required.
        params: searched parameters, by field of `TrainConfig`; may be empty, then the trials of a
            variant differ in their seeds only.
        by_variant: for some variants, other fixed values or other ranges.
        side: input side: the dataset's own, the paper's per variant, or pixels.
        side_by_variant: exceptions to `side`.
        metric: a field of `EpochMetrics` to optimise, and `mode` its direction.
        first_rung_epochs: early stopping looks first after this many epochs, then at each
            `rung_factor` times as many; 0 switches it off.
        rung_factor: at each rung the best 1 / rung_factor of a variant's trials go on.
        startup_trials: random suggestions per variant before the sampler models anything.
        max_attempts: tries at a trial that fails by itself.
        keep_best: trials per variant whose weights are kept for good.
        gpus_per_trial: share of a device, by default; `gpus_by_variant` for some variants.
    """

    name: str
    dataset: str
    variants: tuple[str, ...]
    trials: int
    base: Mapping[str, Any]
    params: Mapping[str, BaseDistribution] = field(default_factory=dict)
    by_variant: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    side: Side = "native"
    side_by_variant: Mapping[str, Side] = field(default_factory=dict)
    metric: str = "val_top1"
    mode: Literal["max", "min"] = "max"
    first_rung_epochs: int = 0
    rung_factor: int = 3
    startup_trials: int = 10
    max_attempts: int = 3
    keep_best: int = 1
    gpus_per_trial: float = 1.0
    gpus_by_variant: Mapping[str, float] = field(default_factory=dict)
    enqueued: tuple[Mapping[str, Any], ...] = ()
    final_seeds: int = 0

    def published_to_dict(self) -> dict[str, Any]:
        """Return it."""
        return {}

    def fixed_for(self, variant: str) -> dict[str, Any]:
        """Return the fixed training parameters of a variant."""
        own = self.by_variant.get(variant, {})
        fixed = {**self.base, **own}
        return {
            name: value for name, value in fixed.items() if not isinstance(value, BaseDistribution)
        }

    def params_for(self, variant: str) -> dict[str, BaseDistribution]:
        """Return the searched parameters of a variant, by name."""
        own = self.by_variant.get(variant, {})
        searched = {name: value for name, value in self.params.items() if name not in own}
        searched |= {n: value for n, value in own.items() if isinstance(value, BaseDistribution)}
        return searched

    def gpus_for(self, variant: str) -> float:
        """Return the share of a device that one worker of this variant's trials takes."""
        return self.gpus_by_variant.get(variant, self.gpus_per_trial)

    def train_config(
        self,
        variant: str,
        params: Mapping[str, Any],
        *,
        dataset: str,
        fingerprint: str,
        side_px: int,
        seed: int,
        overrides: Mapping[str, Any],
    ) -> TrainConfig:
        """Put a suggestion into the configuration it stands for.

        Args:
            variant: the model.
            params: the suggestion, by field.
            dataset: name of the prepared dataset.
            fingerprint: its content's.
            side_px: the resolved input side.
            seed: the trial's own.
            overrides: what the command line decides (`epochs`, `workers`); a warm-up given in
                epochs shrinks with a shortened training.
        """
        values = {**self.fixed_for(variant), **params}
        epochs = overrides.get("epochs", values["epochs"])
        if epochs < values["epochs"] and values.get("warmup_epochs"):
            values["warmup_epochs"] = values["warmup_epochs"] * epochs / values["epochs"]
        values |= overrides
        return TrainConfig(
            **values,
            variant=variant,
            dataset=dataset,
            dataset_fingerprint=fingerprint,
            side_px=side_px,
            seed=seed,
        )

    def check(self) -> None:
        """Find every mistake in the values, building nothing.

        Raises:
            ValueError: one sentence for each problem.
        """
        problems = self._shape_problems()
        if not problems:
            problems = [
                *self._name_problems(),
                *self._range_problems(),
                *self._number_problems(),
                *self._choice_problems(),
            ]
        if not problems:
            for variant in self.variants:
                problems += self._end_problems(variant)
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
            raise ValueError(f"The search space {self.name!r} cannot be used:\n{listed}")

    def to_dict(self, variants: Sequence[str] = ()) -> dict[str, Any]:
        """Return what the space says, JSON-ready, to compare it with a later one.

        Args:
            variants: models of which it says something beside its own, from the command line.
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
            "side": self.side,
            "side_by_variant": dict(self.side_by_variant),
            "metric": self.metric,
            "mode": self.mode,
            "first_rung_epochs": self.first_rung_epochs,
            "rung_factor": self.rung_factor,
            "startup_trials": self.startup_trials,
        }

    def _shape_problems(self) -> list[str]:
        """Return what makes a closer look impossible: a field that is not even of its kind."""
        problems = []
        if not isinstance(self.variants, tuple | list) or not all(
            isinstance(name, str) for name in self.variants
        ):
            problems.append(f"`variants` must be a tuple of names; got {self.variants!r}.")
        for name in ("name", "dataset", "metric", "mode"):
            if not isinstance(getattr(self, name), str):
                problems.append(f"`{name}` must be a text; got {getattr(self, name)!r}.")
        mappings = {
            name: getattr(self, name)
            for name in ("base", "params", "by_variant", "side_by_variant", "gpus_by_variant")
        }
        if isinstance(self.by_variant, Mapping):
            mappings |= {f"by_variant[{name!r}]": own for name, own in self.by_variant.items()}
        for name, value in mappings.items():
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                problems.append(f"`{name}` must be a dictionary with names as keys; got {value!r}.")
        return problems

    def _name_problems(self) -> list[str]:
        problems = []
        known = set(field_names())
        for where, names in (
            ("base", self.base),
            ("params", self.params),
            *((f"by_variant[{v!r}]", values) for v, values in self.by_variant.items()),
        ):
            for name in names:
                if name not in known:
                    problems.append(f"In `{where}`: {unknown_field(name)}")
                elif name in _DECIDED_ELSEWHERE:
                    problems.append(
                        f"In `{where}`: {name!r} is decided per sweep, not by a space; remove it."
                    )
        strangers = sorted(
            {*self.by_variant, *self.side_by_variant, *self.gpus_by_variant} - set(self.variants)
        )
        if strangers:
            problems.append(
                f"Settings are given for {', '.join(strangers)}, which `variants` does not list."
            )
        return problems

    def _range_problems(self) -> list[str]:
        problems = []
        for name, value in self.params.items():
            if not isinstance(value, BaseDistribution):
                problems.append(
                    f"`params[{name!r}]` must be a FloatDistribution, IntDistribution or "
                    f"CategoricalDistribution of Optuna; got {value!r}. A fixed value belongs "
                    "into `base`."
                )
        for name, value in self.base.items():
            if isinstance(value, BaseDistribution):
                problems.append(f"`base[{name!r}]` is a range; it belongs into `params`.")
        both = sorted(set(self.base) & set(self.params))
        if both:
            problems.append(f"In `base` and in `params` at once: {', '.join(both)}.")
        searched = {name for variant in self.variants for name in self.params_for(variant)}
        if "epochs" in searched | set(self.params):
            problems.append("`epochs` cannot be searched; early stopping decides who gets more.")
        elif not all("epochs" in self.fixed_for(variant) for variant in self.variants):
            problems.append("`base` must say `epochs`.")
        if "threads" in searched:
            problems.append("`threads` cannot be searched; a variant's trials share one shape.")
        return problems

    def _number_problems(self) -> list[str]:
        problems = []
        if not self.variants or len(set(self.variants)) != len(self.variants):
            problems.append(f"`variants` must name each model once; got {self.variants!r}.")
        for name, low in (
            ("trials", 1),
            ("first_rung_epochs", 0),
            ("startup_trials", 0),
            ("max_attempts", 1),
            ("keep_best", 0),
            ("rung_factor", 2),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                problems.append(f"`{name}` must be a whole number, {low} or more; got {value!r}.")
        return problems

    def _choice_problems(self) -> list[str]:
        problems = []
        if self.metric not in METRIC_NAMES:
            problems.append(f"`metric` must be one of {', '.join(METRIC_NAMES)}.")
        if self.mode not in ("max", "min"):
            problems.append(f"`mode` must be 'max' or 'min'; got {self.mode!r}.")
        elif self.metric in METRIC_NAMES and self.mode != _DIRECTION.get(self.metric, self.mode):
            problems.append(
                f"`metric` {self.metric!r} gets better towards {_DIRECTION[self.metric]!r}; got "
                f"`mode` {self.mode!r}."
            )
        for side in (self.side, *self.side_by_variant.values()):
            if side not in ("native", "paper") and not (type(side) is int and side > 0):
                problems.append(f"A side must be 'native', 'paper' or pixels; got {side!r}.")
        for share in (self.gpus_per_trial, *self.gpus_by_variant.values()):
            number = type(share) in (int, float) and math.isfinite(share) and share >= 0
            if not number or (share > 1 and share != int(share)):
                problems.append(
                    f"A trial's share of GPUs must be 0 to 1, or a whole number; got {share!r}."
                )
        return problems

    def _end_problems(self, variant: str) -> list[str]:
        """Build the configuration at both ends of every range, one parameter at a time."""
        ranges = self.params_for(variant)
        middle = {name: ends(distribution)[0] for name, distribution in ranges.items()}
        problems = []
        for name, distribution in ranges.items() or [("epochs", None)]:
            values = tried(distribution) if distribution else [self.fixed_for(variant)["epochs"]]
            for value in values:
                try:
                    self.train_config(
                        variant,
                        {**middle, name: value},
                        dataset=self.dataset,
                        fingerprint="",
                        side_px=64,
                        seed=0,
                        overrides={},
                    )
                except (ValueError, TypeError) as error:
                    problems.append(f"{variant}: {error}")
        return problems


def ends(distribution: BaseDistribution) -> list[Any]:
    """Return a numeric range's two ends, or all choices of a categorical one."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return [distribution.low, distribution.high]
    raise ValueError(f"Unknown kind of range: {distribution!r}.")


def tried(distribution: BaseDistribution) -> list[Any]:
    """Return the values that stand for a range when it is checked: its ends and all choices.

    Of whole numbers the second one too: what divides the first and the second divides all.
    """
    values = ends(distribution)
    if isinstance(distribution, IntDistribution) and not distribution.log:
        values.append(min(distribution.low + distribution.step, distribution.high))
    elif isinstance(distribution, IntDistribution):
        values.append(min(distribution.low + 1, distribution.high))
    return values


def trial_seed(sweep_seed: int, variant: str, number: int) -> int:
    """Return a trial's own seed, 0 to 2**31 - 1, a function of sweep seed, variant and number."""
    digest = hashlib.sha256(f"{sweep_seed}/{variant}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def is_better(value: float, other: float, mode: str) -> bool:
    """Return whether a metric's value beats another; NaN never does."""
    if math.isnan(value):
        return False
    return math.isnan(other) or (value > other if mode == "max" else value < other)
