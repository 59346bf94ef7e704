"""Promises A and D: trials, attempts and epochs fit together, checkpoints can be loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from orchestrator.ledger.ranking import is_better
from orchestrator.ledger.records import ENDED, Attempt, EpochRow, Trial
from orchestrator.plan.plan import trial_seed
from orchestrator.storage import checkpoints
from orchestrator.storage.paths import checkpoint_path
from orchestrator.verify.facts import (
    Breach,
    Result,
    Snapshot,
    asked_for,
    is_open,
    name_of,
)
from trainables.config import TrainConfig


def check_trials(facts: Snapshot) -> Result:
    """A: numbers without gap or repetition, as many as asked for, each the trial it says it is."""
    found: list[Breach] = []
    numbers: dict[str, list[int]] = {}
    for trial in facts.trials:
        if trial.stage == "search":
            numbers.setdefault(trial.variant, []).append(trial.number)
        found += [Breach("A", name_of(trial), text) for text in _identity_problems(facts, trial)]
    for variant, asked in asked_for(facts).items():
        own = sorted(numbers.get(variant, []))
        if own != list(range(len(own))):
            missing = sorted(set(range(own[-1] + 1)) - set(own))
            doubled = sorted({n for n in own if own.count(n) > 1})
            text = f"trial numbers are not 0 to {own[-1]}, each once: "
            found.append(Breach("A", variant, f"{text}missing {missing}, doubled {doubled}."))
        if len(own) > asked:
            found.append(Breach("A", variant, f"{len(own)} trials, but {asked} were asked for."))
    known = {trial.signature for trial in facts.trials}
    for signature in sorted({*facts.attempts, *facts.rows} - known):
        found.append(Breach("A", signature, "attempts or epochs of a trial that was not planned."))
    return Result("A", "every trial is there once, as planned", len(facts.trials), found)


def _identity_problems(facts: Snapshot, trial: Trial) -> Iterator[str]:
    try:
        signature = TrainConfig.from_dict(trial.config).signature()
    except (ValueError, TypeError) as error:
        yield f"its configuration cannot be read: {error}"
        return
    if signature != trial.signature:
        yield f"its configuration has the signature {signature}."
    for name, value in trial.params.items():
        if trial.config.get(name) != value:
            yield f"{name} was suggested as {value!r}, but is {trial.config.get(name)!r}."
    sweep_seed = facts.header.plan_at(trial.planned_seq).seed
    seeds = {trial_seed(sweep_seed, trial.variant, trial.number)}
    if trial.stage == "final":  # its number counts those of other configurations too
        numbers = range(trial.number + 1)
        seeds = {trial_seed(sweep_seed, f"{trial.variant}/final", number) for number in numbers}
    if trial.config["seed"] not in seeds:
        yield f"its seed is {trial.config['seed']}, not {' or '.join(map(str, sorted(seeds)))}."


def check_attempts(facts: Snapshot) -> Result:
    """A: attempts are counted without gap, only the last is open, and the trial says the same."""
    found: list[Breach] = []
    for trial in facts.trials:
        own = facts.attempts[trial.signature]
        problems = [*_attempt_problems(facts, own), *_status_problems(trial, own)]
        found += [Breach("A", name_of(trial), text) for text in problems]
    return Result("A", "attempts fit their trials", sum(map(len, facts.attempts.values())), found)


def _attempt_problems(facts: Snapshot, own: list[Attempt]) -> Iterator[str]:
    numbers = [attempt.attempt for attempt in own]
    if numbers != list(range(1, len(own) + 1)):
        yield f"attempts are numbered {numbers}."
    for attempt in own[:-1]:
        if attempt.outcome not in ("failed", "lost"):
            yield f"attempt {attempt.attempt} is {attempt.outcome or 'open'}, but another follows."
    if is_open(own) and facts.driver is None:
        yield f"attempt {own[-1].attempt} is open, but no driver runs."


# What the last attempt of a trial may be, by the trial's status. Open is None, "none" is none; a
# trial whose variant is given up fails with whatever its last attempt was.
_LAST: dict[str, tuple[str | None, ...]] = {
    "planned": ("none",),
    "running": (None, "lost", "failed"),
    "complete": ("complete",),
    "stopped": ("stopped",),
    "diverged": ("diverged",),
    "failed": ("failed", "lost"),
}


def _status_problems(trial: Trial, own: list[Attempt]) -> Iterator[str]:
    last = own[-1].outcome if own else "none"
    if last not in _LAST[trial.status]:
        yield f"it is {trial.status}, but its last attempt is {last or 'open'}."
    if (trial.status in ENDED) != (trial.ended_seq is not None):
        yield f"it is {trial.status}, but its end is {trial.ended_seq}."


def check_epochs(facts: Snapshot) -> Result:
    """A: epochs are counted without gap, arrived in order, none after the end, and best is best."""
    found: list[Breach] = []
    for trial in facts.trials:
        rows = facts.rows[trial.signature]
        problems = [*_epoch_problems(facts, trial, rows), *_best_problems(facts, trial, rows)]
        found += [Breach("A", name_of(trial), text) for text in problems]
    return Result("A", "epochs are there once", sum(map(len, facts.rows.values())), found)


def _epoch_problems(facts: Snapshot, trial: Trial, rows: list[EpochRow]) -> Iterator[str]:
    epochs = [row.epoch for row in rows]
    if epochs != list(range(len(rows))):
        doubled = sorted({n for n in epochs if epochs.count(n) > 1})
        missing = sorted(set(range(max(epochs) + 1)) - set(epochs))
        yield f"epochs are not counted from 0, each once: missing {missing}, doubled {doubled}."
    if [row.seq for row in rows] != sorted(row.seq for row in rows):
        yield "an epoch arrived before the one before it."
    if [row.attempt for row in rows] != sorted(row.attempt for row in rows):
        yield "an epoch was recorded by an older attempt than the one before it."
    known = {attempt.attempt for attempt in facts.attempts[trial.signature]}
    for row in rows:
        if row.attempt not in known:
            yield f"epoch {row.epoch} is of attempt {row.attempt}, which there is not."
        if trial.ended_seq is not None and row.seq > trial.ended_seq:
            yield f"epoch {row.epoch} arrived after the trial's end."
    wanted = trial.config.get("epochs", 0)
    patient = trial.config.get("early_stop_patience_epochs", 0)
    if len(rows) > wanted or (trial.status == "complete" and len(rows) < wanted and not patient):
        yield f"it is {trial.status} with {len(rows)} of {wanted} epochs."


def _best_problems(facts: Snapshot, trial: Trial, rows: list[EpochRow]) -> Iterator[str]:
    best = best_of(facts, trial, rows) if trial.status in ("complete", "stopped") else None
    epoch, value = best or (None, None)
    if value is not None and math.isnan(value):
        value = None  # as SQLite stores it
    if (trial.best_epoch, trial.best_value) != (epoch, value):
        said = f"epoch {trial.best_epoch}, {trial.best_value}"
        yield f"its best is said to be {said}; its rows say epoch {epoch}, {value}."


def best_of(facts: Snapshot, trial: Trial, rows: list[EpochRow]) -> tuple[int, float] | None:
    """Return the epoch that a trial is evaluated by and the sweep's metric there."""
    if not trial.config["validation_fraction"]:
        return rows[-1].epoch, math.nan
    judge = trial.config["select_by"]
    mode = "min" if judge == "val_loss" else "max"
    metric = facts.header.plan_at(trial.ended_seq or 0).space.metric
    best, best_evaluated = None, math.nan
    for row in rows:
        if is_better(row.metrics[judge], best_evaluated, mode):
            best_evaluated = row.metrics[judge]
            best = row.epoch, row.metrics[metric]
    return best


