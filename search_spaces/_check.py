"""Checks of a `SearchSpace`. Not a space itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from search_spaces.space import Published, SearchSpace, by_variant, ends, suggestions_to_check
from trainables.config import ConfigError, Problem, field_names, sentences, unknown_field
from trainables.metrics import METRIC_NAMES, is_fraction
from trainables.models.build import unknown_variants

# Fields that the orchestrator sets for each trial.
_DECIDED_ELSEWHERE = {"variant", "dataset", "dataset_fingerprint", "seed", "image_size_px"}
_DECIDED_ELSEWHERE |= {"workers", "micro_batch_size"}
_SETTABLE = [name for name in field_names() if name not in _DECIDED_ELSEWHERE]
# Fields of the space itself, and what else they are called.
_OF_SPACE = {item.name: item.name for item in fields(SearchSpace)}
_OF_SPACE |= dict.fromkeys(("model", "models", "model_name", "arch", "architecture"), "variants")
_OF_SPACE |= dict.fromkeys(("img_size", "input_size", "resolution"), "image_size")

# Metrics with one sensible direction; the others can be optimized either way.
_DIRECTION = {"train_loss": "min", "val_loss": "min"} | {
    name: "max" for name in METRIC_NAMES if is_fraction(name)
}


def problems_of(space: SearchSpace) -> list[str]:
    """Return one sentence for each mistake in a space's values."""
    problems = _type_problems(space)
    if not problems:
        problems = [
            *_name_problems(space),
            *_range_problems(space),
            *_number_problems(space),
            *_choice_problems(space),
            *_published_problems(space),
        ]
        if problems:  # otherwise the sweep finds unknown variants, with those of `--variants`
            problems += unknown_variants(space.variants).values()
    if not problems:
        problems = by_variant(
            (variant, text)
            for variant in space.variants
            for text in _config_problems(
                space, variant, suggestions_to_check(space.params_for(variant))
            )
        )
        for number, values in enumerate(space.enqueued):
            problems += _enqueued_problems(space, f"`enqueued[{number}]`", values)
    return list(dict.fromkeys(problems))


def _type_problems(space: SearchSpace) -> list[str]:
    """Return a problem for each field of a wrong type; values are checked only without them."""
    problems = []
    tuples = (("variants", "names"), ("recipe_notes", "texts"), ("published", "`Published`"))
    for name, what in tuples:
        value, kind = getattr(space, name), Published if name == "published" else str
        if not isinstance(value, tuple | list) or not all(isinstance(item, kind) for item in value):
            problems.append(f"`{name}` must be a tuple of {what}; got {value!r}.")
    for name in ("name", "dataset", "metric", "mode", "source"):
        if not isinstance(getattr(space, name), str):
            problems.append(f"`{name}` must be a text; got {getattr(space, name)!r}.")
    return problems + _mapping_problems(space)


def _mapping_problems(space: SearchSpace) -> list[str]:
    problems = []
    mappings = {
        name: getattr(space, name)
        for name in ("base", "params", "by_variant", "image_size_by_variant", "gpus_by_variant")
    }
    if isinstance(space.by_variant, Mapping):
        mappings |= {f"by_variant[{name!r}]": own for name, own in space.by_variant.items()}
    if isinstance(space.enqueued, tuple | list):
        mappings |= {f"enqueued[{number}]": own for number, own in enumerate(space.enqueued)}
    else:
        problems.append(f"`enqueued` must be a tuple of dictionaries; got {space.enqueued!r}.")
    for name, value in mappings.items():
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            problems.append(f"`{name}` must be a dictionary with names as keys; got {value!r}.")
    return problems


