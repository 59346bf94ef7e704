"""The search: where its suggestions came from, and Optuna's figures of the hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report.document.blocks import Block, Section, Tabs, Text, counted
from orchestrator.report.document.plots import figure
from orchestrator.report.facts import SweepData
from orchestrator.search.sampler import study_of

# With fewer complete trials, importance is noise.
FEWEST_TRIALS = 4
# PED-ANOVA compares the best tenth of the trials, and at least two, with all of them.
ENOUGH_TRIALS = 30
# The browser holds one object per line of the parallel coordinates.
_MOST_LINES = 300


def search(sweep: SweepData) -> Section:
    """Return parallel coordinates, slices and hyperparameter importance of each variant."""
    searched = [variant for variant in sweep.variants if sweep.is_searched(variant)]
    if not searched:
        only = "Nothing was searched: the trials of a variant differ only in their seeds."
        return Section.of("search", "Search", only)
    kinds = {variant: suggested(sweep, variant) for variant in searched}
    caution = (
        f"{_adaptive(list(kinds.values()))} Only complete trials are shown: a stopped trial has no "
        "comparable value. Final trials are not part of the search."
    )
    origins = [
        f"{variant}: {counted(kind.enqueued, 'trial')} enqueued by the space, {kind.random} drawn "
        f"at random, {kind.adaptive} suggested by TPE from the results of earlier trials."
        for variant, kind in kinds.items()
    ]
    tabs = Tabs("search", [(variant, _of_variant(sweep, variant)) for variant in searched])
    texts = Text((caution,), is_warning=True), Text(origins)
    return Section.of("search", "Search", *texts, tabs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggested:
    """Where the suggestions of a variant's search trials came from, in numbers of trials."""

    enqueued: int
    random: int
    adaptive: int


def suggested(sweep: SweepData, variant: str) -> Suggested:
    """Return how many trials the space enqueued, how many were random and how many TPE suggested.

    TPE uses a model once `startup_trials` trials have ended without failing. A trial that ended
    after a suggestion was made does not count for it.
    """
    space = sweep.plan.space
    trials = [record.trial for record in sweep.of(variant, "search")]
    ends = [t.ended_seq for t in trials if t.ended_seq is not None and t.status != "failed"]
    enqueued = [t for t in trials if t.number < len(space.enqueued)]
    others = [t for t in trials if t not in enqueued]
    known = [sum(ended_seq <= t.seen_seq for ended_seq in ends) for t in others]
    adaptive = sum(count >= space.startup_trials for count in known)
    return Suggested(enqueued=len(enqueued), random=len(others) - adaptive, adaptive=adaptive)


def _adaptive(kinds: Sequence[Suggested]) -> str:
    if any(kind.adaptive for kind in kinds):
        return (
            "TPE suggested some of the trials, with values similar to those of good trials. The "
            "values are therefore not evenly distributed, and importance and slices are biased "
            "towards the region that was searched. They describe this search; they do not prove "
            "causes."
        )
    if any(kind.enqueued for kind in kinds):
        return (
            "TPE suggested no trial. The values that the space enqueued are not evenly "
            "distributed, so importance and slices describe only these trials; they do not prove "
            "causes."
        )
    return "TPE suggested no trial: all values were drawn at random from the whole ranges."


def _of_variant(sweep: SweepData, variant: str) -> list[Block]:
    records = sweep.of(variant, "search")
    complete = sum(record.trial.status == "complete" for record in records)
    if complete < FEWEST_TRIALS:
        few = f"{variant} has {counted(complete, 'complete trial')}. Figures of the hyperparameters"
        return [Text((f"{few} need at least {FEWEST_TRIALS}.",))]
    records.sort(key=lambda record: record.trial.number)
    study = study_of(sweep.plan, variant, [record.trial for record in records])
    for record in records:
        if record.trial.ended_seq is not None:
            study.tell(record.trial, record.rows, sweep.metric)
    drawn = study.figures(sweep.metric)
    lines, note = drawn["parallel"], ""
    if complete > _MOST_LINES:
        lines.data = lines.data[-_MOST_LINES - 1 :]  # the last is the scale
        note = f"The last {_MOST_LINES} of {complete:,} complete trials."
    lines.update_layout(plot_bgcolor="#e6e9ec")  # Optuna's palest lines are nearly white
    drawn["slices"].update_layout(width=None)
    # Otherwise the tick labels of a narrow axis overlap.
    drawn["slices"].update_xaxes({"dtick": 1, "tickformat": ".0e"}, selector={"type": "log"})
    ped_anova = (
        "PED-ANOVA, Optuna's default: how well a hyperparameter alone separates the best trials "
        "from all trials."
    )
    if complete < ENOUGH_TRIALS:
        ped_anova += f" Of these {complete} trials, only two or three count as the best, so the "
        ped_anova += "values are uncertain."
    later, importance = "The darker a point, the later its trial.", drawn["importance"]
    title = f"Hyperparameter importance, {complete:,} complete trials"
    height_px = 140 + 34 * len(sweep.plan.space.params[variant])
    return [
        figure(f"parallel-{variant}", "Parallel coordinates", lines, note=note),
        figure(f"slices-{variant}", "Slices", drawn["slices"], note=later),
        figure(f"importance-{variant}", title, importance, height_px=height_px, note=ped_anova),
    ]
