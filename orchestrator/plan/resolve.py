"""Makes a `Plan` from the command line and the space, and checks it before a device is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import search_spaces
from orchestrator.errors import UsageError
from orchestrator.plan.options import SweepConfig, given_options
from orchestrator.plan.plan import Costs, Plan, VariantCost
from search_spaces.space import (
    SearchSpace,
    by_variant,
    ends,
    lost_values,
    suggestions_to_check,
    with_batch_sizes_up_to,
)
from trainables.config import ConfigError, Problem, TrainConfig
from trainables.data.dataset import Manifest
from trainables.models import build, cost

_SMALLER_BATCH: Problem = (
    "Set a smaller batch size in a space of your own",
    "",
)


def load_space(name: str) -> SearchSpace:
    """Return a space by name or path; raise a `UsageError` if there is none or it has mistakes."""
    try:
        return search_spaces.load(name)
    except ValueError as error:
        raise UsageError(str(error)) from error


def make_plan(
    config: SweepConfig, space: SearchSpace, manifest: Manifest, kept: Mapping[str, Any]
) -> tuple[Plan, dict[str, VariantCost]]:
    """Return the plan and the cost of each variant, after building every model once.

    `kept` are the options of the sweep that is resumed; flags that are given replace them. The
    plan's space has only the batch sizes that the dataset has images for, see `left_out`.

    Raises:
        UsageError: one sentence for every variant that cannot be trained.
    """
    options = {**kept, **given_options(config)}
    space = with_batch_sizes_up_to(space, manifest.images["train"])
    names = tuple(options.get("variants") or space.variants)
    overrides = _overrides(options, space, names)
    costs = _costs(space, names, options.get("image_size"), manifest, overrides)
    plan = Plan(
        space=space,
        seed=options.get("seed", 0),
        trials=options.get("trials") or space.trials,
        variants=tuple(costs),
        image_size_px={name: cost.image_size_px for name, cost in costs.items()},
        dataset=manifest.name,
        fingerprint=manifest.fingerprint,
        overrides=overrides,
        final_seeds=options.get("final_seeds", space.final_seeds),
        final_on_all=options.get("final_on_all", False),
    )
    _check_finals(plan, options)
    return plan, costs


def remarks(space: SearchSpace, plan: Plan, manifest: Manifest) -> list[str]:
    """Return the lines that a user should read before the plan of a space starts."""
    lines = left_out(space, plan, manifest)
    for variant in plan.variants:
        params = suggestions_to_check(plan.space.params_for(variant))[-1]
        if text := build.too_few_patches(plan.train_config(variant, 0, params)):
            lines.append(text)
    return lines


def left_out(space: SearchSpace, plan: Plan, manifest: Manifest) -> list[str]:
    """Return a line for the batch sizes of `space` that the plan's space lacks, if any."""
    lost: dict[str, None] = {}  # in order, without repetition
    for variant in plan.variants:
        given, kept = space.params_for(variant), plan.space.params_for(variant)
        if "batch_size" in given:
            lost |= dict.fromkeys(lost_values(given["batch_size"], kept["batch_size"]))
    if not lost:
        return []
    return [
        f"Not searched: `batch_size` {', '.join(lost)}, because {manifest.name} has only "
        f"{manifest.images['train']} training images."
    ]


