"""Promises A and D: trials, attempts and epochs fit together, checkpoints can be loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator

from orchestrator.ledger import ENDED, Attempt, EpochRow, Trial
from orchestrator.verify_facts import Breach, Facts, Result, asked_for, is_open, name_of
from search_spaces.space import is_better, trial_seed
from trainables.config import TrainConfig


def check_trials(facts: Facts) -> Result:
    """A: numbers without gap or repetition, as many as asked for, each the trial it says it is."""
    found: list[Breach] = []
    numbers: dict[str, list[int]] = {}
    for trial in facts.trials:
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


def _identity_problems(facts: Facts, trial: Trial) -> Iterator[str]:
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
    seed = trial_seed(facts.plan["seed"], trial.variant, trial.number)
    if trial.config["seed"] != seed:
        yield f"its seed is {trial.config['seed']}, not {seed}."


def check_attempts(facts: Facts) -> Result:
    """A: attempts are counted without gap, only the last is open, and the trial says the same."""
    found: list[Breach] = []
    for trial in facts.trials:
        own = facts.attempts[trial.signature]
        problems = [*_attempt_problems(facts, own), *_status_problems(trial, own)]
        found += [Breach("A", name_of(trial), text) for text in problems]
    return Result("A", "attempts fit their trials", sum(map(len, facts.attempts.values())), found)


def _attempt_problems(facts: Facts, own: list[Attempt]) -> Iterator[str]:
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


def check_epochs(facts: Facts) -> Result:
    """A: epochs are counted without gap, arrived in order, none after the end, and best is best."""
    found: list[Breach] = []
    for trial in facts.trials:
        rows = facts.rows[trial.signature]
        found += [Breach("A", name_of(trial), text) for text in _epoch_problems(facts, trial, rows)]
    return Result("A", "epochs are there once", sum(map(len, facts.rows.values())), found)


def _epoch_problems(facts: Facts, trial: Trial, rows: list[EpochRow]) -> Iterator[str]:
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
    best = best_of(facts, trial, rows) if trial.status in ("complete", "stopped") else None
    if (trial.best_epoch, trial.best_value) != (best or (None, None)):
        said = f"epoch {trial.best_epoch}, {trial.best_value}"
        yield f"its best is said to be {said}; its rows say {best}."


def best_of(facts: Facts, trial: Trial, rows: list[EpochRow]) -> tuple[int, float] | None:
    """Return the epoch that a trial is judged by and the sweep's metric there."""
    judge = trial.config["select_by"]
    mode = "min" if judge == "val_loss" else "max"
    best, best_judged = None, math.nan
    for row in rows:
        if is_better(row.metrics[judge], best_judged, mode):
            best_judged = row.metrics[judge]
            best = row.epoch, row.metrics[facts.plan["space"]["metric"]]
    return best


def check_checkpoints(facts: Facts) -> Result:
    """D: what a trial would go on from, and the best weights, are there and undamaged."""
    from orchestrator import retention
    from trainables import checkpoint

    mode, keep = facts.plan["space"]["mode"], facts.ledger.get("keep_best")
    best = retention.best_signatures(facts.trials, keep, mode)
    found: list[Breach] = []
    checked = 0
    for trial in facts.trials:
        stored = {row.epoch: row.checkpoint for row in facts.rows[trial.signature]}
        if trial.status in ("complete", "stopped", "diverged"):
            wanted = [trial.best_epoch or 0] if trial.signature in best else []
        else:
            wanted = [epoch for epoch, path in stored.items() if path][-1:]
        for epoch in wanted:
            path = stored.get(epoch)
            folder = facts.paths.root / (path or "")
            if facts.driver is not None and not folder.exists():
                continue  # a later epoch, or a better trial, has replaced it since
            checked += 1
            try:
                if not path:
                    raise checkpoint.CheckpointError("no checkpoint was recorded.")
                checkpoint.verify(folder)
            except checkpoint.CheckpointError as error:
                found.append(Breach("D", name_of(trial), f"epoch {epoch}: {error}"))
    return Result("D", "checkpoints that are needed can be loaded", checked, found)
