"""Which difference between two variants is resolved, at equal trials and at equal compute."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.ledger.records import ENDED
from orchestrator.report.document.blocks import Block, Column, Matrix, Section, Table, text
from orchestrator.report.facts import Record, SweepData, ended, figures_of
from orchestrator.report.statistics import Difference, holm, welch

TITLE = "Resolved or not"
TRIALS, COMPUTE = "equal trials", "equal compute"

_DEFINITION = (
    "Each pair is compared twice. Equal trials: of each variant the first n search trials count, n "
    "being the largest for which all of these have ended. Equal compute: of each variant those "
    "trials count that had ended, in order, within the smaller sum of device-seconds of the two "
    "searches.",
    "In both, a variant stands for the configuration that is the best, by validation, of the "
    "trials that count. Its values are the test top-1 of its seeds; of a variant with nothing to "
    "search its seeds are the trials that count.",
    "A difference is resolved when Welch's 95 % interval of it leaves out zero. There are too few "
    "seeds to say when one of the two has fewer than two evaluated seeds, as where the best of "
    "fewer trials is not the one that was trained again, or when all seeds of both are equal. The "
    "interval is over seeds on these test images: other images, and another search, would move it "
    "further. The table says besides which stay resolved when all pairs are tested "
    "together (Holm's correction, 5 %).",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two variants compared; `difference` is first minus second, in fractions of test top-1."""

    first: str
    second: str
    by: str
    budget: float  # trials, or device-seconds
    seeds: tuple[int, int]
    difference: Difference | None
    reason: str  # why there is none

    @property
    def winner(self) -> str | None:
        """The better one, None where that is not resolved."""
        if self.difference is None or not self.difference.is_resolved:
            return None
        return self.first if self.difference.mean > 0 else self.second


def pairs(facts: SweepData) -> Section:
    """Return who beats whom, from scratch and pretrained apart."""
    blocks: list[Block] = [text(*_DEFINITION)]
    for is_pretrained, variants in facts.groups():
        if len(variants) < 2:
            continue
        kind = "pretrained" if is_pretrained else "from scratch"
        suffix = "_pretrained" if is_pretrained else ""
        found = compare(facts, variants, is_pretrained)
        for by in (TRIALS, COMPUTE):
            blocks.append(_matrix(variants, [p for p in found if p.by == by], by, kind))
        blocks.append(_table(found, f"pairs{suffix}", f"All pairs, {kind}"))
    if len(blocks) == 1:
        blocks.append(text("There are no two variants to compare."))
    return Section(name="pairs", title=TITLE, blocks=tuple(blocks))


def compare(facts: SweepData, variants: Sequence[str], is_pretrained: bool) -> list[Pair]:
    """Compare all pairs of variants at equal trials and at equal compute."""
    planned = {
        variant: [r for r in facts.of(variant, "search") if r.is_pretrained == is_pretrained]
        for variant in variants
    }
    done = {variant: ended(records) for variant, records in planned.items()}
    leading = {variant: _leading(records) for variant, records in planned.items()}
    found = []
    for first, second in itertools.combinations(variants, 2):
        trials = min(len(leading[first]), len(leading[second]))
        found.append(
            _pair(
                facts,
                (first, second),
                TRIALS,
                trials,
                [leading[v][:trials] for v in (first, second)],
            )
        )
        compute_s = min(sum(r.device_s for r in done[v]) for v in (first, second))
        within = [_within(done[v], compute_s) for v in (first, second)]
        found.append(_pair(facts, (first, second), COMPUTE, compute_s, within))
    return found


def _leading(planned: Sequence[Record]) -> list[Record]:
    """Return the first trials up to one that has not ended: what comes after it has run ahead."""
    in_order = sorted(planned, key=lambda record: record.trial.number)
    return list(itertools.takewhile(lambda record: record.trial.status in ENDED, in_order))


def _within(done: Sequence[Record], compute_s: float) -> list[Record]:
    sums = itertools.accumulate(record.device_s for record in done)
    # Sums of floats in another order differ in their last digits.
    return [r for r, spent in zip(done, sums, strict=True) if spent <= compute_s * (1 + 1e-9)]