def _name_problems(space: SearchSpace) -> list[str]:
    problems, unknown = [], []
    for where, names in (
        ("base", space.base),
        ("params", space.params),
        *((f"by_variant[{v!r}]", values) for v, values in space.by_variant.items()),
    ):
        for name in names:
            if name in _DECIDED_ELSEWHERE:
                problems.append(
                    f"In `{where}`: {name!r} is set by the sweep; remove it from the space."
                )
            elif name in _OF_SPACE:
                problems.append(
                    f"In `{where}`: {name!r} is not a training parameter; set `{_OF_SPACE[name]}` "
                    "of `SearchSpace` instead."
                )
            elif name not in _SETTABLE:
                unknown.append(f"In `{where}`: {unknown_field(name, _SETTABLE)}")
    if unknown:
        unknown[-1] += f" Known: {', '.join(sorted(_SETTABLE))}."
    named = {*space.by_variant, *space.image_size_by_variant, *space.gpus_by_variant}
    if unlisted := ", ".join(sorted(named - set(space.variants))):
        problems.append(f"Settings are given for {unlisted}, which `variants` does not list.")
    return problems + unknown


def _range_problems(space: SearchSpace) -> list[str]:
    problems = [
        f"`params[{name!r}]` must be a FloatDistribution, IntDistribution or "
        f"CategoricalDistribution of Optuna; got {value!r}. A fixed value belongs in `base`."
        for name, value in space.params.items()
        if not isinstance(value, BaseDistribution)
    ]
    problems += [
        f"`base[{name!r}]` is a range; it belongs in `params`."
        for name, value in space.base.items()
        if isinstance(value, BaseDistribution)
    ]
    if both := sorted(set(space.base) & set(space.params)):
        problems.append(f"Both in `base` and in `params`: {', '.join(both)}.")
    searched = {name for variant in space.variants for name in space.params_for(variant)}
    if "epochs" in searched | set(space.params):
        problems.append(
            "`epochs` cannot be searched; early stopping decides which trials train longer."
        )
    elif not all("epochs" in space.fixed_for(variant) for variant in space.variants):
        problems.append("`base` must set `epochs`.")
    if "threads" in searched:
        problems.append("`threads` cannot be searched; a variant's trials use the same resources.")
    return problems


def _number_problems(space: SearchSpace) -> list[str]:
    problems = []
    if not space.variants or len(set(space.variants)) != len(space.variants):
        problems.append(f"`variants` must name each model once; got {space.variants!r}.")
    for name, low in (
        ("trials", 1),
        ("first_rung_epochs", 0),
        ("startup_trials", 0),
        ("max_attempts", 1),
        ("keep_best", 0),
        ("final_seeds", 0),
        ("rung_factor", 2),
    ):
        value = getattr(space, name)
        if type(value) is not int or value < low:
            problems.append(f"`{name}` must be a whole number, {low} or more; got {value!r}.")
    if type(space.trials) is int and 0 < space.trials < len(space.enqueued):
        problems.append(
            f"`trials` must be at least {len(space.enqueued)}, the number of `enqueued` "
            f"configurations; got {space.trials}."
        )
    return problems


def _choice_problems(space: SearchSpace) -> list[str]:
    problems = []
    if space.metric not in METRIC_NAMES:
        problems.append(f"`metric` must be one of {', '.join(METRIC_NAMES)}.")
    if space.mode not in ("max", "min"):
        problems.append(f"`mode` must be 'max' or 'min'; got {space.mode!r}.")
    elif space.metric in METRIC_NAMES and space.mode != _DIRECTION.get(space.metric, space.mode):
        problems.append(
            f"`metric` {space.metric!r} needs `mode` {_DIRECTION[space.metric]!r}; got "
            f"{space.mode!r}."
        )
    for size in (space.image_size, *space.image_size_by_variant.values()):
        if size not in ("native", "paper") and not (type(size) is int and size > 0):
            problems.append(f"An image size must be 'native', 'paper' or pixels; got {size!r}.")
    for share in (space.gpus_per_trial, *space.gpus_by_variant.values()):
        if not (_is_number(share) and share >= 0) or (share > 1 and share != int(share)):
            problems.append(
                f"A trial's share of GPUs must be 0 to 1, or a whole number; got {share!r}."
            )
    return problems


