"""What the space's source has published beside ours, with every reason why they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.document.blocks import Block, Column, Section, Table, text
from orchestrator.report.facts import Record, SweepData, estimated, mean
from orchestrator.report.sections.overview import deviations
from orchestrator.report.statistics import estimate


def published(facts: SweepData) -> Section:
    """Return the source's own table beside ours, with every reason why they are not the same."""
    said = facts.said.get("published") or {}
    rows: list[Mapping[str, Any]] = said.get("rows", [])
    source, notes = str(said.get("source", "")), [str(n) for n in said.get("recipe_notes", ())]
    if not (rows or source or notes):
        lines = text("This space reproduces no published study, so there is nothing to compare.")
        return Section(name="published", title="Published and ours", blocks=(lines,))
    blocks: list[Block] = [text(f"Source: {source}.")] if source else []
    unlike = deviations(facts)
    if unlike:
        blocks.append(text("Ours departs from the published recipe:", is_warning=True))
        blocks.append(text(*unlike))
    if notes:
        blocks.append(text("What the source leaves open or what is done otherwise here:"))
        blocks.append(text(*notes))
    if rows:
        blocks += _tables(facts, rows)
    else:
        blocks.append(text("The source has no figures that ours could be set beside."))
    return Section(name="published", title="Published and ours", blocks=tuple(blocks))


