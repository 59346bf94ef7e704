"""What the search saw of its parameters, drawn by Optuna's own functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report.document.blocks import Block, Section, Tabs, text
from orchestrator.report.document.plots import figure
from orchestrator.report.facts import Record, SweepData
from orchestrator.search.sampler import Study, read_params

# Below this many complete trials a share of importance is noise.
FEWEST_TRIALS = 4
# PED-ANOVA takes the best tenth for the better trials, at least two of them.
ENOUGH_TRIALS = 30
# A line in parallel coordinates is an object of its own to the browser.
_MOST_LINES = 300


def search(facts: SweepData) -> Section:
    """Return parallel coordinates, slices and importance of each variant's search."""
    searched = [variant for variant in facts.variants if facts.is_searched(variant)]
    if not searched:
        only = text("Nothing was searched: the trials of a variant differ in their seeds only.")
        return Section(name="search", title="The search", blocks=(only,))
    kinds = {variant: suggested(facts, variant) for variant in searched}
    blocks = (
        text(
            f"{_adaptive(list(kinds.values()))} Only complete trials count here: stopped ones have "
            "no value that could be compared. The final seeds are left out.",
            is_warning=True,
        ),
        text(*(f"{variant}: {_counts(kind)}." for variant, kind in kinds.items())),
        Tabs(
            name="search",
            tabs=tuple((variant, tuple(_of_variant(facts, variant))) for variant in searched),
        ),
    )
    return Section(name="search", title="The search", blocks=blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggested:
    """How many of a variant's search trials came from where."""

    prescribed: int
    random: int
    adaptive: int


def suggested(facts: SweepData, variant: str) -> Suggested:
    """Return how many trials the space prescribed, how many were random and how many were not.

    TPE models nothing before `startup_trials` trials have ended that say something, which a failed
    one does not; trials side by side are suggested before the others' ends are known.
    """
    space = facts.plan["space"]
    trials = [record.trial for record in facts.of(variant, "search")]
    telling = [t.ended_seq for t in trials if t.ended_seq is not None and t.status != "failed"]
    prescribed = [t for t in trials if t.number < len(space.get("enqueued", ()))]
    others = [t for t in trials if t not in prescribed]
    known = [sum(ended_seq <= t.seen_seq for ended_seq in telling) for t in others]
    adaptive = sum(count >= space["startup_trials"] for count in known)
    return Suggested(prescribed=len(prescribed), random=len(others) - adaptive, adaptive=adaptive)


def _adaptive(kinds: Sequence[Suggested]) -> str:
    if any(kind.adaptive for kind in kinds):
        return (
            "The sampler was adaptive: TPE suggested more of what had done well. So the parameters "
            "are not sampled evenly, and importance and slices are biased towards the region that "
            "was searched; they describe this search, they prove no cause."
        )
    if any(kind.prescribed for kind in kinds):
        return (
            "No suggestion was adaptive. Prescribed values are not sampled evenly either, so "
            "importance and slices describe these trials, they prove no cause."
        )
    return "No suggestion was adaptive: all values were drawn at random from the whole ranges."


def _counts(kind: Suggested) -> str:
    return (
        f"{kind.prescribed} trials prescribed by the space, {kind.random} random, "
        f"{kind.adaptive} suggested by TPE from those before"
    )


def _of_variant(facts: SweepData, variant: str) -> list[Block]:
    records = facts.of(variant, "search")
    complete = sum(record.trial.status == "complete" for record in records)
    if complete < FEWEST_TRIALS:
        return [
            text(
                f"{variant} has {complete} complete trials; fewer than {FEWEST_TRIALS} say nothing "
                "of a parameter."
            )
        ]
    drawn = _study(facts, variant, records).figures(facts.metric)
    lines = drawn["parallel"]
    note = ""
    if complete > _MOST_LINES:
        lines.data = (*lines.data[-_MOST_LINES - 1 : -1], lines.data[-1])  # the last: the scale
        note = f"The last {_MOST_LINES} of {complete} complete trials."
    lines.update_layout(plot_bgcolor="#e6e9ec")  # Optuna's palest lines are nearly white
    drawn["slices"].update_layout(width=None)
    # Else the marks of a narrow axis run into each other.
    drawn["slices"].update_xaxes({"dtick": 1, "tickformat": ".0e"}, selector={"type": "log"})
    count = len(facts.plan["space"]["params"][variant])
    return [
        figure(f"parallel-{variant}", "Parallel coordinates", lines, note=note),
        figure(
            f"slices-{variant}",
            "Slices",
            drawn["slices"],
            note="The darker, the later the trial.",
        ),
        figure(
            f"importance-{variant}",
            f"Importance, of {complete} complete trials",
            drawn["importance"],
            height_px=140 + 34 * count,
            note="PED-ANOVA, Optuna's default: how far a parameter alone tells the better trials "
            f"from all.{_few(complete)}",
        ),
    ]


def _few(complete: int) -> str:
    """Return what to think of importance where few trials are the better ones."""
    if complete >= ENOUGH_TRIALS:
        return ""
    return f" Of {complete} trials two or three are the better ones, so this is a hint at most."


def _study(facts: SweepData, variant: str, records: Sequence[Record]) -> Study:
    space = facts.plan["space"]
    study = Study(
        variant,
        read_params(space["params"][variant]),
        mode=space["mode"],
        startup_trials=space["startup_trials"],
        sweep_seed=facts.plan["seed"],
    )
    for record in sorted(records, key=lambda record: record.trial.number):
        study.add_planned(record.trial)
        if record.trial.ended_seq is not None:
            study.tell(record.trial, record.rows, facts.metric)
    return study
