"""Every deviation of a sweep from the recipe of its space, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.data.known_datasets import published_dataset
from orchestrator.ledger.header import RecordedSpace
from orchestrator.report.facts import SweepData


def deviations(sweep: SweepData) -> list[str]:
    """Return one sentence for everything that differs from the space's recipe."""
    lines = [*_changed_epochs(sweep), *_changed_overrides(sweep), *_changed_variants(sweep)]
    lines += [*_given(sweep), *_sample(sweep)]
    if times := len(sweep.header.former_plans):
        count = "once" if times == 1 else f"{times} times"
        lines.append(f"The sweep was resumed with changed values (--force) {count}.")
    return lines


def _changed_variants(sweep: SweepData) -> list[str]:
    space, given = sweep.plan.space, sweep.header.options.get("image_size")
    own, planned = list(space.variants), list(sweep.plan.image_size_px)
    lines = []
    if left_out := [name for name in own if name not in planned]:
        lines.append(f"Variants left out: {', '.join(left_out)}.")
    if added := [name for name in planned if name not in own]:
        lines.append(f"Variants that the space does not list: {', '.join(sorted(added))}.")
    by_variant = space.image_size_by_variant
    if given and {str(by_variant.get(n, space.image_size)) for n in planned} != {str(given)}:
        exceptions = ", ".join(f"{size} for {name}" for name, size in by_variant.items())
        was = f"{space.image_size} ({exceptions})" if exceptions else space.image_size
        sizes = ", ".join(f"{n} {sweep.plan.image_size_px.get(n)} px" for n in sweep.variants)
        lines.append(f"Image size: {given} (--image-size) instead of {was}. Sizes used: {sizes}.")
    return lines


def _given(sweep: SweepData) -> list[str]:
    """Return a sentence for each flag that changes the sweep without changing a trial's values."""
    options, own = sweep.header.options, sweep.header.space_own  # empty in older ledgers
    flags = [("trials", "Trials per variant")]
    if any(sweep.is_searched(variant) for variant in sweep.variants):
        flags.append(("final_seeds", "Final seeds"))  # otherwise the trials are the seeds
    lines, unknown = [], "; the space's own value was not recorded"
    for flag, title in flags:
        given, name = options.get(flag), f"--{flag.replace('_', '-')}"
        if given not in (None, own.get(flag)):
            was = f" instead of {own[flag]}" if flag in own else unknown
            lines.append(f"{title}: {given} ({name}){was}.")
    is_recipe = "validation_fraction" in sweep.plan.overrides
    has_finals = any(record.trial.stage == "final" for record in sweep.records)
    if options.get("final_on_all") and (is_recipe or has_finals):
        lines.append(
            f"The {'trials' if is_recipe else 'final seeds'} were trained on all training images "
            "without a validation split (--final-on-all), so they have no validation metrics."
        )
    if options.get("dataset") and options["dataset"] != own.get("dataset"):
        replaced = own.get("dataset", "the space's own")
        lines.append(f"Dataset: {options['dataset']} (--dataset) instead of {replaced}.")
    if options.get("seed"):
        lines.append(f"Sweep seed: {options['seed']} instead of 0.")
    return lines


def _sample(sweep: SweepData) -> Iterator[str]:
    """Yield which share of the official dataset was used, unless all of it was."""
    official, images = published_dataset(sweep.plan.dataset), sweep.images
    if official is None or not images:
        return
    classes, train, test = official.classes, official.images["train"], official.images["test"]
    own_train, own_test = images.get("train", 0), images.get("test", 0)
    own_classes = len(sweep.class_names) or classes
    if (own_classes, own_train, own_test) != (classes, train, test):
        text = f"Only a sample of the dataset was used: {own_train:,} of {train:,} training images"
        text += f", {own_test:,} of {test:,} test images, {own_classes} of {classes} classes. The "
        yield f"{text}results of this report cannot be compared with results on the whole dataset."


def _changed_epochs(sweep: SweepData) -> Iterator[str]:
    """Yield a sentence on the epochs, and on each span that `Plan.train_config` shortens too."""
    given, fixed = sweep.plan.overrides.get("epochs"), sweep.plan.space.fixed
    if given is None:
        return
    own = {name: fixed.get(name, {}).get("epochs") for name in sweep.variants}
    changed = {name: str(epochs) for name, epochs in own.items() if epochs not in (None, given)}
    if not changed:
        return
    yield f"Epochs: {given} instead of {_by_variant(changed)}."
    for span in ("warmup_epochs", "freeze_epochs"):
        changes = {v: _shortened_span(sweep.plan.space, v, span, given) for v in sweep.variants}
        shortened = {name: change for name, change in changes.items() if change}
        if shortened and span not in sweep.plan.overrides:
            yield f"{span}, in proportion to the epochs: {_by_variant(shortened)}."


def _shortened_span(space: RecordedSpace, variant: str, span: str, given: int) -> str | None:
    """Return how a span of a variant changes, None if it stays the same."""
    fixed: Mapping[str, Any] = space.fixed.get(variant, {})
    own, epochs = fixed.get(span), fixed.get("epochs", 0)
    if given >= epochs:
        return None
    if span in space.params.get(variant, {}):
        return "less than the searched value of each trial"
    if not own:
        return None
    new = own * given / epochs if span == "warmup_epochs" else own * given // epochs
    return None if new == own else f"{new:.3g} instead of {own:g}"


def _by_variant(values: Mapping[str, str]) -> str:
    """Return the values of variants: "1 (cnn2); 2 (cnn3)"; a single value without its variants."""
    variants: dict[str, list[str]] = {}
    for name, value in values.items():
        variants.setdefault(value, []).append(name)
    if len(variants) == 1:
        return next(iter(variants))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in variants.items())


def _changed_overrides(sweep: SweepData) -> list[str]:
    """Return a sentence for each other training parameter that the command line set."""
    lines, fixed = [], sweep.plan.space.fixed
    for name, value in sorted(sweep.plan.overrides.items()):
        if name in ("epochs", "validation_fraction"):  # they have sentences of their own
            continue
        own = sorted({str(fixed[v][name]) for v in sweep.variants if name in fixed.get(v, {})})
        if own != [str(value)]:
            lines.append(f"{name}: {value} instead of {', '.join(own) or 'its default'}.")
    return lines
