"""Which differences between variants are significant, at equal trials and at equal compute."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.ledger.records import ENDED
from orchestrator.report.document.blocks import Block, Column, Matrix, Section, Table, Text, counted
from orchestrator.report.facts import Record, SweepData, figures_of
from orchestrator.report.statistics import Difference, holm, welch

TITLE = "Are the differences significant?"
TRIALS, COMPUTE = "equal trials", "equal compute"

_DEFINITION = (
    "Each pair of variants is compared twice. At equal trials: the first n search trials of each "
    "variant count, with the largest n for which all of these trials have ended. At equal compute: "
    "the search trials of each variant count in the order in which they ended, up to the total "
    "device-seconds of the cheaper of the two searches.",
    "Each variant is represented by the configuration with the best validation result among the "
    "trials that count. The values compared are the test top-1 of its seeds. For a variant with "
    "nothing to search, the trials that count are its seeds.",
    "A difference is significant if its 95 % confidence interval (Welch's t test) excludes zero. "
    'Without an interval ("too few seeds"), a variant has fewer than two evaluated seeds, or each '
    "variant's seeds have equal results. If the best of the trials that count is not the "
    "configuration that was retrained, the variant has no seeds to compare.",
    "The interval covers only the variation between seeds, not that between samples of test images "
    "or between searches. The table also shows which differences remain significant when all pairs "
    "are tested together (Holm's correction at 5 %).",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two variants compared; `difference` is first minus second, in fractions of test top-1."""

    first: str
    second: str
    by: str
    budget: float  # trials, or device-seconds
    seeds: tuple[int, int]
    difference: Difference | None
    reason: str  # why there is no difference

    @property
    def winner(self) -> str | None:
        """The better variant, None if the difference is not significant."""
        if self.difference is None or not self.difference.is_significant:
            return None
        return self.first if self.difference.mean > 0 else self.second


def pairs(sweep: SweepData) -> Section:
    """Return the comparison of all pairs, from-scratch and pretrained variants separately."""
    blocks: list[Block | str] = []
    for group in sweep.groups():
        if len(group.variants) >= 2:
            found = compare(group)
            blocks += [_matrix(group, found, by) for by in (TRIALS, COMPUTE)]
            blocks.append(_table(group, found))
    blocks = blocks or ["There are fewer than two variants to compare."]
    return Section.of("pairs", TITLE, Text(_DEFINITION), *blocks)


def compare(sweep: SweepData) -> list[Pair]:
    """Return all pairs of variants, compared at equal trials and at equal compute."""
    done, leading = {}, {}
    for variant in sweep.variants:
        planned = sorted(sweep.of(variant, "search"), key=lambda r: r.trial.number)
        # Trials after the first that has not ended overtook it.
        leading[variant] = list(itertools.takewhile(_has_ended, planned))
        done[variant] = sorted(filter(_has_ended, planned), key=lambda r: r.trial.ended_seq or 0)
    found = []
    for names in itertools.combinations(sweep.variants, 2):
        trials = min(len(leading[name]) for name in names)
        first = [leading[name][:trials] for name in names]
        found.append(_pair(sweep, names, TRIALS, trials, first))
        compute_s = min(sum(r.device_s for r in done[name]) for name in names)
        within = [_within(done[name], compute_s) for name in names]
        found.append(_pair(sweep, names, COMPUTE, compute_s, within))
    return found


def _has_ended(record: Record) -> bool:
    return record.trial.status in ENDED


def _within(done: Sequence[Record], compute_s: float) -> list[Record]:
    """Return the leading trials whose device-seconds add up to at most `compute_s`."""
    sums = itertools.accumulate(record.device_s for record in done)
    # The tolerance is for sums of the same floats in another order.
    return [r for r, spent in zip(done, sums, strict=True) if spent <= compute_s * (1 + 1e-9)]


