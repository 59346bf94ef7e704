"""After a variant's search: its best configuration once more, with seeds of its own.

Which trials those are is a function of the ledger's rows, as every decision is.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.ledger import Stage, Trial
from search_spaces.space import is_better


def best_of(trials: Sequence[Trial], mode: str) -> Trial | None:
    """Return the best complete trial; of equal ones the first, None where there is none."""
    best: Trial | None = None
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.status != "complete" or trial.best_value is None:
            continue
        if best is None or is_better(trial.best_value, best.best_value or 0.0, mode):
            best = trial
    return best


def is_judged(stage: Stage, number: int, *, num_params: int, num_enqueued: int) -> bool:
    """Return whether a trial is judged by the test part; such a one is never stopped early.

    Those are the final ones, the ones that the space itself asks for (a published recipe), and all
    of a variant with nothing to search: they differ in their seeds only.
    """
    return stage == "final" or num_params == 0 or number < num_enqueued


def current(trials: Sequence[Trial], variant: str, mode: str) -> list[Trial]:
    """Return the trials that stand for a variant: the finals of its best configuration.

    Finals of a configuration that a longer search has beaten since are left out, and so are those
    with a validation part where the latest are without, or the other way round: they are the same
    seeds again. Where nothing is searched they are the search's own. Ended or not, in the order of
    their numbers.
    """
    own = [trial for trial in trials if trial.variant == variant]
    searched = [trial for trial in own if trial.stage == "search"]
    if all(not trial.params for trial in searched):
        return searched
    best = best_of(searched, mode)
    if best is None:
        return []
    again = [t for t in own if t.stage == "final" and t.params == best.params]
    last = max(again, key=lambda trial: trial.planned_seq, default=best).config
    part = "validation_fraction"
    return [trial for trial in again if trial.config[part] == last[part]]


def _is_on_all(trial: Trial) -> bool:
    return (trial.config or {}).get("validation_fraction") == 0


def values(trials: Sequence[Trial]) -> dict[str, float]:
    """Return what each trial is worth by the validation part, by signature; the test has no say.

    A final one on the whole training part has no value of its own: its origin's counts. A recipe's
    trials that are such are worth the same: only the test could tell them apart.
    """
    own = {t.signature: t.best_value for t in trials}
    worth: dict[str, float] = {}
    for trial in trials:
        value = trial.best_value
        if value is None and trial.stage == "final":
            value = own.get(trial.origin or "")
        elif value is None and trial.status == "complete" and _is_on_all(trial):
            value = 0.0
        if value is not None:
            worth[trial.signature] = value
    return worth
