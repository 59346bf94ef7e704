"""The leaderboard: accuracy, search results and cost of each variant."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.ledger.records import TrialStatus
from orchestrator.report.document.blocks import Block, Column, Kind, Section, Table, Text
from orchestrator.report.facts import Record, SweepData, estimated, mean
from orchestrator.report.statistics import wilson
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
_EXPLANATION = (
    "The search used only the validation split. The best configuration of each variant was then "
    "retrained with other seeds, and each retrained model was evaluated once on the test split. "
    "A variant with nothing to search is not retrained: its trials differ only in their seeds.",
    "Test metrics are means over the seeds, with the sample standard deviation (sd) and two 95 % "
    "confidence intervals, each of one source of variation alone. The interval of the seeds is "
    "Student's t: how the result varies with the seed, on these test images. A single seed has "
    "none, and neither have seeds with equal results. With few seeds it is wide, and its upper end "
    "may exceed 100 %.",
    "The interval of the test images is Wilson's: how the result varies with the sample of test "
    "images. It is there for a single seed too.",
)


def leaderboard(sweep: SweepData) -> Section:
    """Return ranking, searches and costs, from-scratch and pretrained variants in separate tables.

    Variants are ranked by their mean test top-1; those without one follow, by validation.
    """
    is_evaluated = any(sweep.evaluated(variant) for variant in sweep.variants)
    blocks: list[Block] = []
    for group in sweep.groups():
        ranked = _leaderboard(group)
        # Variant and number of seeds, which every row has, are no result.
        if any(value is not None for row in ranked.rows for value in (row[1], *row[3:])):
            blocks.append(ranked)
        blocks += [_searches(group)] if sweep.records else []
        costs = _costs(group)
        # Before the first trial there may be no more than the image size.
        if any(value is not None for row in costs.rows for value in row[2:]):
            blocks.append(costs)
    blocks += [Text(_EXPLANATION)] if is_evaluated else []
    return Section.of("leaderboard", "Leaderboard", *blocks)


_TEST_METRICS = (("top5",), ("loss",), ("f1", "macro"), ("ece",), ("superclass_top1",))


def _leaderboard(sweep: SweepData) -> Table:
    kind, rows = metric_kind(sweep.metric), [_row(sweep, variant) for variant in sweep.variants]
    return Table(
        name=f"leaderboard{sweep.suffix}",
        title=f"Leaderboard, {sweep.kind}",
        columns=(
            Column("variant", "variant"),
            Column(f"best_{sweep.metric}", f"best {sweep.metric} of the search", kind),
            Column("seeds", "seeds", "count"),
            Column(f"seeds_{sweep.metric}", f"mean {sweep.metric} of the seeds", kind),
            *Column.of("percent", test_top1_mean="test top-1", test_top1_sd="sd"),
            *Column.of("interval", test_top1="95 % interval, seeds"),
            *Column.of("interval", test_top1_images="95 % interval, images"),
            *Column.of("percent", test_top5_mean="test top-5"),
            *Column.of("loss", test_loss_mean="test loss"),
            *Column.of("percent", test_f1_macro_mean="macro F1", test_ece_mean="ECE"),
            *Column.of("percent", test_superclass_top1_mean="superclass top-1"),
        ),
        rows=sorted(rows, key=lambda row: _rank(row, sweep.plan.space.mode)),
        note=_note(sweep),
    )


def _row(sweep: SweepData, variant: str) -> list[Any]:
    best = sweep.best(sweep.of(variant, "search"))
    seeds, evaluated = sweep.seeds(variant), sweep.evaluated(variant)
    top1 = estimated(evaluated, "top1")
    images = int(evaluated[0].evaluation["images"]) if evaluated else 0
    of_seeds = None if top1.low is None else (top1.low, top1.high)
    of_images = None if top1.mean is None else wilson(top1.mean, images)
    return [
        variant,
        best.trial.best_value if best else None,
        len(evaluated) or len(seeds),
        mean([record.at(record.kept_epoch, sweep.metric) for record in seeds]),
        *(top1.mean, top1.sd, of_seeds, of_images),
        *(estimated(evaluated, *path).mean for path in _TEST_METRICS),
    ]


_ENDINGS: tuple[TrialStatus, ...] = ("complete", "stopped", "diverged", "failed")


def _searches(sweep: SweepData) -> Table:
    return Table(
        name=f"searches{sweep.suffix}",
        title=f"Search results, {sweep.kind}",
        columns=(
            Column("variant", "variant"),
            *Column.of("count", trials="trials", **{status: status for status in _ENDINGS}),
            Column("left", "not ended", "count"),
            Column(f"best_{sweep.metric}", f"best {sweep.metric}", metric_kind(sweep.metric)),
            *Column.of("count", best_epoch="best epoch", best_number="best trial"),
            Column("params", "best hyperparameters"),
        ),
        rows=[_search_row(sweep, variant) for variant in sweep.variants],
    )


def _search_row(sweep: SweepData, variant: str) -> list[Any]:
    search = sweep.of(variant, "search")
    status = collections.Counter(record.trial.status for record in search)
    best = sweep.best(search)
    known = [status[each] for each in _ENDINGS]
    counts = [variant, len(search), *known, len(search) - sum(known)]
    if best is None:
        return [*counts, None, None, None, None]
    found = best.trial
    params = ", ".join(f"{name} {short(value)}" for name, value in found.params.items())
    return [*counts, found.best_value, (found.best_epoch or 0) + 1, found.number, params]


def short(value: Any) -> str:
    """Return a hyperparameter's value as printed: floats with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _rank(row: Sequence[Any], mode: str) -> tuple[bool, float, bool, float]:
    value, top1 = row[1], row[4]
    worse = 1 if mode == "min" else -1
    return top1 is None, -(top1 or 0.0), value is None, worse * (value or 0.0)


