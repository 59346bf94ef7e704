"""Checks suggestions, early stopping and final trials by making each decision again.

Each decision is made again from the ledger's rows up to the change at which it was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations, islice
from typing import Any

from orchestrator.ledger import ranking
from orchestrator.ledger.header import RecordedPlan
from orchestrator.ledger.records import Trial
from orchestrator.search import early_stopping
from orchestrator.search.sampler import Study, optuna_version, study_of
from orchestrator.verify.snapshot import Result, Snapshot, name_of, problems_of


def check_suggestions(snapshot: Snapshot) -> Result:
    """Check that a rebuilt study makes the same suggestions."""
    what = "suggestions are reproduced from earlier results"
    written = snapshot.header.versions.get("optuna")
    if written != optuna_version():
        note = f"suggestions: made with Optuna {written}, installed is {optuna_version()}."
        return Result("decisions", what, 0, [], note)
    found: list[str] = []
    checked, left_out = 0, []
    searched = [trial for trial in snapshot.trials if trial.stage == "search"]
    for variant in dict.fromkeys(trial.variant for trial in searched):
        own = sorted((t for t in searched if t.variant == variant), key=lambda t: t.number)
        plans = [snapshot.header.plan_at(trial.planned_seq) for trial in own]
        # Older ledgers lack the space of a variant that was added on the command line.
        has_space = all(variant in plan.space.params for plan in plans)
        if has_space and [trial.number for trial in own] == list(range(len(own))):
            checked += len(own)
            found += _wrong_suggestions(snapshot, variant, own)
        else:
            left_out.append(variant)  # or the order of its trials is unknown
    note = f"suggestions of {', '.join(left_out)}." if left_out else ""
    return Result("decisions", what, checked, found, note)


def _wrong_suggestions(snapshot: Snapshot, variant: str, own: list[Trial]) -> Iterator[str]:
    study: Study | None = None
    plan: RecordedPlan | None = None
    told: set[str] = set()
    for trial in own:
        plan_then, earlier = snapshot.header.plan_at(trial.planned_seq), own[: trial.number]
        ended = [other for other in earlier if _had_ended(other, trial)]
        doubtful = [other for other in earlier if _may_have_failed(snapshot, other, trial)]
        if study is None or doubtful or plan is not plan_then:
            plan, study, told = plan_then, study_of(plan_then, variant, earlier), set()
        _tell(snapshot, study, ended, told, plan.space.metric)
        suggested = study.ask(trial.number)
        choices = _subsets(doubtful)
        while _as_stored(suggested) != trial.params and (failed := next(choices, None)):
            study = study_of(plan, variant, earlier)
            for other in failed:
                study.tell(replace(other, status="failed"), (), plan.space.metric)
            _tell(snapshot, study, ended, {t.signature for t in failed}, plan.space.metric)
            suggested = study.ask(trial.number)
        is_wrong = _as_stored(suggested) != trial.params
        if is_wrong:
            text = f"{trial.params} was suggested, but the results known then give {suggested}."
            yield from problems_of("decisions", trial, [text])
        if doubtful or is_wrong:
            study = None  # it contains trials as failed that may not be, or other suggestions


def _had_ended(other: Trial, trial: Trial) -> bool:
    """Return whether a trial had ended when another one was suggested."""
    return other.ended_seq is not None and other.ended_seq <= trial.seen_seq


def _may_have_failed(snapshot: Snapshot, other: Trial, trial: Trial) -> bool:
    """Return whether a trial may have been failed when another one was suggested.

    The ledger does not record when a trial failed that was retried later. It matters because the
    sampler avoids the parameters of running trials, but not those of failed ones.
    """
    outcomes = {attempt.outcome for attempt in snapshot.attempts[other.signature]}
    return not _had_ended(other, trial) and bool(outcomes & {"failed", "lost"})


def _subsets(trials: Sequence[Trial]) -> Iterator[tuple[Trial, ...]]:
    """Yield all non-empty subsets, small ones first, but at most 300."""
    several = (combinations(trials, size) for size in range(1, len(trials) + 1))
    return islice(chain.from_iterable(several), 300)


def _tell(
    snapshot: Snapshot, study: Study, ended: list[Trial], told: set[str], metric: str
) -> None:
    """Add ended trials to a study; updates `told`."""
    for trial in ended:
        if trial.signature not in told:
            study.tell(trial, snapshot.rows[trial.signature], metric)
            told.add(trial.signature)


def _as_stored(params: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(params))


def check_finals(snapshot: Snapshot) -> Result:
    """Check that final trials train the best configuration of their variant at their time."""
    found: list[str] = []
    checked = [trial for trial in snapshot.trials if trial.stage == "final"]
    for trial in checked:
        mode = snapshot.header.plan_at(trial.planned_seq).space.mode
        searched = [other for other in snapshot.trials if other.stage == "search"]
        own = [other for other in searched if other.variant == trial.variant]
        best = ranking.best_of([other for other in own if _had_ended(other, trial)], mode)
        name = "none" if best is None else name_of(best)
        if best is None or best.signature != trial.origin:
            text = f"it trains {trial.origin} again, but the best trial then was {name}."
        elif trial.params != best.params:
            text = f"its parameters differ from those of {name}."
        else:
            continue
        found += problems_of("decisions", trial, [text])
    what = "final trials train the best trial of the search"
    return Result("decisions", what, len(checked), found)


def check_early_stopping(snapshot: Snapshot) -> Result:
    """Check that trials were stopped exactly where the values at their rungs require it."""
    found: list[str] = []
    checked = 0
    for trial in snapshot.trials:
        rows, wanted = snapshot.rows[trial.signature], None
        for row in rows:
            plan = snapshot.header.plan_at(row.seq)
            wanted = early_stopping.decide(snapshot.ledger, plan, trial, row)
            if wanted is None:
                continue
            checked += 1
            was = trial.status == "stopped" and row is rows[-1]
            # A driver may be killed between an epoch and its decision; the next driver decides.
            pending = row is rows[-1] and trial.ended_seq is None
            if wanted != was and not pending:
                was_text, wanted_text = "was" if was else "was not", "" if wanted else "not "
                text = f"it {was_text} stopped after epoch {row.epoch + 1}, but by the values "
                text += f"known then it should {wanted_text}have been."
                found += problems_of("decisions", trial, [text])
        if trial.status == "stopped" and wanted is None:  # after its last epoch
            text = "it was stopped after an epoch that is not a rung."
            found += problems_of("decisions", trial, [text])
    what = "early stopping is reproduced from earlier values"
    return Result("decisions", what, checked, found)
