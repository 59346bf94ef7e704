"""Promise E: suggestions, early stopping and final trials are what their time's results lead to.

All are made again from the ledger's rows up to the moment of the decision.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations, islice
from typing import Any

from orchestrator.ledger import ranking
from orchestrator.ledger.header import RecordedPlan
from orchestrator.ledger.records import EpochRow, Trial
from orchestrator.search.early_stopping import is_rung, is_stopped
from orchestrator.search.sampler import Study, optuna_version, read_params
from orchestrator.verify.facts import Breach, Result, Snapshot, name_of


def check_suggestions(facts: Snapshot) -> Result:
    """E: a rebuilt study suggests what was suggested."""
    what = "suggestions follow from the results they were made from"
    written = facts.header.versions.get("optuna")
    if written != optuna_version():
        note = f"suggestions, made with Optuna {written}; this is {optuna_version()}."
        return Result("E", what, 0, [], note)
    found: list[Breach] = []
    checked, left_out = 0, []
    searched = [trial for trial in facts.trials if trial.stage == "search"]
    for variant in dict.fromkeys(trial.variant for trial in searched):
        own = sorted((t for t in searched if t.variant == variant), key=lambda t: t.number)
        plans = [facts.header.plan_at(trial.planned_seq) for trial in own]
        if not all(variant in plan.space.params for plan in plans):
            left_out.append(variant)  # a model of the command line, in an older ledger
        elif [trial.number for trial in own] == list(range(len(own))):
            checked += len(own)
            found += _wrong_suggestions(facts, variant, own)
        else:
            left_out.append(variant)  # which trial came when cannot be told
    note = f"suggestions of {', '.join(left_out)}." if left_out else ""
    return Result("E", what, checked, found, note)


def _wrong_suggestions(facts: Snapshot, variant: str, own: list[Trial]) -> Iterator[Breach]:
    study: Study | None = None
    plan: RecordedPlan | None = None
    told: set[str] = set()
    for trial in own:
        earlier = own[: trial.number]
        doubtful = [other for other in earlier if _may_have_failed(facts, other, trial)]
        if study is None or doubtful or plan is not facts.header.plan_at(trial.planned_seq):
            plan = facts.header.plan_at(trial.planned_seq)
            study, told = _new_study(plan, variant, earlier), set()
        _tell(facts, study, earlier, trial.seen_seq, plan, told)
        suggested = study.ask(trial.number)
        choices = _subsets(doubtful)
        while _as_stored(suggested) != trial.params and (failed := next(choices, None)):
            study = _new_study(plan, variant, earlier)
            for other in failed:
                study.tell(replace(other, status="failed"), (), plan.space.metric)
            _tell(facts, study, earlier, trial.seen_seq, plan, {t.signature for t in failed})
            suggested = study.ask(trial.number)
        if _as_stored(suggested) != trial.params:
            text = f"suggested were {trial.params}; its time's results lead to {suggested}."
            yield Breach("E", name_of(trial), text)
        if doubtful or _as_stored(suggested) != trial.params:
            study = None  # it does not believe in the trials as they are


def _may_have_failed(facts: Snapshot, other: Trial, trial: Trial) -> bool:
    """Return whether a trial had perhaps failed when another was suggested.

    The ledger does not say when one that was tried again had failed before. It matters, since the
    sampler keeps away from what runs and knows nothing of what has failed.
    """
    has_ended = other.ended_seq is not None and other.ended_seq <= trial.seen_seq
    outcomes = {attempt.outcome for attempt in facts.attempts[other.signature]}
    return not has_ended and bool(outcomes & {"failed", "lost"})


def _subsets(trials: Sequence[Trial]) -> Iterator[tuple[Trial, ...]]:
    """Yield all but the empty one, the small ones first; at most some hundred."""
    several = (combinations(trials, size) for size in range(1, len(trials) + 1))
    return islice(chain.from_iterable(several), 300)


def _tell(
    facts: Snapshot,
    study: Study,
    earlier: list[Trial],
    seen_seq: int,
    plan: RecordedPlan,
    told: set[str],
) -> None:
    """Tell a study what had ended by then; `told` grows."""
    for other in earlier:
        has_ended = other.ended_seq is not None and other.ended_seq <= seen_seq
        if has_ended and other.signature not in told:
            study.tell(other, facts.rows[other.signature], plan.space.metric)
            told.add(other.signature)


def _as_stored(params: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(params))


def _new_study(plan: RecordedPlan, variant: str, earlier: list[Trial]) -> Study:
    space = plan.space
    study = Study(
        variant,
        read_params(space.params[variant]),
        mode=space.mode,
        startup_trials=space.startup_trials,
        sweep_seed=plan.seed,
        enqueued=space.enqueued if space.params[variant] else (),
    )
    for trial in earlier:
        study.add_planned(trial)
    return study


def check_finals(facts: Snapshot) -> Result:
    """E: a final trial trains the best configuration of its variant's search at that time."""
    found: list[Breach] = []
    checked = [trial for trial in facts.trials if trial.stage == "final"]
    for trial in checked:
        mode = facts.header.plan_at(trial.planned_seq).space.mode
        ended = [
            other
            for other in facts.trials
            if (other.variant, other.stage) == (trial.variant, "search")
            and other.ended_seq is not None
            and other.ended_seq <= trial.seen_seq
        ]
        best = ranking.best_of(ended, mode)
        if best is None or best.signature != trial.origin:
            was = "none" if best is None else name_of(best)
            text = f"it trains {trial.origin} again; the best of its time was {was}."
            found.append(Breach("E", name_of(trial), text))
        elif trial.params != best.params:
            found.append(Breach("E", name_of(trial), f"its parameters are not {name_of(best)}'s."))
    return Result("E", "final trials follow from their variant's search", len(checked), found)


def check_early_stopping(facts: Snapshot) -> Result:
    """E: trials were stopped where, and only where, their rung's values say so."""
    found: list[Breach] = []
    checked = 0
    for trial in facts.trials:
        rows = facts.rows[trial.signature]
        for row in rows:
            wanted = _stops_at(facts, trial, row)
            if wanted is None:
                continue
            checked += 1
            was = trial.status == "stopped" and row is rows[-1]
            # Between a row and its decision a driver may have died; the next one makes up for it.
            pending = row is rows[-1] and trial.ended_seq is None
            if wanted != was and not pending:
                text = f"after epoch {row.epoch} it {'was' if was else 'was not'} stopped; the "
                text += f"values of that time say {'stop' if wanted else 'go on'}."
                found.append(Breach("E", name_of(trial), text))
        if trial.status == "stopped" and (not rows or _stops_at(facts, trial, rows[-1]) is None):
            found.append(Breach("E", name_of(trial), "it was stopped where no rung is."))
    return Result("E", "early stopping follows from the values of its time", checked, found)


def _stops_at(facts: Snapshot, trial: Trial, row: EpochRow) -> bool | None:
    """Return what early stopping says of a row; None where it does not look."""
    plan = facts.header.plan_at(row.seq)
    space = plan.space
    done = row.epoch + 1
    if done >= trial.config["epochs"] or plan.is_evaluated(trial):
        return None
    if not is_rung(done, space.first_rung_epochs, space.rung_factor):
        return None
    values = facts.ledger.values_at(trial.variant, row.epoch, space.metric, up_to=row.seq)
    return is_stopped(
        row.metrics[space.metric],
        values,
        epochs_done=done,
        first_rung=space.first_rung_epochs,
        factor=space.rung_factor,
        mode=space.mode,
    )