def _note(sweep: SweepData) -> str:
    notes = [note for variant, note in _RECONSTRUCTED.items() if variant in sweep.variants]
    if unevaluated := [variant for variant in sweep.variants if not sweep.evaluated(variant)]:
        notes.append(f"Not yet evaluated on the test split: {', '.join(unevaluated)}.")
    seeds = [record for variant in sweep.variants for record in sweep.seeds(variant)]
    if small := [r.name for r in seeds if any(a.micro_batch_size for a in r.attempts)]:
        notes.append(
            "Trained in micro-batches after running out of memory, so that batch norm used the "
            f"statistics of micro-batches: {', '.join(small)}."
        )
    if count := sweep.validation_images:
        notes.append(f"The validation split has {count:,} images.")
    if images := {int(r.evaluation["images"]) for r in sweep.records if r.evaluation}:
        notes.append(f"The test split has {max(images):,} images.")
        notes.append('ECE is the expected calibration error, see "Calibration".')
    return " ".join(notes)


_COST_COLUMNS = (
    Column("variant", "variant"),
    *Column.of("count", image_size_px="image size, px", parameters="parameters"),
    *Column.of("count", parameters_with_statistics="with batch-norm statistics"),
    *Column.of("mega", multiply_accumulates="MACs", flops="FLOPs"),
    *Column.of("count", training_images_per_s="training images/s"),
    *Column.of("ms", inference_ms="inference"),
    *Column.of("count", inference_images_per_s="inference images/s"),
    *Column.of("count", inference_batch_size="at batch size"),
    *Column.of("seconds", device_s_per_seed="device time per seed"),
    *Column.of("seconds", device_s_search="device time of the search"),
)
_COST_NOTE = (
    "Operations are those of one image's forward pass, in multiply-accumulates (MACs) and in FLOPs "
    "(twice as many). Inference in ms is for batch size 1, inference in images/s for the batch "
    "size given in the table. Training speed is that of the best configuration, without the first "
    "epoch of each attempt. Device time is the duration of all attempts times their workers; a "
    f"trial that shares a device counts as if it had one of its own. {SHARED}"
)


def _costs(sweep: SweepData) -> Table:
    return Table(
        name=f"cost{sweep.suffix}",
        title=f"Cost, {sweep.kind}",
        columns=_COST_COLUMNS,
        rows=[list(cost_of(sweep, variant).values()) for variant in sweep.variants],
        note=_COST_NOTE,
    )


def cost_of(sweep: SweepData, variant: str) -> dict[str, Any]:
    """Return the row of a variant in the table of costs, by the keys of its columns."""
    planned: Mapping[str, Any] = sweep.header.variants.get(variant, {})
    own, seeds, evaluated = sweep.of(variant), sweep.seeds(variant), sweep.evaluated(variant)
    some = evaluated[0].evaluation if evaluated else {}
    macs = some.get("multiply_accumulates", planned.get("multiply_accumulates"))
    best = sweep.best(own)
    values = [
        variant,
        planned.get("image_size_px", sweep.plan.image_size_px.get(variant)),
        some.get("parameters", planned.get("parameters")),
        some.get("parameters_with_statistics"),
        macs,
        None if macs is None else 2 * macs,
        _training_speed(seeds or ([best] if best else own)),
        *(estimated(evaluated, f"inference_{name}").mean for name in ("ms", "images_per_s")),
        some.get("inference_batch_size"),
        mean([record.device_s for record in seeds]),
        sum(record.device_s for record in sweep.of(variant, "search")) if own else None,
    ]
    return {column.key: value for column, value in zip(_COST_COLUMNS, values, strict=True)}


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
