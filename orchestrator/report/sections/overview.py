"""The report's first section: what was run, on what, with which versions, and what is unlike."""

from __future__ import annotations

import collections
import datetime
from collections.abc import Mapping
from typing import Any

from orchestrator.data.known import published_dataset
from orchestrator.report.document.blocks import Block, Column, Section, Table, text
from orchestrator.report.facts import SweepData


def head(facts: SweepData, written_s: float) -> Section:
    """Return what, when, on which data, and every deviation from the space's recipe.

    Args:
        facts: the sweep.
        written_s: when this report is written, in seconds since 1970.
    """
    blocks: list[Block] = [
        Table(
            name="sweep",
            title="The sweep",
            columns=(Column("what", "what"), Column("value", "value")),
            rows=_facts(facts, written_s),
        )
    ]
    unlike = deviations(facts)
    if unlike:
        blocks.append(text("Departures from the space's recipe:", is_warning=True))
        blocks.append(text(*unlike))
    else:
        blocks.append(text("The command changed nothing of the space's recipe."))
    if not facts.has_ended():
        blocks.append(text("No trial of this sweep has finished yet.", is_warning=True))
    return Section(name="sweep", title="What was run", blocks=tuple(blocks))


def deviations(facts: SweepData) -> list[str]:
    """Return one sentence for everything that is not as the space says."""
    lines = [*_changed_epochs(facts), *_changed_overrides(facts), *_changed_variants(facts)]
    lines += _given(facts)
    if sample := sample_of(facts):
        lines.append(sample)
    if facts.said.get("former_plans"):
        count = len(facts.said["former_plans"])
        lines.append(f"The sweep was continued with changed values (--force), {count} times.")
    return lines


def _changed_variants(facts: SweepData) -> list[str]:
    space, options = facts.plan["space"], facts.said.get("options", {})
    own, run = list(space["variants"]), list(facts.plan["image_size_px"])
    lines = []
    if left_out := [name for name in own if name not in run]:
        lines.append(f"Variants left out: {', '.join(left_out)}.")
    if added := [name for name in run if name not in own]:
        lines.append(f"Variants that the space does not list: {', '.join(sorted(added))}.")
    own_sizes = {space["image_size_by_variant"].get(name, space["image_size"]) for name in run}
    if options.get("image_size") and {str(size) for size in own_sizes} != {
        str(options["image_size"])
    }:
        sizes = ", ".join(
            f"{name} {facts.plan['image_size_px'].get(name)} px" for name in facts.variants
        )
        lines.append(
            f"Image size: {options['image_size']} (--image-size) in place of {_size_of(space)}; "
            f"{sizes}."
        )
    return lines


def _given(facts: SweepData) -> list[str]:
    """Return a sentence for each flag that changes what is computed without changing a trial."""
    options = facts.said.get("options", {})
    own: Mapping[str, Any] = facts.said.get("space_own") or {}  # older ledgers do not know it
    flags = [("trials", "Trials per variant")]
    if any(facts.is_searched(variant) for variant in facts.variants):
        flags.append(("final_seeds", "Final seeds"))  # else the trials are the seeds
    lines = []
    for flag, what in flags:
        given, name = options.get(flag), f"--{flag.replace('_', '-')}"
        if given is None or given == own.get(flag):
            continue
        lines.append(
            f"{what}: {given} ({name}) in place of {own[flag]}."
            if flag in own
            else f"{what}: {given}, given by {name}, not the space's."
        )
    is_recipe = "validation_fraction" in facts.plan["overrides"]
    has_finals = any(record.trial.stage == "final" for record in facts.records)
    if options.get("final_on_all") and (is_recipe or has_finals):
        lines.append(
            f"The {'trials' if is_recipe else 'final seeds'} were trained on the whole training "
            "part (--final-on-all), so they have no validation figures."
        )
    if options.get("dataset") and options["dataset"] != own.get("dataset"):
        replaced = own.get("dataset", "the space's")
        lines.append(f"Dataset: {options['dataset']} (--dataset) in place of {replaced}.")
    if options.get("seed"):
        lines.append(f"Seed of the sweep: {options['seed']} in place of 0.")
    return lines


def sample_of(facts: SweepData) -> str | None:
    """Return the sentence that says how much of the official dataset this is; None: all of it."""
    images = facts.said.get("manifest", {}).get("images", {})
    official = published_dataset(str(facts.plan["dataset"]))
    if official is None or not images:
        return None
    classes, train, test = official.classes, official.train_images, official.test_images
    own_train, own_test = images.get("train", 0), images.get("test", 0)
    own_classes = len(facts.class_names) or classes
    if (own_classes, own_train, own_test) == (classes, train, test):
        return None
    return (
        f"A sample of the dataset: {own_train:,} of {train:,} training images, {own_test:,} of "
        f"{test:,} test images, {own_classes} of {classes} classes. No figure of this report can "
        "be set against one of the whole dataset."
    )