def _config_problems(
    space: SearchSpace, variant: str, suggestions: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return one sentence for each rule that a configuration of one of the suggestions breaks."""
    problems: list[Problem] = []
    for params in suggestions:
        try:
            space.train_config(
                variant, params, dataset="", fingerprint="", image_size_px=64, seed=0, overrides={}
            )
        except ConfigError as error:
            problems += error.problems
        except (ValueError, TypeError) as error:
            problems.append((str(error).removesuffix("."), ""))
    return sentences(problems)


def _published_problems(space: SearchSpace) -> list[str]:
    problems = []
    for number, row in enumerate(space.published):
        where = f"`published[{number}]`"
        if not isinstance(row.label, str) or not row.label:
            problems.append(f"{where}: `label` must be a text; got {row.label!r}.")
        if not isinstance(row.note, str):
            problems.append(f"{where}: `note` must be a text; got {row.note!r}.")
        if row.variant is not None and row.variant not in space.variants:
            problems.append(
                f"{where}: `variant` must be one of {', '.join(space.variants)}, or None for a "
                f"model that is shown for comparison; got {row.variant!r}."
            )
        problems += _published_number_problems(where, row)
        problems += _row_enqueued_problems(space, where, row)
    return problems


def _published_number_problems(where: str, row: Published) -> list[str]:
    problems = [
        f"{where}: `{name}` must be a fraction, 0 to 1 (0.77 for 77 %); got {value!r}."
        for name in ("train_top1", "val_top1", "test_top1", "precision", "recall", "f1")
        if (value := getattr(row, name)) is not None and not (_is_number(value) and 0 <= value <= 1)
    ]
    if row.loss is not None and not (_is_number(row.loss) and row.loss >= 0):
        problems.append(f"{where}: `loss` must be finite and 0 or more; got {row.loss!r}.")
    problems += [
        f"{where}: `{name}` must be a whole number, 1 or more; got {value!r}."
        for name in ("parameters", "flops")
        if (value := getattr(row, name)) is not None and (type(value) is not int or value < 1)
    ]
    return problems


def _row_enqueued_problems(space: SearchSpace, where: str, row: Published) -> list[str]:
    """Return why a published row's `enqueued` names no trial to compare it with."""
    if row.enqueued is None:
        return []
    if row.variant is None:
        return [f"{where}: `enqueued` needs a `variant`; give one."]
    if row.variant not in space.variants:
        return []  # reported by `_published_problems`
    count = len(space.enqueued) if space.params_for(row.variant) else 0
    if type(row.enqueued) is int and 0 <= row.enqueued < count:
        return []
    rule = f"must be a number from 0 to {count - 1}" if count else "must be None"
    why = "" if count else f", as no trial of {row.variant} is enqueued"
    return [f"{where}: `enqueued` {rule}{why}; got {row.enqueued!r}."]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _enqueued_problems(space: SearchSpace, where: str, values: Mapping[str, Any]) -> list[str]:
    """Return why variants with ranges cannot be trained with an enqueued configuration."""
    misfits, refused = [], []
    for variant in space.variants:
        ranges = space.params_for(variant)
        if ranges and set(values) != set(ranges):
            text = (
                f"{where} must give exactly the searched parameters, {', '.join(sorted(ranges))}; "
                f"got {', '.join(sorted(values)) or 'none'}."
            )
            misfits.append((variant, text))
        elif ranges:
            outside = [
                (
                    variant,
                    f"{where}: {name!r} must lie in its range, {_shown(ranges[name])}; got "
                    f"{value!r}.",
                )
                for name, value in values.items()
                if not _lies_in(ranges[name], value)
            ]
            misfits += outside
            if not outside:
                refused += [(variant, text) for text in _config_problems(space, variant, [values])]
    return [*by_variant(misfits), *(f"{where}: {line}" for line in by_variant(refused))]


def _lies_in(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):  # of another type
        return False


def _shown(distribution: BaseDistribution) -> str:
    values = ends(distribution)
    if isinstance(distribution, CategoricalDistribution):
        return f"one of {', '.join(map(repr, values))}"
    return f"{values[0]} to {values[-1]}"
