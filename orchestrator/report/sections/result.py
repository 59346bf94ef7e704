"""The answer: the best variant, its test result, its hyperparameters and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orchestrator.ledger import ranking
from orchestrator.ledger.records import ENDED
from orchestrator.report.deviations import deviations
from orchestrator.report.document.blocks import Block, Card, Cards, Section, Text, counted, printed
from orchestrator.report.facts import Record, SweepData, estimated
from orchestrator.report.sections import overview, pairs
from orchestrator.report.sections.leaderboard import cost_of, metric_kind, short
from orchestrator.report.statistics import wilson

# Shown of a variant with nothing to search, whose recipe has some fifty values.
_MAIN = ("optimizer", "lr", "weight_decay", "batch_size", "epochs")


def result(sweep: SweepData) -> Section:
    """Return the best variant of each group on four cards, and how it was chosen."""
    blocks: list[Block | str] = []
    groups, choices = sweep.groups(), []
    for group in groups:
        if found := chosen(group):
            title = f"Best variant, {group.kind}" if len(groups) > 1 else ""
            blocks.append(_cards(group, found, title))
            choices += _choice(group, found) if len(group.variants) > 1 else []
    blocks += dict.fromkeys(choices)  # each sentence once
    waiting = [r for r in sweep.records if r.trial.status not in ENDED]
    if not blocks:
        blocks.append(Text(("No trial of this sweep has finished yet.",), is_warning=True))
    if waiting:
        some = f"{counted(len(waiting), 'trial')} of {len(sweep.records):,}"
        blocks.append(f"Not ended: {some}. The result may change.")
    if lines := deviations(sweep):
        found_lines = counted(len(lines), "deviation")
        text = f'{found_lines} from the recipe of the space, see "{overview.TITLE}".'
        blocks.append(Text((text,), is_warning=True))
    return Section.of("result", "Result", *blocks)


def chosen(sweep: SweepData) -> Record | None:
    """Return the trial that stands for the best variant, None if no trial has a result.

    It is the best by validation, as for `predict`. Without any validation split it is one of the
    variant with the best mean test top-1: nothing else distinguishes the variants.
    """
    records = {r.trial.signature: r for v in sweep.variants for r in sweep.of(v)}
    best = ranking.best_trial([r.trial for r in records.values()], sweep.plan.space.mode)
    if best is None:
        return None
    leader = _leader(sweep)
    if leader and _is_by_test(records[best.signature]):
        return sweep.evaluated(leader)[0]
    return records[best.signature]


def _is_by_test(record: Record) -> bool:
    """Return whether a trial has no validation result, neither its own nor that of its origin."""
    return record.trial.stage == "search" and not record.has_validation


def _leader(sweep: SweepData) -> str | None:
    """Return the variant with the best mean test top-1, None if none was evaluated."""
    top1 = {v: estimated(sweep.evaluated(v), "top1").mean for v in sweep.variants}
    return max((v for v in top1 if top1[v] is not None), key=lambda v: top1[v] or 0, default=None)


def _cards(sweep: SweepData, best: Record, title: str) -> Cards:
    variant = best.trial.variant
    image_size = sweep.plan.image_size_px.get(variant)
    others = len(sweep.variants) - 1
    lines = [sweep.kind if best.is_pretrained else f"trained {sweep.kind}"]
    lines += [f"images of {image_size} px"] if image_size else []
    lines.append(f"compared with {counted(others, 'other variant')}" if others else "only variant")
    return Cards(
        title=title,
        cards=(
            Card("Best variant", variant, lines),
            _accuracy(sweep, best),
            _hyperparameters(sweep, best),
            _cost(sweep, variant),
        ),
    )


def _accuracy(sweep: SweepData, best: Record) -> Card:
    seeds = sweep.evaluated(best.trial.variant)
    kind, value = metric_kind(sweep.metric), best.at(best.kept_epoch, sweep.metric)
    unit = " %" if kind == "percent" else ""
    shown = f"{printed(value, kind)}{unit}"
    of = f", n = {n:,} images" if (n := sweep.validation_images) else ""
    if not seeds:
        name = f"{sweep.metric} on the validation split"
        return Card(name, shown, [*([of[2:]] if of else []), "not evaluated on the test split yet"])
    top1, images = estimated(seeds, "top1"), int(seeds[0].evaluation["images"])
    mean = top1.mean or 0.0
    over_images = printed(wilson(mean, images), "interval")
    lines = [f"95 % interval over test images: {over_images} %, n = {images:,}"]
    if top1.low is not None:
        over_seeds = printed((top1.low, top1.high), "interval")
        lines.append(f"95 % interval over seeds: {over_seeds} %, n = {top1.n}")
    elif top1.n == 1:
        lines.append("one seed, so no interval over seeds")
    else:
        lines.append(f"equal in all {top1.n} seeds, so no interval over seeds")
    if not math.isnan(value):
        lines.append(f"{sweep.metric} on the validation split: {shown}{of}")
    return Card("Test top-1", f"{printed(mean, 'percent')} %", lines)


def _hyperparameters(sweep: SweepData, best: Record) -> Card:
    params: Mapping[str, Any] = best.trial.params
    value = "the recipe of the space"
    if params:
        own = sweep.best(sweep.of(best.trial.variant, "search"))
        number = own.trial.number if own else best.trial.number
        value = f"from search trial {number}"
    else:
        params = {n: best.trial.config[n] for n in _MAIN if n in best.trial.config}
    lines = [f"{name} {short(each)}" for name, each in params.items()]
    return Card("Hyperparameters", value, lines)


def _cost(sweep: SweepData, variant: str) -> Card:
    cost = cost_of(sweep, variant)
    whole_s = sum(record.device_s for record in sweep.records)
    per_seed, search_s = cost["device_s_per_seed"], cost["device_s_search"]
    lines = [f"device time; its search {_duration(search_s)}, whole sweep {_duration(whole_s)}"]
    if cost["parameters"] is not None:
        lines.append(f"{cost['parameters']:,} parameters")
    if cost["multiply_accumulates"] is not None:
        mega = (f"{printed(cost[each], 'mega')} M" for each in ("multiply_accumulates", "flops"))
        lines.append("{} multiply-accumulates, {} FLOPs per image".format(*mega))
    if cost["inference_ms"] is not None:
        lines.append(f"inference of one image: {printed(cost['inference_ms'], 'ms')} ms")
    if per_seed is None:
        lines[0] = f"device time; whole sweep {_duration(whole_s)}"
        return Card("Cost", f"{_duration(search_s)} of search", lines)
    return Card("Cost", f"{_duration(per_seed)} per training", lines)


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _choice(sweep: SweepData, best: Record) -> list[str]:
    """Return how the best variant was chosen, and which one has the better test result."""
    if _is_by_test(best):
        return [
            "There is no validation split, so the best variant is that with the highest mean test "
            "top-1. As the best of several test results it is optimistic."
        ]
    of = f" ({n:,} images)" if (n := sweep.validation_images) else ""
    text = f"The best variant is chosen by {sweep.metric} on the validation split{of}, not by "
    lines = [text + "test results: the best of several test results is optimistic."]
    leader = _leader(sweep)
    if leader and sweep.evaluated(best.trial.variant) and leader != best.trial.variant:
        mean = printed(estimated(sweep.evaluated(leader), "top1").mean, "percent")
        lines.append(f'{leader} has a higher test top-1, {mean} %; see "{pairs.TITLE}".')
    return lines