def _changed_epochs(facts: SweepData) -> list[str]:
    given = facts.plan["overrides"].get("epochs")
    fixed = facts.plan["space"]["fixed"]
    own = {
        name: fixed[name]["epochs"]
        for name in facts.variants
        if name in fixed and fixed[name].get("epochs") not in (None, given)
    }
    if given is None or not own:
        return []
    by_epochs = collections.defaultdict(list)
    for name, epochs in own.items():
        by_epochs[epochs].append(name)
    if len(by_epochs) == 1:
        said = str(next(iter(by_epochs)))
    else:
        said = "; ".join(f"{epochs} ({', '.join(names)})" for epochs, names in by_epochs.items())
    return [f"Epochs: {given} in place of {said}.", *_shortened(facts, given)]


def _shortened(facts: SweepData, given: int) -> list[str]:
    """Return a sentence for each span that shrinks with the epochs, as `train_config` does it."""
    space, overrides = facts.plan["space"], facts.plan["overrides"]
    lines = []
    for span in ("warmup_epochs", "freeze_epochs"):
        names = collections.defaultdict(list)
        for name in facts.variants:
            fixed = space["fixed"].get(name, {})
            own, epochs = fixed.get(span), fixed.get("epochs", 0)
            if given >= epochs or span in overrides:
                continue
            if span in space["params"].get(name, {}):
                names["shorter than the trial's own, which is searched"].append(name)
            if not own:
                continue
            new = own * given / epochs if span == "warmup_epochs" else own * given // epochs
            if new != own:
                names[f"{new:.3g} in place of {own:g}"].append(name)
        if len(names) == 1:
            lines.append(f"`{span}`, shortened with the epochs: {next(iter(names))}.")
        elif names:
            said = "; ".join(f"{what} ({', '.join(of)})" for what, of in names.items())
            lines.append(f"`{span}`, shortened with the epochs: {said}.")
    return lines


def _changed_overrides(facts: SweepData) -> list[str]:
    """Return a sentence for each other training parameter that the command line decided."""
    lines = []
    fixed = facts.plan["space"]["fixed"]
    for name, value in sorted(facts.plan["overrides"].items()):
        if name in ("epochs", "validation_fraction"):  # which have sentences of their own
            continue
        own = sorted({str(fixed[v][name]) for v in facts.variants if name in fixed.get(v, {})})
        if own != [str(value)]:
            lines.append(f"`{name}`: {value} in place of {', '.join(own) or 'its default'}.")
    return lines


def _size_of(space: Mapping[str, Any]) -> str:
    own = ", ".join(f"{size} for {name}" for name, size in space["image_size_by_variant"].items())
    return f"{space['image_size']}" + (f" ({own})" if own else "")


def _facts(facts: SweepData, written_s: float) -> list[tuple[str, str]]:
    said, plan = facts.said, facts.plan
    images = said.get("manifest", {}).get("images", {})
    starts = [a.started_s for record in facts.records for a in record.attempts]
    ends = [record.span_s(a)[1] for record in facts.records for a in record.attempts]
    devices = sorted({str(r.evaluation["device"]) for r in facts.records if r.evaluation})
    status = collections.Counter(record.trial.status for record in facts.records)
    rows = [
        ("name", facts.name),
        ("space", str(said.get("space", plan["space"]["name"]))),
        ("source", str(said.get("published", {}).get("source", ""))),
        ("sweep id", str(said.get("sweep_id", ""))),
        ("created", _time(said.get("created_s"))),
        ("first attempt began", _time(min(starts, default=None))),
        ("last attempt ended", _time(max(ends, default=None))),
        ("report written", _time(written_s)),
        ("dataset", str(plan["dataset"])),
        ("its fingerprint", str(plan["fingerprint"])),
        ("its images", ", ".join(f"{n:,} {part}" for part, n in images.items())),
        ("classes", str(len(facts.class_names) or "")),
        ("variants", ", ".join(facts.variants)),
        ("searched for", f"{facts.metric} ({plan['space']['mode']}), on the validation split"),
        ("trials", ", ".join(f"{n} {each}" for each, n in sorted(status.items())) or "none"),
        ("seed", str(plan["seed"])),
        ("test split evaluated on", "; ".join(devices)),
        ("versions", ", ".join(f"{k} {v}" for k, v in sorted(said.get("versions", {}).items()))),
    ]
    return [(what, value) for what, value in rows if value]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
