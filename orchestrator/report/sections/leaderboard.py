"""Who is how good, and what each costs."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.ledger.records import TrialStatus
from orchestrator.report.document.blocks import Block, Column, Kind, Section, Table, text
from orchestrator.report.facts import Record, SweepData, estimated, is_fraction, mean

# A trial is timed where it is evaluated, and nobody waits for that.
SHARED = (
    "Inference time was measured while other trials of the sweep may have shared the device, so it "
    "may be longer than on a device of its own."
)
# Models of a study whose text does not settle what they look like.
_RECONSTRUCTED = {
    "cnn9": "cnn9 is a reconstruction: its study gives the number of layers and of parameters only."
}
_GROUP = {False: "from scratch", True: "pretrained"}


def leaderboard(facts: SweepData) -> Section:
    """Return the leaderboard per variant, from scratch and pretrained apart, and what each costs.

    The best mean on the test split comes first; without one, the best validation value.
    """
    blocks: list[Block] = [
        text(
            "The search saw the validation split only. The best configuration of each variant was "
            "then trained again with several seeds (of a variant with nothing to search its trials "
            "are the seeds), and each of these was evaluated once on the test split. Means are "
            "over these seeds, with the sample standard deviation and the 95 % interval of "
            "Student's t, which is of the seeds alone: other test images would move it further. "
            "With one seed there is neither."
        )
    ]
    for is_pretrained, variants in facts.groups():
        kind = _GROUP[is_pretrained]
        rows = [_row(facts, variant, is_pretrained) for variant in variants]
        suffix = "_pretrained" if is_pretrained else ""
        blocks.append(
            Table(
                name=f"leaderboard{suffix}",
                title=f"Leaderboard, {kind}",
                columns=_columns(facts),
                rows=sorted(rows, key=_rank(facts)),
                note=_note(facts, variants, is_pretrained),
            )
        )
        blocks.append(
            Table(
                name=f"searches{suffix}",
                title=f"The searches, {kind}",
                columns=_search_columns(facts),
                rows=[_search_row(facts, variant, is_pretrained) for variant in variants],
            )
        )
        blocks.append(
            Table(
                name=f"cost{suffix}",
                title=f"What each costs, {kind}",
                columns=_COST_COLUMNS,
                rows=[_cost(facts, variant, is_pretrained) for variant in variants],
                note="Operations are per image, forward, in multiply-accumulates and in FLOPs "
                "(twice as many). Inference was measured with batch 1 and with the batch size "
                "given; training speed is of the best configuration, without the first epoch of "
                "each attempt. Device-seconds are seconds of attempts times workers; a trial that "
                f"shares a device counts a whole one. {SHARED}",
            )
        )
    return Section(name="leaderboard", title="Leaderboard", blocks=tuple(blocks))


def _columns(facts: SweepData) -> tuple[Column, ...]:
    kind = metric_kind(facts.metric)
    return (
        Column("variant", "variant"),
        Column(f"best_{facts.metric}", f"search's best {facts.metric}", kind),
        Column("seeds", "seeds", "count"),
        Column(f"seeds_{facts.metric}", f"seeds' {facts.metric}", kind),
        Column("test_top1_mean", "test top-1", "percent"),
        Column("test_top1_sd", "sd", "percent"),
        Column("test_top1_low", "95 % from", "percent"),
        Column("test_top1_high", "to", "percent"),
        Column("test_top5_mean", "test top-5", "percent"),
        Column("test_loss_mean", "test loss", "loss"),
        Column("test_f1_macro_mean", "macro F1", "percent"),
        Column("test_ece_mean", "ECE", "percent"),
        Column("test_superclass_top1_mean", "superclass", "percent"),
    )


def _row(facts: SweepData, variant: str, is_pretrained: bool) -> list[Any]:
    search = [r for r in facts.of(variant, "search") if r.is_pretrained == is_pretrained]
    best = facts.best(search)
    seeds, evaluated = facts.seeds(variant, is_pretrained), facts.evaluated(variant, is_pretrained)
    top1 = estimated(evaluated, "top1")
    return [
        variant,
        best.trial.best_value if best else None,
        len(evaluated) or len(seeds),
        mean([record.at(record.kept_epoch, facts.metric) for record in seeds]),
        *(top1.mean, top1.sd, top1.low, top1.high),
        estimated(evaluated, "top5").mean,
        estimated(evaluated, "loss").mean,
        estimated(evaluated, "f1", "macro").mean,
        estimated(evaluated, "ece").mean,
        estimated(evaluated, "superclass_top1").mean,
    ]


def _search_columns(facts: SweepData) -> tuple[Column, ...]:
    return (
        Column("variant", "variant"),
        Column("trials", "trials", "count"),
        *(Column(status, status, "count") for status in _ENDINGS),
        Column("left", "not ended", "count"),
        Column(f"best_{facts.metric}", f"best {facts.metric}", metric_kind(facts.metric)),
        Column("best_epoch", "at epoch", "count"),
        Column("best_number", "trial", "count"),
        Column("params", "its parameters"),
    )


_ENDINGS: tuple[TrialStatus, ...] = ("complete", "stopped", "diverged", "failed")


def _search_row(facts: SweepData, variant: str, is_pretrained: bool) -> list[Any]:
    search = [r for r in facts.of(variant, "search") if r.is_pretrained == is_pretrained]
    status = collections.Counter(record.trial.status for record in search)
    best = facts.best(search)
    known = [status[each] for each in _ENDINGS]
    found = best.trial if best else None
    return [
        *(variant, len(search), *known, len(search) - sum(known)),
        found.best_value if found else None,
        (found.best_epoch or 0) + 1 if found else None,
        found.number if found else None,
        ", ".join(f"{k} {_short(v)}" for k, v in found.params.items()) if found else None,
    ]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _rank(facts: SweepData) -> Any:
    worse = 1 if facts.mode == "min" else -1

    def key(row: Sequence[Any]) -> tuple[bool, float, bool, float]:
        value, top1 = row[1], row[4]
        return top1 is None, -(top1 or 0.0), value is None, worse * (value or 0.0)

    return key


def _note(facts: SweepData, variants: Sequence[str], is_pretrained: bool) -> str:
    unevaluated = [v for v in variants if not facts.evaluated(v, is_pretrained)]
    notes = [text for variant, text in _RECONSTRUCTED.items() if variant in variants]
    if unevaluated:
        notes.append(f"No seed of {', '.join(unevaluated)} has been evaluated on the test split.")
    small = [
        record.name
        for variant in variants
        for record in facts.seeds(variant, is_pretrained)
        if any(attempt.micro_batch_size for attempt in record.attempts)
    ]
    if small:
        notes.append(
            f"Trained in micro-batches after running out of memory, so with batch-norm statistics "
            f"of those: {', '.join(small)}."
        )
    images = {int(r.evaluation["images"]) for r in facts.records if r.evaluation}
    if images:
        notes.append(f"The test split has {max(images):,} images.")
    return " ".join(notes)


_COST_COLUMNS = (
    Column("variant", "variant"),
    Column("image_size_px", "image size, px", "count"),
    Column("parameters", "parameters", "count"),
    Column("parameters_with_statistics", "with statistics", "count"),
    Column("multiply_accumulates", "multiply-accumulates", "mega"),
    Column("flops", "FLOPs", "mega"),
    Column("training_images_per_s", "training images/s", "count"),
    Column("inference_ms", "inference", "ms"),
    Column("inference_images_per_s", "inference images/s", "count"),
    Column("inference_batch_size", "at batch", "count"),
    Column("device_s_per_seed", "device-seconds per seed", "seconds"),
    Column("device_s_search", "of the search", "seconds"),
)


def _cost(facts: SweepData, variant: str, is_pretrained: bool) -> list[Any]:
    planned: Mapping[str, Any] = facts.said.get("variants", {}).get(variant, {})
    own = [r for r in facts.of(variant) if r.is_pretrained == is_pretrained]
    evaluated = facts.evaluated(variant, is_pretrained)
    some: Mapping[str, Any] = (evaluated[0].evaluation if evaluated else None) or {}
    macs = some.get("multiply_accumulates", planned.get("multiply_accumulates"))
    best = facts.best(own)
    timed = facts.seeds(variant, is_pretrained) or ([best] if best else own)
    return [
        variant,
        planned.get("image_size_px", facts.plan["image_size_px"].get(variant)),
        some.get("parameters", planned.get("parameters")),
        some.get("parameters_with_statistics"),
        macs,
        None if macs is None else 2 * macs,
        _training_speed(timed),
        estimated(evaluated, "inference_ms").mean,
        estimated(evaluated, "inference_images_per_s").mean,
        some.get("inference_batch_size"),
        mean([r.device_s for r in facts.seeds(variant, is_pretrained)]),
        sum(r.device_s for r in own if r.trial.stage == "search"),
    ]


def _training_speed(records: Sequence[Record]) -> float | None:
    """Return the mean images per second of training; an attempt's first epoch also warms up."""
    warm, every = [], []
    for record in records:
        known = {(row.attempt, row.epoch) for row in record.rows}
        for row in record.rows:
            every.append(row.metrics["images_per_s"])
            if (row.attempt, row.epoch - 1) in known:
                warm.append(row.metrics["images_per_s"])
    return mean(warm or every)


def metric_kind(metric: str) -> Kind:
    """Return how a metric of an epoch is printed."""
    return "percent" if is_fraction(metric) else "loss"
