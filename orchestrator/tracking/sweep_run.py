"""Contents of the sweep's own run: its parameters, its metrics and its note, from the ledger."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from orchestrator.ledger import leaderboard, ranking
from orchestrator.ledger.header import RecordedSpace, SweepHeader
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Trial
from trainables.metrics import metric_with_unit

# MLflow's limits (mlflow/utils/validation.py), in characters.
_LONGEST_PARAMETER, _LONGEST_NOTE = 6000, 8000


def parameters(header: SweepHeader) -> dict[str, str]:
    """Return what the sweep varies and keeps fixed: `range.NAME` and `fixed.NAME` for the trials.

    Where variants differ, the text holds the value of each.
    """
    plan, space = header.plan, header.plan.space
    variants = list(plan.image_size_px)
    finals = header.options.get("final_seeds", header.space_own.get("final_seeds"))
    values: dict[str, Any] = {
        "space": space.name,
        "dataset": plan.dataset,
        "variants": ", ".join(variants),
        "trials": _of_variants({v: header.asked.get(v, "") for v in variants}),
        "final_seeds": "" if finals is None else finals,
        "seed": plan.seed,
        "image_size_px": _of_variants(plan.image_size_px),
        "metric": space.metric,
        "mode": space.mode,
    }
    fixed = {v: {**space.fixed.get(v, {}), **plan.overrides} for v in variants}
    ranges = {
        v: {name: _range(each["attributes"]) for name, each in space.params.get(v, {}).items()}
        for v in variants
    }
    for prefix, by_variant in (("range", ranges), ("fixed", fixed)):
        for name in sorted({name for own in by_variant.values() for name in own}):
            own = {v: by_variant[v][name] for v in variants if name in by_variant[v]}
            is_shared = len(own) == len(variants)
            values[f"{prefix}.{name}"] = _of_variants(own) if is_shared else _listed(own)
    return {name: str(value)[:_LONGEST_PARAMETER] for name, value in values.items() if value != ""}


def _of_variants(values: Mapping[str, Any]) -> str:
    """Return the value that all variants share, else that of each variant."""
    different = {str(value) for value in values.values()}
    return different.pop() if len(different) == 1 else _listed(values)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{variant}: {value}" for variant, value in values.items())


def _range(attributes: Mapping[str, Any]) -> str:
    """Return a range as text, from the attributes in Optuna's JSON of it."""
    if "choices" in attributes:
        return ", ".join(map(str, attributes["choices"]))
    text = f"{attributes['low']:g} to {attributes['high']:g}"
    return f"{text}, logarithmic" if attributes.get("log") else text


def progress(ledger: Ledger) -> list[tuple[str, float, float, int]]:
    """Return points of metrics of the sweep's own run: name, value, time in seconds, step.

    They are the number of ended trials, and each variant's best after each of its search trials. A
    sweep that is given more trials after its end has the points of one that had them at its start.
    """
    header = ledger.header()
    ended_s = {attempt.signature: attempt.ended_s for attempt in ledger.attempts()}
    ended = [(trial.ended_seq, trial) for trial in ledger.trials() if trial.ended_seq is not None]
    points: list[tuple[str, float, float, int]] = []
    best: dict[str, Trial] = {}
    searched: Counter[str] = Counter()
    for number, (_, trial) in enumerate(sorted(ended, key=itemgetter(0)), start=1):
        at_s = ended_s.get(trial.signature) or header.created_s
        points.append(("trials", number, at_s, number))
        if trial.stage != "search":
            continue
        searched[trial.variant] += 1
        candidates = [each for each in (best.get(trial.variant), trial) if each is not None]
        found = ranking.best_trial(candidates, header.plan.space.mode)
        if found is not None and found.best_value is not None:
            best[trial.variant] = found
            name = f"best_{header.plan.space.metric}.{trial.variant}"
            points.append((name, found.best_value, at_s, searched[trial.variant]))
    return points


def figures(ledger: Ledger) -> dict[str, float]:
    """Return the metrics of the sweep's own run: the number of trials and each variant's best.

    Their names have no slash: MLflow's page of all runs would begin with an empty section of charts
    for each part before a slash, since trials have no such metrics.
    """
    trials, mode = ledger.trials(), ledger.header().plan.space.mode
    values = {name: value for name, value, *_ in progress(ledger)}
    variants = leaderboard.planned_variants(trials)
    found = leaderboard.evaluated(trials, variants, ledger.evaluations(), mode)
    for variant, each in found.items():
        values[f"test_top1.{variant}"] = statistics.fmean(one["top1"] for one in each)
    return values


def note(ledger: Ledger, name: str, links: Mapping[str, str], model: str | None) -> str:
    """Return the best trial and the leaderboards in Markdown.

    `name` is the sweep's; `links` has the links to the runs of trials, by signature, and `model` is
    the link to the best model. Of very many variants the last rows are left out.
    """
    header, trials = ledger.header(), ledger.trials()
    space, variants = header.plan.space, leaderboard.planned_variants(trials)
    found = leaderboard.evaluated(trials, variants, ledger.evaluations(), space.mode)
    tested = [leaderboard.evaluated_cells(variant, each) for variant, each in found.items()]
    searched = [
        [*row.cells(space.metric)[:-1], _link(row.best, links), _hyperparameters(row.best)]
        for row in leaderboard.search_rows(trials, variants, space.mode)
    ]
    headings = (*leaderboard.search_headings(space.metric)[:-1], "trial", "best hyperparameters")
    best = _best(trials, space, links, model)
    about = (
        f"The sweep {name} searches the space {space.name} on the dataset {header.plan.dataset}. "
        "The run of a trial has its searched hyperparameters as parameters, and all of them in the "
        "artifact `config.json`."
    )
    for limit in range(max(len(searched), len(tested)), -1, -1):
        tables = [
            *_table("Leaderboard (test split)", leaderboard.EVALUATED_HEADINGS, tested, limit),
            *_table("Search results (validation split)", headings, searched, limit),
        ]
        text = "\n\n".join([*best, *tables, about])
        if len(text) <= _LONGEST_NOTE:
            break
    return text


def _best(
    trials: Sequence[Trial], space: RecordedSpace, links: Mapping[str, str], model: str | None
) -> list[str]:
    """Return a line with the best trial, none without one. MLflow shows only the first lines."""
    best = ranking.best_trial(trials, space.mode)
    if best is None:
        return []
    text = f"Best trial: {_link(best, links)}"
    if best.best_value is not None:
        text += f", {space.metric} {metric_with_unit(space.metric, best.best_value)}"
    return [f"{text}. [Its model]({model}) is ready to serve." if model else f"{text}."]


def _table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], limit: int
) -> list[str]:
    """Return a title and a table with at most `limit` rows, nothing without rows."""
    if not rows:
        return []
    lines = [headings, ["---"] * len(headings), *rows[:limit]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    left_out = len(rows) - limit
    return [f"### {title}", table, *([f"{left_out} more rows."] if left_out > 0 else [])]


def _link(trial: Trial, links: Mapping[str, str]) -> str:
    link = links.get(trial.signature)
    return f"[{trial.name}]({link})" if link else trial.name


def _hyperparameters(trial: Trial) -> str:
    return leaderboard.params_text(trial.params, ", ").replace("|", "\\|")
