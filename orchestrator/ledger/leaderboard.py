"""The rows of a sweep's leaderboards, as the terminal and MLflow show them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.ledger import ranking
from orchestrator.ledger.records import ENDED, Trial
from trainables.metrics import metric_heading, metric_text

# Values of an evaluation: heading, name, factor and decimals.
_EVALUATED = (
    ("test top-1, %", "top1", 100, 1),
    ("test top-5, %", "top5", 100, 1),
    ("test loss", "loss", 1, 4),
    ("ECE, %", "ece", 100, 1),
)
EVALUATED_HEADINGS = ("variant", "seeds", *(heading for heading, *_ in _EVALUATED))


class SearchRow(NamedTuple):
    """The best trial of a variant's search, and how many trials of that search have ended."""

    best: Trial
    ended: int

    def cells(self, metric: str) -> list[str]:
        """Return variant, best value, best epoch (from 1), trials and signature as text."""
        trial = self.best
        value = "" if trial.best_value is None else metric_text(metric, trial.best_value)
        epoch = str((trial.best_epoch or 0) + 1)
        return [trial.variant, value, epoch, str(self.ended), trial.signature]


def search_headings(metric: str) -> tuple[str, ...]:
    """Return the headings of `SearchRow.cells`."""
    return ("variant", f"best {metric_heading(metric)}", "best epoch", "trials", "signature")


def planned_variants(trials: Sequence[Trial]) -> list[str]:
    """Return the variants in the order in which they were planned."""
    first = sorted(trials, key=lambda trial: trial.planned_seq)
    return list(dict.fromkeys(trial.variant for trial in first))


def search_rows(trials: Sequence[Trial], variants: Sequence[str], mode: str) -> list[SearchRow]:
    """Return a row for each of the variants that has a best trial, best variant first."""
    searched = [trial for trial in trials if trial.stage == "search"]
    ended = Counter(trial.variant for trial in searched if trial.status in ENDED)
    own = ([trial for trial in searched if trial.variant == name] for name in variants)
    best = [found for each in own if (found := ranking.best_trial(each, mode))]
    values = ranking.ranking_values(searched)
    best.sort(key=lambda trial: values[trial.signature] * (-1 if mode == "max" else 1))
    return [SearchRow(trial, ended[trial.variant]) for trial in best]


def evaluated(
    trials: Sequence[Trial],
    variants: Sequence[str],
    evaluations: Mapping[str, Mapping[str, Any]],
    mode: str,
) -> dict[str, list[Mapping[str, Any]]]:
    """Return the evaluations of the trials that represent a variant, by variant; none is empty."""
    found = {}
    for variant in variants:
        own = ranking.final_trials_of(trials, variant, mode)
        if each := [evaluations[t.signature] for t in own if t.signature in evaluations]:
            found[variant] = each
    return found


def evaluated_cells(variant: str, evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a row under `EVALUATED_HEADINGS`: means and, of several, standard deviations."""
    means = [
        _mean([unit * each[name] for each in evaluations], digits)
        for _, name, unit, digits in _EVALUATED
    ]
    return [variant, str(len(evaluations)), *means]


def params_text(params: Mapping[str, Any], separator: str = "  ") -> str:
    """Return hyperparameters as they are printed in one line."""
    return separator.join(f"{name} {_short(value)}" for name, value in params.items())


def _mean(values: Sequence[float], digits: int) -> str:
    """Return the mean and, with several values, the sample standard deviation."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