def _tables(facts: SweepData, rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    tables = [
        Table(
            name="published",
            title="Accuracy, published and ours",
            columns=_PUBLISHED_COLUMNS,
            rows=[line for row in rows for line in _published_lines(facts, row)],
            note="Ours: mean over the seeds, in brackets their standard deviation and number. "
            "Validation is at the epoch that was kept; the loss is of the part that the published "
            "one is of. Where the published validation images are this project's test split, that "
            "figure stands under test. A row without a variant is shown for "
            "comparison: its model is not of this sweep.",
        )
    ]
    if any(row.get(name) is not None for row in rows for name in _AVERAGES):
        tables.append(_averages(facts, rows))
    if odd := [[_label(row), note] for row in rows if (note := _note(row))]:
        tables.append(
            Table(
                name="published_notes",
                title="What is odd about the published figures",
                columns=(Column("label", "published as"), Column("note", "note")),
                rows=odd,
            )
        )
    if sizes := [_size_line(facts, row) for row in rows if _has_size(row)]:
        tables.append(
            Table(
                name="published_size",
                title="Size, published and ours",
                columns=_SIZE_COLUMNS,
                rows=sizes,
                note="Published totals of Keras models count the running statistics of batch norm. "
                "FLOPs as published, in the source's unit; ours in both. A row without a variant "
                "is shown for comparison.",
            )
        )
    return tables


_AVERAGES = ("precision", "recall", "f1")


def _averages(facts: SweepData, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return averages over classes: the published ones, then ours."""
    theirs = [
        [_label(row), _top1(row), *(row.get(name) for name in _AVERAGES)]
        for row in rows
        if any(row.get(name) is not None for name in _AVERAGES)
    ]
    ours = [
        [
            f"ours: {variant}",
            estimated(evaluated, "top1").mean,
            *(estimated(evaluated, name, "macro").mean for name in _AVERAGES),
        ]
        for variant in facts.variants
        if (evaluated := facts.evaluated(variant))
    ]
    return Table(
        name="published_averages",
        title="Averages over classes, published and ours",
        columns=(
            Column("label", "of"),
            Column("top1", "top-1", "percent"),
            Column("precision", "precision", "percent"),
            Column("recall", "recall", "percent"),
            Column("f1", "F1", "percent"),
        ),
        rows=[*theirs, *ours],
        note="Ours are unweighted means over the classes of the test split, and over seeds.",
    )


def _top1(row: Mapping[str, Any]) -> float | None:
    value: float | None = row.get("test_top1")
    return row.get("val_top1") if value is None else value


_PUBLISHED_COLUMNS = (
    Column("label", "published as"),
    Column("variant", "variant"),
    Column("ours_from", "ours from"),
    Column("published_train_top1", "train top-1 published", "percent"),
    Column("ours_train_top1", "train top-1, ours", "percent"),
    Column("published_val_top1", "val top-1 published", "percent"),
    Column("ours_val_top1", "val top-1, ours"),
    Column("published_test_top1", "test top-1 published", "percent"),
    Column("ours_test_top1", "test top-1, ours"),
    Column("difference_test_top1", "difference", "points"),
    Column("published_loss", "loss published", "loss"),
    Column("ours_loss", "loss, ours", "loss"),
)


def _published_lines(facts: SweepData, row: Mapping[str, Any]) -> list[list[Any]]:
    """Return a published row once for each kind of trial that stands beside it."""
    variant, number = row.get("variant"), row.get("enqueued")
    ours: list[tuple[str, Sequence[Record]]] = []
    if variant in facts.variants and number is not None:
        ours.append((f"trial {number}", enqueued_trial(facts, variant, number)))
    elif variant in facts.variants:
        seeds = facts.seeds(variant)
        if seeds and facts.is_searched(variant):
            ours.append(("best found", seeds))
        elif seeds:
            ours.append(("the recipe", seeds))
        if recipe := enqueued_trial(facts, variant, 0):
            ours.append(("the recipe, first trial", recipe))
    return [_published_line(row, what, records) for what, records in ours or [("", ())]]


def enqueued_trial(facts: SweepData, variant: str, number: int) -> list[Record]:
    """Return the prescribed trial of a searched variant with this number, if it was evaluated.

    Several prescribed ones differ in their configuration, so their mean would be of nothing.
    """
    if not facts.is_searched(variant):
        return []
    return [
        record
        for record in facts.of(variant, "search")
        if record.trial.number == number
        and record.evaluation is not None
        and record.trial.status == "complete"
    ]


def _published_line(row: Mapping[str, Any], what: str, records: Sequence[Record]) -> list[Any]:
    evaluated = [record for record in records if record.evaluation is not None]
    val = [record.at(record.kept_epoch, "val_top1") for record in records]
    train = [record.at(record.kept_epoch, "train_top1") for record in records]
    test = estimated(evaluated, "top1")
    their_val, theirs = row.get("val_top1"), row.get("test_top1")
    if row.get("val_is_test") and theirs is None:
        their_val, theirs = None, their_val
    loss = estimated(evaluated, "loss").mean
    if theirs is None:
        loss = mean([record.at(record.kept_epoch, "val_loss") for record in records])
    both = theirs is not None and test.mean is not None
    return [
        _label(row),
        row.get("variant"),
        what or None,
        row.get("train_top1"),
        mean(train),
        their_val,
        _with_sd(val),
        theirs,
        _with_sd([float(r.evaluation["top1"]) for r in evaluated if r.evaluation]),
        (test.mean or 0.0) - (theirs or 0.0) if both else None,
        row.get("loss"),
        loss if row.get("loss") is not None else None,
    ]


def _label(row: Mapping[str, Any]) -> str:
    return str(row.get("label") or row.get("variant"))


def _note(row: Mapping[str, Any]) -> str:
    note = row.get("note") or ""
    if row.get("val_is_test") and row.get("test_top1") is None:
        return f"Published as validation; those images are our test split. {note}".strip()
    return str(note)


def _with_sd(fractions: Sequence[float]) -> str | None:
    """Return "63.1 (± 0.4, n = 3)" of fractions, None of none."""
    found = estimate(fractions)
    if found.mean is None:
        return None
    spread = "" if found.sd is None else f"± {100 * found.sd:.1f}, "
    return f"{100 * found.mean:.1f} ({spread}n = {found.n})"


_SIZE_COLUMNS = (
    Column("label", "published as"),
    Column("variant", "variant"),
    Column("published_parameters", "parameters published", "count"),
    Column("ours_parameters", "ours, trainable", "count"),
    Column("ours_parameters_with_statistics", "ours, with statistics", "count"),
    Column("published_flops", "FLOPs published", "mega"),
    Column("ours_multiply_accumulates", "ours, multiply-accumulates", "mega"),
    Column("ours_flops", "ours, FLOPs", "mega"),
)


def _has_size(row: Mapping[str, Any]) -> bool:
    """Return whether a row says something of a model's size, or ours stands beside it."""
    # The model of a row of one enqueued trial is that of the recipe's row.
    is_ours = row.get("variant") is not None and row.get("enqueued") is None
    return is_ours or row.get("parameters") is not None or row.get("flops") is not None


def _size_line(facts: SweepData, row: Mapping[str, Any]) -> list[Any]:
    variant = row.get("variant")
    cost: Mapping[str, Any] = facts.said.get("variants", {}).get(variant, {})
    evaluated = [r for r in facts.of(str(variant)) if r.evaluation]
    some: Mapping[str, Any] = (evaluated[0].evaluation if evaluated else None) or {}
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
