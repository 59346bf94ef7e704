"""The published results of the space's source beside ours, with the reasons why they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.deviations import deviations
from orchestrator.report.document.blocks import Block, Column, Section, Table, Text
from orchestrator.report.facts import Record, SweepData, estimated, mean
from orchestrator.report.statistics import estimate

_TITLE = "Published results and ours"


def published(sweep: SweepData) -> Section:
    """Return the source's own figures beside ours, with every reason why they may differ."""
    study = sweep.header.published
    rows: list[Mapping[str, Any]] = study.get("rows", [])
    source, notes = str(study.get("source", "")), [str(n) for n in study.get("recipe_notes", ())]
    if not (rows or source or notes):
        return Section.of("published", _TITLE)
    blocks: list[Block | str] = [f"Source: {source}."] if source else []
    if lines := deviations(sweep):
        heading = "Deviations from the published recipe:"
        blocks += [Text((heading,), is_warning=True), Text(lines)]
    if notes:
        blocks += ["Details that the source leaves open, or that differ here:", Text(notes)]
    none = "The source gives no figures to compare with."
    return Section.of("published", _TITLE, *blocks, *(_tables(sweep, rows) if rows else [none]))


def _tables(sweep: SweepData, rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    tables = [
        Table(
            name="published",
            title="Accuracy, published and ours",
            columns=_PUBLISHED_COLUMNS,
            rows=[line for row in rows for line in _published_lines(sweep, row)],
            note="Our figures are means over the seeds, in brackets with their standard deviation "
            "and number. Our validation figures are those of the epoch whose weights were kept. "
            "Our loss is computed on the split of the published loss. If the published validation "
            "images are this project's test split, the published figure is shown as test. A row "
            "without a variant is shown for comparison; its model is not part of this sweep.",
        )
    ]
    if averages := [row for row in rows if any(row.get(name) is not None for name in _AVERAGES)]:
        tables.append(_averages(sweep, averages))
    notes = Table(
        name="published_notes",
        title="Remarks on the published figures",
        columns=Column.of(label="published as", note="note"),
        rows=[[_label(row), note] for row in rows if (note := _note(row))],
    )
    sizes = Table(
        name="published_size",
        title="Size, published and ours",
        columns=_SIZE_COLUMNS,
        rows=[_size_line(sweep, row) for row in rows if _has_size(row)],
        note="Published totals of Keras models include batch-norm statistics. Published FLOPs are "
        "in the unit of the source, ours in both units. A row without a variant is shown for "
        "comparison.",
    )
    return [*tables, *(table for table in (notes, sizes) if table.rows)]


_AVERAGES = ("precision", "recall", "f1")


def _averages(sweep: SweepData, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return averages over classes: the published ones, then ours."""
    lines: list[list[Any]] = []
    for row in rows:
        top1 = row.get("test_top1")
        top1 = row.get("val_top1") if top1 is None else top1
        lines.append([_label(row), top1, *map(row.get, _AVERAGES)])
    for variant in sweep.variants:
        if evaluated := sweep.evaluated(variant):
            paths = (("top1",), *((name, "macro") for name in _AVERAGES))
            means = (estimated(evaluated, *path).mean for path in paths)
            lines.append([f"ours: {variant}", *means])
    return Table(
        name="published_averages",
        title="Averages over classes, published and ours",
        columns=(
            *Column.of(label="model"),
            *Column.of("percent", top1="top-1", precision="precision", recall="recall", f1="F1"),
        ),
        rows=lines,
        note="Our figures are unweighted means over the classes of the test split, and over seeds.",
    )


_PUBLISHED_COLUMNS = (
    *Column.of(label="published as", variant="variant", ours_from="our trials"),
    *Column.of("percent", published_train_top1="published train top-1"),
    *Column.of("percent", ours_train_top1="our train top-1"),
    *Column.of("percent", published_val_top1="published val top-1"),
    *Column.of("estimate", ours_val_top1="our val top-1"),
    *Column.of("percent", published_test_top1="published test top-1"),
    *Column.of("estimate", ours_test_top1="our test top-1"),
    *Column.of("points", difference_test_top1="difference of test top-1"),
    *Column.of("loss", published_loss="published loss", ours_loss="our loss"),
)


def _published_lines(sweep: SweepData, row: Mapping[str, Any]) -> list[list[Any]]:
    """Return a published row once for each kind of our trials that it is compared with."""
    variant, number = row.get("variant"), row.get("enqueued")
    ours: list[tuple[str, Sequence[Record]]] = []
    if variant in sweep.variants and number is not None:
        ours.append((f"trial {number}", enqueued_trial(sweep, variant, number)))
    elif variant in sweep.variants:
        if seeds := sweep.seeds(variant):
            ours.append(("best configuration" if sweep.is_searched(variant) else "recipe", seeds))
        if recipe := enqueued_trial(sweep, variant, 0):
            ours.append(("recipe (first trial)", recipe))
    return [_published_line(row, which, records) for which, records in ours or [("", ())]]


def enqueued_trial(sweep: SweepData, variant: str, number: int) -> list[Record]:
    """Return the enqueued trial of a searched variant with this number, if it was evaluated.

    Enqueued trials differ in their configurations, so no mean is taken over several of them.
    """
    if not sweep.is_searched(variant):
        return []
    found = [r for r in sweep.of(variant, "search") if r.trial.number == number]
    return [r for r in found if r.evaluation and r.trial.status == "complete"]


def _published_line(row: Mapping[str, Any], which: str, records: Sequence[Record]) -> list[Any]:
    names = ("train_top1", "val_top1", "val_loss")
    train, val, val_loss = ([r.at(r.kept_epoch, name) for r in records] for name in names)
    test = estimated(records, "top1")
    published_val, published_test = row.get("val_top1"), row.get("test_top1")
    if row.get("val_is_test") and published_test is None:
        published_val, published_test = None, published_val
    loss = mean(val_loss) if published_test is None else estimated(records, "loss").mean
    has_both = published_test is not None and test.mean is not None
    return [
        _label(row),
        row.get("variant"),
        which or None,
        row.get("train_top1"),
        mean(train),
        published_val,
        estimate(val) if mean(val) is not None else None,
        published_test,
        test if test.n else None,
        (test.mean or 0.0) - (published_test or 0.0) if has_both else None,
        row.get("loss"),
        loss if row.get("loss") is not None else None,
    ]


def _label(row: Mapping[str, Any]) -> str:
    return str(row.get("label") or row.get("variant"))


def _note(row: Mapping[str, Any]) -> str:
    note = row.get("note") or ""
    if row.get("val_is_test") and row.get("test_top1") is None:
        return f"Published as validation; these images are our test split. {note}".strip()
    return str(note)


_SIZE_COLUMNS = (
    *Column.of(label="published as", variant="variant"),
    *Column.of("count", published_parameters="published parameters"),
    *Column.of("count", ours_parameters="our trainable parameters"),
    *Column.of("count", ours_parameters_with_statistics="with batch-norm statistics"),
    *Column.of("mega", published_flops="published FLOPs"),
    *Column.of("mega", ours_multiply_accumulates="our multiply-accumulates"),
    *Column.of("mega", ours_flops="our FLOPs"),
)


def _has_size(row: Mapping[str, Any]) -> bool:
    """Return whether a row gives a model's size, or is compared with the size of ours."""
    # A row for one enqueued trial has the same model as the recipe's row.
    is_ours = row.get("variant") is not None and row.get("enqueued") is None
    return is_ours or row.get("parameters") is not None or row.get("flops") is not None


def _size_line(sweep: SweepData, row: Mapping[str, Any]) -> list[Any]:
    variant = row.get("variant")
    cost: Mapping[str, Any] = sweep.header.variants.get(str(variant), {})
    some = next((r.evaluation for r in sweep.of(str(variant)) if r.evaluation), {})
    macs = some.get("multiply_accumulates", cost.get("multiply_accumulates"))
    return [
        _label(row),
        variant,
        row.get("parameters"),
        some.get("parameters", cost.get("parameters")),
        some.get("parameters_with_statistics"),
        row.get("flops"),
        macs,
        None if macs is None else 2 * macs,
    ]