def _pair(
    sweep: SweepData,
    names: tuple[str, str],
    by: str,
    budget: float,
    counting: Sequence[Sequence[Record]],
) -> Pair:
    values, reasons = [], []
    for name, records in zip(names, counting, strict=True):
        seeds, reason = _seeds(sweep, name, records)
        values.append(figures_of(seeds, "top1"))
        if not reason and len(seeds) < 2:
            reason = f"{name} has {counted(len(seeds), 'evaluated seed')}."
        reasons.append(reason)
    difference = welch(*values)
    if difference is None and not any(reasons):
        reasons.append("The seeds of neither variant differ.")
    counts = len(values[0]), len(values[1])
    return Pair(*names, by, budget, counts, difference, " ".join(filter(None, reasons)))


def _seeds(sweep: SweepData, variant: str, records: Sequence[Record]) -> tuple[list[Record], str]:
    """Return the evaluated seeds of the best of these trials, or why there are none."""
    if not sweep.is_searched(variant):
        return [r for r in records if r.trial.status == "complete" and r.evaluation], ""
    best = sweep.best(records)
    if best is None:
        return [], f"No trial of {variant} that counts is complete."
    # The best of these trials may have been retrained before a longer search found a better one.
    finals = [r for r in sweep.of(variant, "final") if r.evaluation]
    seeds = [r for r in finals if r.trial.params == best.trial.params]
    if seeds:  # trials with and without a validation split repeat the same seeds
        last = max(seeds, key=lambda record: record.trial.planned_seq)
        seeds = [r for r in seeds if r.has_validation == last.has_validation]
    if not seeds and finals:
        return [], f"{best.name}, the best trial of {variant} that counts, was not retrained."
    return seeds, ""


def _matrix(sweep: SweepData, found: Sequence[Pair], by: str) -> Matrix:
    cells: dict[tuple[str, str], tuple[str, str]] = {}
    for pair in found:
        if pair.by != by:
            continue
        for sign, row, column in ((1, pair.first, pair.second), (-1, pair.second, pair.first)):
            text, style = _verdict(pair, pair.winner is not None), "open"
            if d := pair.difference:
                low, high = sorted(100 * sign * end for end in (d.low, d.high))
                text += f"|{100 * sign * d.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
                style = {None: "open", row: "wins", column: "loses"}[pair.winner]
            cells[row, column] = (text, style)
    names = sweep.variants
    return Matrix(
        name=f"pairs-{by.split()[1]}-{sweep.kind.replace(' ', '-')}",
        title=f"At {by}, {sweep.kind}",
        names=names,
        cells=[[cells.get((row, column), ("", "")) for column in names] for row in names],
        note="Row minus column in percentage points of test top-1, with the 95 % confidence "
        "interval. Green: the row's variant is significantly better. Red: significantly worse.",
    )


def _verdict(pair: Pair, is_significant: bool) -> str:
    if pair.difference is None:
        return "too few seeds"
    return "significant" if is_significant else "not significant"


def _table(sweep: SweepData, found: Sequence[Pair]) -> Table:
    holds: dict[int, bool] = {}
    for by in (TRIALS, COMPUTE):
        tested = [i for i, pair in enumerate(found) if pair.by == by and pair.difference]
        p_values = [d.p for i in tested if (d := found[i].difference)]
        holds |= dict(zip(tested, holm(p_values), strict=True))
    return Table(
        name=f"pairs{sweep.suffix}",
        title=f"All pairs, {sweep.kind}",
        columns=(
            *Column.of(first="first variant", second="second variant", by="compared at"),
            *Column.of("number", budget="budget (trials or device-seconds)"),
            *Column.of("count", first_seeds="seeds of the first"),
            *Column.of("count", second_seeds="seeds of the second"),
            *Column.of("points", difference="difference", low="CI low", high="CI high"),
            *Column.of(significant="tested alone", significant_holm="all pairs tested together"),
            *Column.of(reason="why there is no interval"),
        ),
        rows=[
            [
                *(pair.first, pair.second, pair.by, pair.budget, *pair.seeds),
                *((d.mean, d.low, d.high) if (d := pair.difference) else (None, None, None)),
                _verdict(pair, pair.winner is not None),
                _verdict(pair, holds.get(index, False)),
                pair.reason,
            ]
            for index, pair in enumerate(found)
        ],
        is_folded=True,
    )
