"""The leaderboard: how good each variant is, what its search did, and what it costs."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.ledger.records import TrialStatus
from orchestrator.report.document.blocks import Block, Column, Kind, Section, Table, text
from orchestrator.report.facts import Record, SweepData, estimated, mean
from trainables.metrics import is_fraction

# An evaluation measures inference at once; it does not wait until the device is free.
SHARED = (
    "Inference time was measured while other trials of the sweep may have shared the device; a "
    "model may be faster on a device of its own."
)
# Models of studies whose text does not fully specify them.
_RECONSTRUCTED = {
    "cnn9": "cnn9 is a reconstruction: its study gives only the numbers of layers and parameters."
}
_INTRODUCTION = (
    "The search used only the validation split. The best configuration of each variant was then "
    "retrained with several seeds, and each retrained model was evaluated once on the test split. "
    "For a variant with nothing to search, its trials are the seeds.",
    "Test metrics are means over the seeds, with the sample standard deviation (sd) and the "
    "95 % confidence interval of Student's t (CI low to CI high). A single seed has neither.",
    "The interval covers the variation between seeds only; other test images would add to it. With "
    "few seeds it is wide and may exceed 100 %.",
)


def leaderboard(sweep: SweepData) -> Section:
    """Return ranking, searches and costs, from-scratch and pretrained variants in separate tables.

    Variants are ranked by their mean test top-1; those without one follow, by validation.
    """
    blocks: list[Block] = [text(*_INTRODUCTION)]
    for is_pretrained, variants in sweep.groups():
        blocks += _tables(sweep, variants, is_pretrained)
    return Section("leaderboard", "Leaderboard", tuple(blocks))


def _tables(sweep: SweepData, variants: Sequence[str], is_pretrained: bool) -> list[Table]:
    kind = "pretrained" if is_pretrained else "from scratch"
    suffix = "_pretrained" if is_pretrained else ""
    return [
        Table(
            name=f"leaderboard{suffix}",
            title=f"Leaderboard, {kind}",
            columns=_columns(sweep),
            rows=sorted((_row(sweep, v, is_pretrained) for v in variants), key=_rank(sweep)),
            note=_note(sweep, variants, is_pretrained),
        ),
        Table(
            name=f"searches{suffix}",
            title=f"Search results, {kind}",
            columns=_search_columns(sweep),
            rows=[_search_row(sweep, variant, is_pretrained) for variant in variants],
        ),
        Table(
            name=f"cost{suffix}",
            title=f"Cost, {kind}",
            columns=_COST_COLUMNS,
            rows=[_cost(sweep, variant, is_pretrained) for variant in variants],
            note=_COST_NOTE,
        ),
    ]


def _columns(sweep: SweepData) -> tuple[Column, ...]:
    kind = metric_kind(sweep.metric)
    return (
        Column("variant", "variant"),
        Column(f"best_{sweep.metric}", f"best {sweep.metric} of the search", kind),
        Column("seeds", "seeds", "count"),
        Column(f"seeds_{sweep.metric}", f"{sweep.metric} of the seeds", kind),
        *Column.of("percent", test_top1_mean="test top-1", test_top1_sd="sd"),
        *Column.of("percent", test_top1_low="CI low", test_top1_high="CI high"),
        *Column.of("percent", test_top5_mean="test top-5"),
        *Column.of("loss", test_loss_mean="test loss"),
        *Column.of("percent", test_f1_macro_mean="macro F1", test_ece_mean="ECE"),
        *Column.of("percent", test_superclass_top1_mean="superclass top-1"),
    )


def _row(sweep: SweepData, variant: str, is_pretrained: bool) -> list[Any]:
    search = [r for r in sweep.of(variant, "search") if r.is_pretrained == is_pretrained]
    best = sweep.best(search)
    seeds, evaluated = sweep.seeds(variant, is_pretrained), sweep.evaluated(variant, is_pretrained)
    top1 = estimated(evaluated, "top1")
    return [
        variant,
        best.trial.best_value if best else None,
        len(evaluated) or len(seeds),
        mean([record.at(record.kept_epoch, sweep.metric) for record in seeds]),
        *(top1.mean, top1.sd, top1.low, top1.high),
        *(estimated(evaluated, *path).mean for path in _TEST_METRICS),
    ]


_TEST_METRICS = (("top5",), ("loss",), ("f1", "macro"), ("ece",), ("superclass_top1",))


def _search_columns(sweep: SweepData) -> tuple[Column, ...]:
    return (
        Column("variant", "variant"),
        *Column.of("count", trials="trials", **{status: status for status in _ENDINGS}),
        Column("left", "not ended", "count"),
        Column(f"best_{sweep.metric}", f"best {sweep.metric}", metric_kind(sweep.metric)),
        *Column.of("count", best_epoch="best epoch", best_number="best trial"),
        Column("params", "best hyperparameters"),
    )


_ENDINGS: tuple[TrialStatus, ...] = ("complete", "stopped", "diverged", "failed")


def _search_row(sweep: SweepData, variant: str, is_pretrained: bool) -> list[Any]:
    search = [r for r in sweep.of(variant, "search") if r.is_pretrained == is_pretrained]
    status = collections.Counter(record.trial.status for record in search)
    best = sweep.best(search)
    known = [status[each] for each in _ENDINGS]
    counts = [variant, len(search), *known, len(search) - sum(known)]
    if best is None:
        return [*counts, None, None, None, None]
    found = best.trial
    params = ", ".join(f"{name} {_short(value)}" for name, value in found.params.items())
    return [*counts, found.best_value, (found.best_epoch or 0) + 1, found.number, params]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _rank(sweep: SweepData) -> Any:
    worse = 1 if sweep.plan.space.mode == "min" else -1

    def key(row: Sequence[Any]) -> tuple[bool, float, bool, float]:
        value, top1 = row[1], row[4]
        return top1 is None, -(top1 or 0.0), value is None, worse * (value or 0.0)

    return key


def _note(sweep: SweepData, variants: Sequence[str], is_pretrained: bool) -> str:
    notes = [note for variant, note in _RECONSTRUCTED.items() if variant in variants]
    if unevaluated := [v for v in variants if not sweep.evaluated(v, is_pretrained)]:
        notes.append(f"Not yet evaluated on the test split: {', '.join(unevaluated)}.")
    small = [
        record.name
        for variant in variants
        for record in sweep.seeds(variant, is_pretrained)
        if any(attempt.micro_batch_size for attempt in record.attempts)
    ]
    if small:
        notes.append(
            "Trained in micro-batches after running out of memory, so that batch norm used the "
            f"statistics of micro-batches: {', '.join(small)}."
        )
    if images := {int(r.evaluation["images"]) for r in sweep.records if r.evaluation}:
        notes.append(f"The test split has {max(images):,} images.")
        notes.append('ECE is the expected calibration error, see "Calibration".')
    return " ".join(notes)


_COST_COLUMNS = (
    Column("variant", "variant"),
    *Column.of("count", image_size_px="image size, px", parameters="parameters"),
    *Column.of("count", parameters_with_statistics="with batch-norm statistics"),
    *Column.of("mega", multiply_accumulates="multiply-accumulates", flops="FLOPs"),
    *Column.of("count", training_images_per_s="training images/s"),
    *Column.of("ms", inference_ms="inference"),
    *Column.of("count", inference_images_per_s="inference images/s"),
    *Column.of("count", inference_batch_size="at batch size"),
    *Column.of("seconds", device_s_per_seed="device time per seed"),
    *Column.of("seconds", device_s_search="device time of the search"),
)
_COST_NOTE = (
    "Operations are those of one image's forward pass, in multiply-accumulates and in FLOPs (twice "
    "as many). Inference in ms is for batch size 1, inference in images/s for the batch size given "
    "in the table. Training speed is that of the best configuration, without the first epoch of "
    "each attempt. Device time is the duration of all attempts times their workers; a trial that "
    f"shares a device counts as a whole one. {SHARED}"
)


def _cost(sweep: SweepData, variant: str, is_pretrained: bool) -> list[Any]:
    planned: Mapping[str, Any] = sweep.header.variants.get(variant, {})
    own = [r for r in sweep.of(variant) if r.is_pretrained == is_pretrained]
    evaluated = sweep.evaluated(variant, is_pretrained)
    some: Mapping[str, Any] = (evaluated[0].evaluation if evaluated else None) or {}
    macs = some.get("multiply_accumulates", planned.get("multiply_accumulates"))
    best = sweep.best(own)
    timed = sweep.seeds(variant, is_pretrained) or ([best] if best else own)
    return [
        variant,
        planned.get("image_size_px", sweep.plan.image_size_px.get(variant)),
        some.get("parameters", planned.get("parameters")),
        some.get("parameters_with_statistics"),
        macs,
        None if macs is None else 2 * macs,
        _training_speed(timed),
        estimated(evaluated, "inference_ms").mean,
        estimated(evaluated, "inference_images_per_s").mean,
        some.get("inference_batch_size"),
        mean([r.device_s for r in sweep.seeds(variant, is_pretrained)]),
        sum(r.device_s for r in own if r.trial.stage == "search"),
    ]


def _training_speed(records: Sequence[Record]) -> float | None:
    """Return the mean training images per second, without the first epoch of each attempt.

    That epoch includes warm-up, so it counts only if there is no other.
    """
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