def _overrides(
    options: Mapping[str, Any], space: SearchSpace, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return the training parameters that the command line sets for every trial."""
    overrides = {name: options[name] for name in ("epochs", "weights") if options.get(name)}
    if options.get("workers_per_trial", 1) > 1:
        overrides["workers"] = options["workers_per_trial"]
    if overrides.get("weights", "").endswith(".safetensors") and len(names) > 1:
        raise UsageError(
            f"`--weights` names one model's file, but {len(names)} variants are to be trained. "
            "Choose one with --variants, or give none or imagenet."
        )
    # With nothing to search the trials are the final seeds, so they train on all images.
    if options.get("final_on_all") and not any(space.params_for(name) for name in names):
        overrides["validation_fraction"] = 0.0
    return overrides


def _costs(
    space: SearchSpace,
    names: tuple[str, ...],
    image_size: str | None,
    manifest: Manifest,
    overrides: Mapping[str, Any],
) -> dict[str, VariantCost]:
    """Return the cost of each variant, in the order in which they run."""
    given = int(image_size) if image_size and image_size.isdecimal() else image_size
    costs: dict[str, VariantCost] = {}
    problems = build.unknown_variants(names)
    for name in dict.fromkeys(names):
        own = space.image_size_by_variant.get(name, space.image_size)
        try:
            if name not in problems:
                costs[name] = _cost(space, name, given or own, manifest, overrides)
        except ValueError as error:
            problems[name] = str(error)
    if problems:
        lines = by_variant((name, problems[name]) for name in names if name in problems)
        raise UsageError(
            "These variants cannot be trained with these options:\n" + "\n".join(lines)
        )
    return {name: costs[name] for name in _smallest_first(space, costs)}


def _check_finals(plan: Plan, options: Mapping[str, Any]) -> None:
    """Build one final configuration of each variant, whose values may need a validation split."""
    if options.get("final_seeds", 0) > 0 and not plan.num_finals:
        raise UsageError(
            "`--final-seeds` trains the best trial of a search again, but this space has nothing "
            "to search: every trial is one seed and is evaluated on the test split. Choose their "
            "number with `--trials`."
        )
    problems = []
    for variant in plan.variants:
        first = {name: ends(value)[0] for name, value in plan.space.params_for(variant).items()}
        try:
            if plan.final_seeds and first:
                plan.train_config(variant, 0, first, "final")
        except ValueError as error:
            problems.append((variant, str(error)))
    if problems:
        lines = by_variant(problems)
        raise UsageError(
            "With --final-on-all the final trials have no validation split:\n" + "\n".join(lines)
        )


def _cost(
    space: SearchSpace, name: str, size: str | int, manifest: Manifest, overrides: Mapping[str, Any]
) -> VariantCost:
    """Return a variant's cost, after checking it at both ends of each range."""
    size_px = build.input_size_px(name, manifest.image_size_px, size)  # type: ignore[arg-type]
    problems: list[Problem] = []
    for params in suggestions_to_check(space.params_for(name)):
        try:
            config = space.train_config(
                name,
                params,
                dataset=manifest.name,
                fingerprint=manifest.fingerprint,
                image_size_px=size_px,
                seed=0,
                overrides=overrides,
            )
            _check_model(config, manifest)
        except ConfigError as error:
            problems += error.problems
        except ValueError as error:
            problems.append((str(error).removesuffix("."), ""))
    if problems:
        raise ConfigError(*sorted(problems, key=lambda problem: problem == _SMALLER_BATCH))
    parameters, macs = cost.model_cost(
        config, num_classes=len(manifest.class_names), in_channels=manifest.channels
    )
    return VariantCost(image_size_px=size_px, parameters=parameters, multiply_accumulates=macs)


def _check_model(config: TrainConfig, manifest: Manifest) -> None:
    build.check_variant(config)
    images = manifest.images["train"]
    if config.batch_size > images:
        rule = f"`batch_size` ({config.batch_size}) exceeds the {images} training images of "
        raise ConfigError((f"{rule}{manifest.name}", ""), _SMALLER_BATCH)


def _smallest_first(space: SearchSpace, costs: Costs) -> tuple[str, ...]:
    """Return the variants by operations, those with equal resources together to reuse workers."""

    def shape(name: str) -> tuple[float, float]:
        return float(space.fixed_for(name).get("threads", 1)), space.gpus_for(name)

    by_size = sorted(costs, key=lambda name: (costs[name].multiply_accumulates, name))
    shapes = list(dict.fromkeys(map(shape, by_size)))
    return tuple(sorted(by_size, key=lambda name: shapes.index(shape(name))))