def check_evaluations(facts: Snapshot) -> Result:
    """A: the test split has evaluated each trial once that it is to judge, and no other."""
    found: list[Breach] = []
    evaluations = facts.ledger.evaluations()
    for trial in facts.trials:
        wanted = facts.header.plan_at(trial.planned_seq).is_evaluated(trial)
        there = evaluations.pop(trial.signature, None)
        if there is None and wanted and trial.status == "complete":
            found.append(Breach("A", name_of(trial), "the test split has not evaluated it."))
        if there is not None and not wanted:
            found.append(Breach("A", name_of(trial), "the test split has evaluated it, unasked."))
        if there is not None and trial.ended_seq and there["epoch"] != trial.best_epoch:
            text = (
                f"the test split evaluated epoch {there['epoch']}; its best is {trial.best_epoch}."
            )
            found.append(Breach("A", name_of(trial), text))
    for signature in sorted(evaluations):
        found.append(Breach("A", signature, "an evaluation of a trial that was not planned."))
    return Result("A", "the test split was asked once", len(facts.trials), found)


def check_checkpoints(facts: Snapshot) -> Result:
    """D: what a trial would go on from, and the best weights, are there and undamaged."""
    from orchestrator.ledger import ranking

    keep = facts.header.num_best
    mode = facts.header.plan.space.mode
    best = ranking.top_k(facts.trials, keep, mode)
    # Those that a later command wants beside the first ones may have been deleted before.
    sure = ranking.top_k(facts.trials, min(keep, facts.header.keep_best), mode)
    found: list[Breach] = []
    checked = 0
    for trial in facts.trials:
        rows = facts.rows[trial.signature]
        if trial.status in ("complete", "stopped", "diverged"):
            places = [[row.checkpoint] for row in rows if row.epoch == trial.best_epoch]
            places = places if trial.signature in best else []
            may_lack = trial.signature not in sure
        else:
            places, may_lack = _resume_places(facts, trial)[:1], False
        for candidates in places:
            there = [path for path in candidates if path and _is_there(facts, path)]
            # While a driver runs, a later epoch or a better trial may have replaced it since.
            if not there and (may_lack or facts.driver is not None):
                continue
            checked += 1
            problems = [_damage(facts, path) for path in there or candidates]
            if all(problems) and not _is_being_deleted(facts, there):
                found += [Breach("D", name_of(trial), str(problem)) for problem in problems]
    return Result("D", "checkpoints that are needed can be loaded", checked, found)