def _pair(
    facts: SweepData,
    names: tuple[str, str],
    by: str,
    budget: float,
    counting: Sequence[Sequence[Record]],
) -> Pair:
    values, reasons = [], []
    for name, records in zip(names, counting, strict=True):
        seeds, reason = _seeds(facts, name, records)
        values.append(figures_of(seeds, "top1"))
        reasons.append(reason or ("" if len(values[-1]) > 1 else _few(name, len(values[-1]))))
    difference = welch(*values)
    if difference is None and not any(reasons):
        reasons.append("No seed differs from another on either side.")
    return Pair(
        first=names[0],
        second=names[1],
        by=by,
        budget=budget,
        seeds=(len(values[0]), len(values[1])),
        difference=difference,
        reason=" ".join(filter(None, reasons)),
    )


def _few(name: str, count: int) -> str:
    return f"{name} has {count or 'no'} evaluated {'seed' if count == 1 else 'seeds'}."


def _seeds(facts: SweepData, variant: str, records: Sequence[Record]) -> tuple[list[Record], str]:
    """Return the evaluated seeds of the best of these trials, and why there are none."""
    if not facts.is_searched(variant):
        return [r for r in records if r.trial.status == "complete" and r.evaluation], ""
    best = facts.best(records)
    if best is None:
        return [], f"No trial of {variant} that counts is complete."
    # Also where a longer search has found a better one since.
    finals = [r for r in facts.of(variant, "final") if r.evaluation]
    seeds = [r for r in finals if r.trial.params == best.trial.params]
    if seeds:  # with a validation split and without one they are the same seeds twice
        last = max(seeds, key=lambda record: record.trial.planned_seq)
        seeds = [r for r in seeds if r.has_validation == last.has_validation]
    if not seeds and finals:
        return [], f"The best of {variant} that counts, {best.name}, was not trained again."
    return seeds, ""


def _matrix(variants: Sequence[str], found: Sequence[Pair], by: str, kind: str) -> Matrix:
    cells: dict[tuple[str, str], tuple[str, str]] = {}
    for pair in found:
        for sign, row, column in ((1, pair.first, pair.second), (-1, pair.second, pair.first)):
            if pair.difference is None:
                cells[row, column] = ("too few seeds", "open")
                continue
            mean = 100 * sign * pair.difference.mean
            low, high = sorted(
                100 * sign * end for end in (pair.difference.low, pair.difference.high)
            )
            said = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
            if pair.winner is None:
                cells[row, column] = (f"not resolved|{said}", "open")
            else:
                cells[row, column] = (
                    f"resolved|{said}",
                    "wins" if pair.winner == row else "loses",
                )
    return Matrix(
        name=f"pairs-{by.split()[1]}-{kind.replace(' ', '-')}",
        title=f"At {by}, {kind}",
        names=tuple(variants),
        cells=[[cells.get((row, column), ("", "")) for column in variants] for row in variants],
        note="Row minus column, in points of test top-1, with the 95 % interval.",
    )


def _verdict(pair: Pair, is_resolved: bool) -> str:
    if pair.difference is None:
        return "too few seeds"
    return "resolved" if is_resolved else "not resolved"


def _table(found: Sequence[Pair], name: str, title: str) -> Table:
    holds: dict[int, bool] = {}
    for by in (TRIALS, COMPUTE):
        tested = [i for i, pair in enumerate(found) if pair.by == by and pair.difference]
        p_values = [d.p for i in tested if (d := found[i].difference)]
        holds |= dict(zip(tested, holm(p_values), strict=True))
    return Table(
        name=name,
        title=title,
        columns=(
            Column("first", "first"),
            Column("second", "second"),
            Column("by", "at"),
            Column("budget", "trials or device-seconds", "number"),
            Column("first_seeds", "seeds", "count"),
            Column("second_seeds", "seeds of the second", "count"),
            Column("difference", "difference", "points"),
            Column("low", "95 % from", "points"),
            Column("high", "to", "points"),
            Column("resolved", "resolved"),
            Column("resolved_holm", "all pairs together"),
            Column("why", "why there is no interval"),
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
