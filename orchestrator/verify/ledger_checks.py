"""Checks that trials, attempts and epochs are consistent, and that checkpoints can be loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.ledger import ranking
from orchestrator.ledger.records import ENDED, EpochRow, Trial
from orchestrator.plan.plan import trial_seed
from orchestrator.search import decisions
from orchestrator.storage import sweeps
from orchestrator.storage.paths import checkpoint_path
from orchestrator.verify.snapshot import Result, Snapshot, is_open, problems_of, requested_trials
from trainables.config import TrainConfig


def check_trials(snapshot: Snapshot) -> Result:
    """Check that every requested trial exists once and that its signature is that of its config."""
    found = snapshot.problems("ledger", _identity_problems)
    searched = [trial for trial in snapshot.trials if trial.stage == "search"]
    for variant, requested in requested_trials(snapshot).items():
        own = sorted(trial.number for trial in searched if trial.variant == variant)
        texts = [*_numbering_problems("trial numbers", own, first=0)]
        if len(own) > requested:
            texts.append(f"there are {len(own)} trials, but {requested} were requested.")
        found += [f"ledger: {variant}: {text}" for text in texts]
    known = {trial.signature for trial in snapshot.trials}
    text = "there are attempts or epochs of a trial that was not planned."
    unknown = sorted({*snapshot.attempts, *snapshot.rows} - known)
    found += [f"ledger: {signature}: {text}" for signature in unknown]
    return Result("ledger", "every planned trial exists once", len(snapshot.trials), found)


def _numbering_problems(what: str, numbers: list[int], first: int) -> Iterator[str]:
    if numbers != list(range(first, first + len(numbers))):
        missing = sorted(set(range(first, max(numbers) + 1)) - set(numbers))
        repeated = sorted({n for n in numbers if numbers.count(n) > 1})
        text = f"{what} are not {first} to {max(numbers)}, each once: "
        yield f"{text}missing {missing}, repeated {repeated}."


def _identity_problems(snapshot: Snapshot, trial: Trial) -> Iterator[str]:
    try:
        signature = TrainConfig.from_dict(trial.config).signature()
    except (ValueError, TypeError) as error:
        yield f"its configuration cannot be read: {error}"
        return
    if signature != trial.signature:
        yield f"the signature of its configuration is {signature}."
    for name, value in trial.params.items():
        if trial.config.get(name) != value:
            yield f"{name} is {trial.config.get(name)!r}, but {value!r} was suggested."
    sweep_seed = snapshot.header.plan_at(trial.planned_seq).seed
    seeds = {trial_seed(sweep_seed, trial.variant, trial.number)}
    if trial.stage == "final":  # numbered together with the final trials of other configurations
        numbers = range(trial.number + 1)
        seeds = {trial_seed(sweep_seed, f"{trial.variant}/final", number) for number in numbers}
    if trial.config["seed"] not in seeds:
        yield f"its seed is {trial.config['seed']}, not {' or '.join(map(str, sorted(seeds)))}."


def check_attempts(snapshot: Snapshot) -> Result:
    """Check that attempts are numbered 1 to n, only the last is open, and the status agrees."""
    count = sum(map(len, snapshot.attempts.values()))
    found = snapshot.problems("ledger", _attempt_problems)
    return Result("ledger", "attempts agree with their trials", count, found)


# Possible outcomes of a trial's last attempt, by the trial's status. None is an open attempt,
# "none" stands for no attempt. A trial of a variant that is given up fails after a failed or lost
# attempt.
_LAST_OUTCOMES: dict[str, tuple[str | None, ...]] = {
    "planned": ("none",),
    "running": (None, "lost", "failed"),
    **{outcome: (outcome,) for outcome in ("complete", "stopped", "diverged")},
    "failed": ("failed", "lost"),
}


def _attempt_problems(snapshot: Snapshot, trial: Trial) -> Iterator[str]:
    own = snapshot.attempts[trial.signature]
    numbers = [attempt.attempt for attempt in own]
    if numbers != list(range(1, len(own) + 1)):
        yield f"its attempts are numbered {numbers}, not 1 to {len(own)}."
    for attempt in own[:-1]:
        if attempt.outcome not in ("failed", "lost"):
            outcome = attempt.outcome or "open"
            yield f"attempt {attempt.attempt} is {outcome}, but it is not the last attempt."
    if is_open(own) and snapshot.driver is None:
        yield f"attempt {own[-1].attempt} is open, but no driver is running."
    last = own[-1].outcome if own else "none"
    if last not in _LAST_OUTCOMES[trial.status]:
        yield f"it is {trial.status}, but its last attempt is {last or 'open'}."
    if (trial.status in ENDED) != (trial.ended_seq is not None):
        yield f"it is {trial.status}, but the number of its last change is {trial.ended_seq}."


def check_epochs(snapshot: Snapshot) -> Result:
    """Check that epochs are complete and in order, and that the best epoch is the right one."""
    count = sum(map(len, snapshot.rows.values()))
    found = snapshot.problems("ledger", _epoch_problems)
    return Result("ledger", "every epoch is recorded once", count, found)


def _epoch_problems(snapshot: Snapshot, trial: Trial) -> Iterator[str]:
    rows = snapshot.rows[trial.signature]
    yield from _numbering_problems("epochs", [row.epoch + 1 for row in rows], first=1)
    if [row.seq for row in rows] != sorted(row.seq for row in rows):
        yield "its epochs did not arrive in their order."
    if [row.attempt for row in rows] != sorted(row.attempt for row in rows):
        yield "an epoch was recorded by an earlier attempt than the epoch before it."
    known = {attempt.attempt for attempt in snapshot.attempts[trial.signature]}
    for row in rows:
        if row.attempt not in known:
            yield f"epoch {row.epoch + 1} is of attempt {row.attempt}, which does not exist."
        if trial.ended_seq is not None and row.seq > trial.ended_seq:
            yield f"epoch {row.epoch + 1} arrived after the trial's end."
    planned = trial.config.get("epochs", 0)
    may_end_early = trial.config.get("early_stop_patience_epochs", 0) > 0
    is_short = trial.status == "complete" and len(rows) < planned and not may_end_early
    if len(rows) > planned or is_short:
        yield f"it is {trial.status} with {len(rows)} of {planned} epochs."
    yield from _best_problems(snapshot, trial, rows)


def _best_problems(snapshot: Snapshot, trial: Trial, rows: list[EpochRow]) -> Iterator[str]:
    metric, best = snapshot.header.plan_at(trial.ended_seq or 0).space.metric, None
    if rows and trial.status in ("complete", "stopped"):
        best = decisions.best_epoch(trial, rows, metric)
    epoch, value = best or (None, None)
    value = None if value is None or math.isnan(value) else value  # SQLite stores NaN as NULL
    if (trial.best_epoch, trial.best_value) != (epoch, value):
        recorded = _best_text(trial.best_epoch, trial.best_value)
        text = f"its best epoch is recorded as {recorded}, but its epochs give "
        yield f"{text}{_best_text(epoch, value)}."


def _best_text(epoch: int | None, value: float | None) -> str:
    return "none" if epoch is None else f"{epoch + 1} with the value {value}"


def check_evaluations(snapshot: Snapshot) -> Result:
    """Check that the trials to be evaluated on the test split were evaluated, and no others."""
    found: list[str] = []
    evaluations = snapshot.ledger.evaluations()
    for trial in snapshot.trials:
        evaluation = evaluations.pop(trial.signature, None)
        found += problems_of("ledger", trial, _evaluation_problems(snapshot, trial, evaluation))
    text = "there is an evaluation of a trial that was not planned."
    found += [f"ledger: {signature}: {text}" for signature in sorted(evaluations)]
    what = "exactly the chosen trials are evaluated"
    return Result("ledger", what, len(snapshot.trials), found)


def _evaluation_problems(
    snapshot: Snapshot, trial: Trial, evaluation: Mapping[str, Any] | None
) -> Iterator[str]:
    is_evaluated = snapshot.header.plan_at(trial.planned_seq).is_evaluated(trial)
    if evaluation is None:
        if is_evaluated and trial.status == "complete":
            yield "it was not evaluated on the test split."
        return
    if not is_evaluated:
        yield "it was evaluated on the test split, but should not have been."
    if trial.ended_seq and evaluation["epoch"] != trial.best_epoch:
        text = f"epoch {evaluation['epoch'] + 1} was evaluated on the test split, but its best "
        yield f"{text}epoch is {_best_text(trial.best_epoch, trial.best_value)}."


def check_checkpoints(snapshot: Snapshot) -> Result:
    """Check that the best weights and the checkpoints to resume from exist and are undamaged."""
    keep = snapshot.header.num_best
    mode = snapshot.header.plan.space.mode
    best = ranking.top_k(snapshot.trials, keep, mode)
    # A later command may keep more trials than the first one, which deleted their checkpoints.
    sure = ranking.top_k(snapshot.trials, min(keep, snapshot.header.keep_best), mode)
    found: list[str] = []
    checked = 0
    for trial in snapshot.trials:
        has_result = trial.status in ("complete", "stopped", "diverged")
        if not has_result:
            candidates = _resume_checkpoints(snapshot, trial)
        elif trial.signature in best:
            rows = snapshot.rows[trial.signature]
            candidates = [row.checkpoint for row in rows if row.epoch == trial.best_epoch]
        else:
            continue
        there = [path for path in candidates if path and _is_there(snapshot, path)]
        # While a driver runs, a later epoch or a better trial may have replaced it by now.
        may_lack = snapshot.driver is not None or (has_result and trial.signature not in sure)
        if not candidates or (may_lack and not there):
            continue
        checked += 1
        problems = [_damage(snapshot, path) for path in there or candidates]
        if all(problems) and not _is_being_deleted(snapshot, there):
            found += problems_of("checkpoints", trial, map(str, problems))
    return Result("checkpoints", "required checkpoints can be loaded", checked, found)


def _resume_checkpoints(snapshot: Snapshot, trial: Trial) -> list[str | None]:
    """Return the checkpoints of the newest epoch from which a trial can resume; one is enough.

    An epoch that was trained again has a checkpoint in several attempts' folders. Checkpoints from
    before an attempt that started from scratch are not used.
    """
    attempts = snapshot.attempts[trial.signature]
    first = max((a.attempt for a in attempts if a.resumed_from is None), default=0)
    numbers = [a.attempt for a in attempts if a.attempt >= first]
    for row in reversed(snapshot.rows[trial.signature]):
        paths = [checkpoint_path(trial.signature, number, row.epoch) for number in numbers]
        there: list[str | None] = [path for path in paths if _is_there(snapshot, path)]
        if there or (row.checkpoint and row.attempt >= first):
            return there or [row.checkpoint]
    return []


def _is_there(snapshot: Snapshot, path: str) -> bool:
    """Return whether a checkpoint is on this machine or was fetched from the sweep's storage."""
    if snapshot.paths.remote and sweeps.local_checkpoint(snapshot.paths, path) is not None:
        return True
    return (snapshot.paths.root / path).exists()


def _is_being_deleted(snapshot: Snapshot, paths: Sequence[str]) -> bool:
    """Return whether the running driver is deleting these checkpoints at this moment."""
    if snapshot.driver is None:
        return False
    time.sleep(1.0)
    return not any((snapshot.paths.root / path).exists() for path in paths)


def _damage(snapshot: Snapshot, path: str | None) -> str | None:
    """Return what is wrong with a checkpoint, None if it is good."""
    from trainables.training import checkpoint

    if not path:
        return "no checkpoint was recorded for its best epoch."
    try:
        checkpoint.verify(snapshot.paths.root / path)
    except checkpoint.CheckpointError as error:
        return str(error)
    return None