def _resume_places(facts: Snapshot, trial: Trial) -> list[list[str | None]]:
    """Return where an unended trial's epochs may lie, newest first.

    An epoch that was trained again lies in more than one attempt's folder, and any of them does.
    An attempt that started anew leaves behind what was before it.
    """
    attempts = facts.attempts[trial.signature]
    anew = max((a.attempt for a in attempts if a.resumed_from is None), default=0)
    numbers = [a.attempt for a in attempts if a.attempt >= anew]
    places: list[list[str | None]] = []
    for row in reversed(facts.rows[trial.signature]):
        paths = [checkpoint_path(trial.signature, number, row.epoch) for number in numbers]
        there: list[str | None] = [p for p in paths if _is_there(facts, p)]
        if there or (row.checkpoint and row.attempt >= anew):
            places.append(there or [row.checkpoint])
    return places


def _is_there(facts: Snapshot, path: str) -> bool:
    """Return whether a checkpoint is on this machine, or comes there from the sweep's storage."""
    if facts.paths.remote and checkpoints.local_checkpoint(facts.paths, path) is not None:
        return True
    return (facts.paths.root / path).exists()


def _is_being_deleted(facts: Snapshot, paths: Sequence[str]) -> bool:
    """Return whether a driver that runs has just begun to delete these checkpoints."""
    if facts.driver is None:
        return False
    time.sleep(1.0)
    return not any((facts.paths.root / path).exists() for path in paths)


def _damage(facts: Snapshot, path: str | None) -> str | None:
    """Return what is wrong with a checkpoint, None when nothing is."""
    from trainables.training import checkpoint

    if not path:
        return "no checkpoint was recorded for its best epoch."
    try:
        checkpoint.verify(facts.paths.root / path)
    except checkpoint.CheckpointError as error:
        return str(error)
    return None
