"""Which differences between variants are significant, at equal trials and at equal compute."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from orchestrator.ledger.records import ENDED
from orchestrator.report.document.blocks import Block, Column, Matrix, Section, Table, Text, counted
from orchestrator.report.facts import Record, SweepData, figures_of
from orchestrator.report.statistics import Difference, holm, paired, welch

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
    "A difference is significant if its 95 % confidence interval over seeds (Welch's t test) "
    'excludes zero. Without it, the table names the reason: "best not retrained", if the best of '
    "the trials that count is not the configuration that was retrained, which is the best of the "
    'whole search (frequent at equal compute); "too few seeds", if a variant has fewer than two '
    'evaluated seeds; "seeds do not vary", if each variant\'s seeds have equal results.',
    "A second 95 % interval is over test images: how the difference would vary with another sample "
    "of them, computed from the images on which only one of the two is right. It needs one seed of "
    "each variant. Neither interval covers the variation between searches. The table also shows "
    "which differences remain significant when all pairs are tested together (Holm's correction "
    "at 5 %).",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two variants compared; differences are first minus second, in fractions of test top-1."""

    first: str
    second: str
    by: str
    budget: float  # trials, or device-seconds
    seeds: tuple[int, int]
    mean: float | None  # difference of the means over seeds, None if a variant has no seed
    difference: Difference | None
    images: tuple[float, float] | None  # interval of the difference over test images
    verdict: str  # "significant", "not significant", or in short why there is no difference
    reason: str  # the same in a sentence for each variant

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
            if any(pair.mean is not None for pair in found):
                blocks += [_matrix(group, found, by) for by in (TRIALS, COMPUTE)]
                blocks.append(_table(group, found))
    return Section.of("pairs", TITLE, *blocks, *([Text(_DEFINITION)] if blocks else ()))


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
    values, reasons, correct = [], [], []
    for name, records in zip(names, counting, strict=True):
        seeds, reason = _seeds(sweep, name, records)
        values.append(figures_of(seeds, "top1"))
        correct.append(_share_correct(seeds))
        if not reason and len(seeds) < 2:
            reason = f"{name} has {counted(len(seeds), 'evaluated seed')}."
        reasons.append(reason)
    difference = welch(*values)
    if difference is None and not any(reasons):
        reasons.append("The seeds of neither variant differ.")
    first, second = correct
    is_paired = first is not None and second is not None and len(first) == len(second)
    images = paired(first, second) if is_paired else None  # type: ignore[arg-type]
    counts = len(values[0]), len(values[1])
    text = " ".join(filter(None, reasons))
    mean = fmean(values[0]) - fmean(values[1]) if all(values) else None
    verdict = _verdict(difference, text)
    return Pair(*names, by, budget, counts, mean, difference, images, verdict, text)


def _share_correct(seeds: Sequence[Record]) -> np.ndarray | None:
    """Return the share of seeds that are right on each test image, (n,); None if it is unknown."""
    found = [record.correct for record in seeds]
    if not found or any(each is None for each in found):
        return None
    share: np.ndarray = np.mean(np.array(found), axis=0)
    return share


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
            text, style = pair.verdict, "open"
            if pair.mean is not None:
                text += f"|{100 * sign * pair.mean:+.1f}"
            if d := pair.difference:
                text += f"|seeds {_points(sign, d.low, d.high)}"
                style = {None: "open", row: "wins", column: "loses"}[pair.winner]
            if pair.images:
                text += f"|images {_points(sign, *pair.images)}"
            cells[row, column] = (text, style)
    names = sweep.variants
    return Matrix(
        name=f"pairs-{by.split()[1]}-{sweep.kind.replace(' ', '-')}",
        title=f"At {by}, {sweep.kind}",
        names=names,
        cells=[[cells.get((row, column), ("", "")) for column in names] for row in names],
        note="Row minus column in percentage points of test top-1, with the 95 % confidence "
        "intervals over seeds and over test images. Green: the row's variant is significantly "
        "better. Red: significantly worse.",
    )


def _points(sign: int, low: float, high: float) -> str:
    ends = sorted((100 * sign * low, 100 * sign * high))
    return f"[{ends[0]:+.1f}, {ends[1]:+.1f}]"


def _verdict(difference: Difference | None, reason: str) -> str:
    if difference is not None:
        return "significant" if difference.is_significant else "not significant"
    if "not retrained" in reason:
        return "best not retrained"
    return "seeds do not vary" if "neither" in reason else "too few seeds"


def _together(pair: Pair, holds: bool) -> str:
    if pair.difference is None:
        return pair.verdict
    return "significant" if holds else "not significant"


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
            *Column.of(
                "points", difference="difference", low="CI low, seeds", high="CI high, seeds"
            ),
            *Column.of("points", images_low="CI low, images", images_high="CI high, images"),
            *Column.of(significant="tested alone", significant_holm="all pairs tested together"),
            *Column.of(reason="why there is no interval over seeds"),
        ),
        rows=[
            [
                *(pair.first, pair.second, pair.by, pair.budget, *pair.seeds),
                pair.mean,
                *((d.low, d.high) if (d := pair.difference) else (None, None)),
                *(pair.images or (None, None)),
                pair.verdict,
                _together(pair, holds.get(index, False)),
                pair.reason,
            ]
            for index, pair in enumerate(found)
        ],
        is_folded=True,
    )
