"""`TrialScheduler`: decides which trial starts next, which stops and which is retried.

Every decision is a function of the ledger's rows and the sweep's seed. The scheduler knows nothing
of Ray, MLflow or the terminal: `execution` drives it, `tracking` and the display read the ledger.
Its own state, the studies and the queue, is rebuilt from the ledger when it is created.
"""

from __future__ import annotations

import collections
import functools
import numbers
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.clock import Clock
from orchestrator.ledger import ranking
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import ENDED, Attempt, EpochRow, Metrics, Trial, TrialStatus
from orchestrator.plan.plan import Plan
from orchestrator.redaction import redacted
from orchestrator.search import decisions, early_stopping, retry_policy
from orchestrator.search.sampler import study_of
from trainables.config import TrainConfig
from trainables.metrics import METRIC_NAMES

# What could start next: the variant, its epochs still to train, and a function that returns the
# trial, which may be a new one.
_Candidate = tuple[str, int, Callable[[], Trial]]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStart:
    """One attempt to start now. `resume_from` is relative to the sweep's folder."""

    signature: str
    attempt: int
    variant: str
    number: int
    config: TrainConfig
    resume_from: str | None
    is_evaluated: bool  # on the test split, after its last epoch


class TrialScheduler:
    """The decisions of a running sweep. Safe to call from several threads."""

    def __init__(
        self,
        ledger: Ledger,  # open for writing
        plan: Plan,  # of this command
        *,
        # Whether a checkpoint can be loaded; the path is relative to the sweep's folder.
        is_loadable: Callable[[str], bool] = lambda path: True,
        has_room: Callable[[str], bool] = lambda variant: True,  # whether its trial fits on disk
        fits_budget: Callable[[str, int], bool] = lambda variant, epochs: True,  # more epochs of it
        retry_failed: bool = True,  # those of earlier commands
        from_scratch: bool = False,  # retry them from their first epoch
        clock: Clock | None = None,  # for pauses; None: the real one
    ) -> None:
        """Rebuild the state from the ledger."""
        self.ledger, self.plan = ledger, plan
        self._is_loadable, self._has_room, self._fits_budget = is_loadable, has_room, fits_budget
        self._retry_failed, self._from_scratch = retry_failed, from_scratch
        self._restarting: set[str] = set()  # signatures whose next attempt starts from scratch
        self._disk = retry_policy.DiskPauses(clock or Clock())
        self._lock = threading.RLock()
        self._waiting: dict[str, int] = {}  # signature: micro-batch size of the next attempt
        self._running: dict[str, int] = {}  # signature: attempt
        self._is_interrupted = False
        self._errors = {variant: retry_policy.RepeatedErrors() for variant in plan.variants}
        self._planned: collections.Counter[str] = collections.Counter()  # search trials
        self._best: dict[str, Trial | None] = {}  # by variant whose search has finished
        self._studies = {variant: study_of(plan, variant) for variant in plan.variants}
        self._rebuild()

    # Queries.

    def next_start(self) -> AttemptStart | None:
        """Return the next attempt to start, already in the ledger; None if none can start now.

        Trials that wait for their next attempt come first, then new trials of the variants in the
        plan's order, then the final trials of variants whose search has finished.
        """
        with self._lock:
            if self._is_interrupted or self._disk.halted or self._disk.is_active():
                return None
            if (candidate := self._next_candidate()) is None:
                return None
            variant, _, planned_trial = candidate
            if not self._has_room(variant):
                self._disk.start("There is too little room left on the disk for another trial.")
                return None
            return self._start(planned_trial())

    def has_work(self) -> bool:
        """Return whether any attempt is running or could start."""
        with self._lock:
            return bool(self._running) or self._next_candidate() is not None

    def is_paused(self) -> bool:
        """Return whether no attempt starts for now because the disk failed a moment ago."""
        with self._lock:
            return self._disk.is_active()

    def halted(self) -> str | None:
        """Return why no attempt starts any more, None unless the disk keeps failing."""
        with self._lock:
            return self._disk.halted

    def given_up(self) -> tuple[str, ...]:
        """Return the variants that were stopped because several trials failed the same way."""
        with self._lock:
            return tuple(variant for variant in self.plan.variants if self._is_given_up(variant))

    def left_out(self) -> dict[str, int]:
        """Return by variant how many trials did not fit the budget, once no more can start."""
        with self._lock:
            left = collections.Counter(self._variant(signature) for signature in self._waiting)
            for variant in self.plan.variants:
                if self._is_given_up(variant):
                    continue
                left[variant] += max(self.plan.trials - self._planned[variant], 0)
                if best := self._best_if_finished(variant):
                    seeds = [t for t in self.ledger.trials("final") if t.origin == best.signature]
                    left[variant] += max(self.plan.final_seeds - len(seeds), 0)
            return {variant: left[variant] for variant in self.plan.variants if left[variant]}

    # Reports of running attempts.

    def on_epoch(
        self, signature: str, attempt: int, epoch: int, metrics: Metrics, checkpoint: str | None
    ) -> bool:
        """Store an epoch and return whether the attempt must stop.

        A report of an attempt that has ended or was replaced is ignored, and the attempt must stop.
        """
        with self._lock:
            if self._running.get(signature) != attempt:
                return True
            if problem := _report_problem(epoch, metrics):
                end = {"failure_class": "bug", "failure_text": problem}
                self.on_end(signature, attempt, outcome="failed", **end)
                return True
            values = {name: float(metrics[name]) for name in METRIC_NAMES}
            is_new = self.ledger.record_epoch(signature, attempt, epoch, values, checkpoint)
            self._disk.reset()
            if not is_new:
                return False
            trial = self.ledger.trial(signature)
            self._errors[trial.variant].forget(signature)
            rows = self.ledger.epochs(signature)
            if is_stopped := self._is_stopped_early(trial, rows):
                self._end(trial, attempt, rows, "stopped")
            return is_stopped

    def on_evaluation(self, signature: str, attempt: int, result: Mapping[str, Any]) -> bool:
        """Store an evaluation on the test split and return whether the attempt must stop."""
        with self._lock:
            if self._running.get(signature) != attempt:
                return True
            self.ledger.record_evaluation(signature, attempt, result)
            return False

    def on_end(
        self,
        signature: str,
        attempt: int,
        *,
        outcome: Literal["complete", "diverged", "failed"],
        failure_class: str | None = None,
        failure_text: str | None = None,
    ) -> None:
        """Store the end of an attempt; a failed one has a class and a text.

        An attempt that has ended already stays as it is.
        """
        with self._lock:
            if self._running.get(signature) != attempt:
                return
            trial = self.ledger.trial(signature)
            if outcome in ("complete", "diverged"):
                self._end(trial, attempt, self.ledger.epochs(signature), outcome)
                return
            text = redacted(failure_text or "")
            self.ledger.end_attempt(
                signature, attempt, outcome="failed", failure_class=failure_class, failure_text=text
            )
            if failure_class == "disk":
                self._disk.start(retry_policy.last_line(text))
            self._retry_or_fail(trial)

    def interrupt(self) -> None:
        """Close the running attempts as lost, which counts as no failure, and start no more.

        `--resume` continues their trials.
        """
        with self._lock:
            self._is_interrupted = True
            for signature, attempt in self._running.items():
                self.ledger.end_attempt(signature, attempt, outcome="lost")
            self._running.clear()

    # What starts next.

    def _next_candidate(self) -> _Candidate | None:
        """Return the first candidate that fits the budget."""
        return next((c for c in self._candidates() if self._fits_budget(*c[:2])), None)

    def _candidates(self) -> Iterator[_Candidate]:
        """Yield what could start now, in order of precedence."""
        for signature in self._waiting:
            trial = self.ledger.trial(signature)
            rows = [] if signature in self._restarting else self.ledger.epochs(signature)
            left = decisions.epochs_left(trial, rows)
            yield trial.variant, left, functools.partial(self.ledger.trial, signature)
        for variant in self.plan.variants:
            if self._planned[variant] < self.plan.trials and not self._is_given_up(variant):
                plan = functools.partial(self._plan_trial, variant)
                yield variant, self.plan.epochs(variant), plan
        for variant in self.plan.variants:
            if best := self._best_if_finished(variant):
                finals = self.ledger.trials("final")
                planned = {trial.signature for trial in finals}
                if config := decisions.missing_final(self.plan, best, planned):
                    origin, number = best.signature, sum(t.variant == variant for t in finals)
                    plan = functools.partial(self._plan, config, number, best.params, origin)
                    yield variant, self.plan.epochs(variant), plan

    def _best_if_finished(self, variant: str) -> Trial | None:
        """Return the trial that a variant's final trials repeat.

        None while the search runs, if no search trial completed, or without final trials.
        """
        is_searched = bool(self.plan.space.params_for(variant))
        if not is_searched or not self.plan.final_seeds or self._is_given_up(variant):
            return None
        if variant not in self._best:
            is_all_planned = self._planned[variant] >= self.plan.trials
            unended = [*self._running, *self._waiting]
            if not is_all_planned or any(self._variant(one) == variant for one in unended):
                return None
            own = [trial for trial in self.ledger.trials("search") if trial.variant == variant]
            self._best[variant] = ranking.best_of(own, self.plan.space.mode)
        return self._best[variant]

    def _start(self, trial: Trial) -> AttemptStart:
        signature, resume_from = trial.signature, None
        if signature not in self._restarting:
            attempts, rows = self.ledger.attempts(signature), self.ledger.epochs(signature)
            resume_from = decisions.resume_point(attempts, rows, self._is_loadable)
        self._restarting.discard(signature)
        micro = self._waiting.pop(signature, 0)
        attempt = self.ledger.start_attempt(
            signature, resumed_from=resume_from, micro_batch_size=micro
        )
        self._running[signature] = attempt
        return AttemptStart(
            signature=signature,
            attempt=attempt,
            variant=trial.variant,
            number=trial.number,
            config=TrainConfig.from_dict({**trial.config, "micro_batch_size": micro}),
            resume_from=resume_from,
            is_evaluated=self.plan.is_evaluated(trial),
        )

    def _plan_trial(self, variant: str) -> Trial:
        number = self._planned[variant]
        params = self._studies[variant].ask(number)
        trial = self._plan(self.plan.train_config(variant, number, params), number, params)
        self._planned[variant] += 1
        return trial

    def _plan(
        self, config: TrainConfig, number: int, params: Mapping[str, Any], origin: str | None = None
    ) -> Trial:
        """Store a new trial, a final one if it has an origin, before it starts."""
        signature = config.signature()
        self.ledger.plan_trial(
            signature=signature,
            variant=config.variant,
            stage="final" if origin else "search",
            number=number,
            origin=origin,
            config=config.to_dict(),
            params=params,
            seen_seq=self.ledger.seq,
        )
        return self.ledger.trial(signature)

    # How attempts and trials end.

    def _is_stopped_early(self, trial: Trial, rows: Sequence[EpochRow]) -> bool:
        return bool(rows) and bool(early_stopping.decide(self.ledger, self.plan, trial, rows[-1]))

    def _end(
        self, trial: Trial, attempt: int, rows: Sequence[EpochRow], outcome: TrialStatus
    ) -> None:
        """End a trial that did not fail, with its attempt's outcome as its status."""
        self._running.pop(trial.signature, None)
        self._errors[trial.variant].forget(trial.signature)
        best = None
        if outcome != "diverged":
            best = decisions.best_epoch(trial, rows, self.plan.space.metric)
        self.ledger.end_attempt(
            trial.signature, attempt, outcome=outcome, trial_status=outcome, best=best
        )
        self._tell_sampler(self.ledger.trial(trial.signature))

    def _retry_or_fail(self, trial: Trial) -> None:
        """Queue a trial whose attempt has failed, or fail it if it is not to be retried."""
        signature = trial.signature
        attempts, rows = self.ledger.attempts(signature), self.ledger.epochs(signature)
        decision = decisions.after_failure(trial, attempts, rows, self.plan.space.max_attempts)
        self._errors[trial.variant].note(attempts[-1])
        if decision.retry and not self._is_given_up(trial.variant):
            del self._running[signature]
            self._waiting[signature] = decision.micro_batch_size
            return
        self._fail(signature)
        self._fail_waiting(trial.variant)

    def _fail(self, signature: str) -> None:
        """Fail a trial; its last attempt keeps its outcome."""
        self._running.pop(signature, None)
        last = self.ledger.attempts(signature)[-1]
        self.ledger.end_attempt(
            signature,
            last.attempt,
            outcome=last.outcome or "failed",
            failure_class=last.failure_class,
            failure_text=last.failure_text,
            trial_status="failed",
        )
        self._tell_sampler(self.ledger.trial(signature))

    def _fail_waiting(self, variant: str) -> None:
        """Fail the waiting trials of a variant that is given up.

        Trials without an attempt stay planned: nothing is known about them.
        """
        if not self._is_given_up(variant):
            return
        for signature in [s for s in self._waiting if self._variant(s) == variant]:
            del self._waiting[signature]
            if self.ledger.attempts(signature):
                self._fail(signature)

    def _tell_sampler(self, trial: Trial) -> None:
        """Tell the sampler how a search trial ended."""
        if trial.stage == "search":
            rows = self.ledger.epochs(trial.signature)
            self._studies[trial.variant].tell(trial, rows, self.plan.space.metric)

    # After a restart.

    def _rebuild(self) -> None:
        """Rebuild studies, queue and counters from the ledger.

        An open attempt belongs to a driver that has ended: it is closed as lost, which counts as
        no failure, and its trial waits for the next attempt. Failed trials are retried. Trials
        beyond a smaller number of trials stay as they are.
        """
        attempts = collections.defaultdict(list)
        for attempt in self.ledger.attempts():
            attempts[attempt.signature].append(attempt)
        for trial in self.ledger.trials():
            own = attempts[trial.signature]
            if trial.variant not in self._studies:
                self._close_as_lost(own)  # not in this command; another one may resume it
                continue
            if trial.stage == "search":
                self._planned[trial.variant] += 1
                self._studies[trial.variant].add_planned(trial)
            if trial.status in ENDED and trial.status != "failed":
                self._tell_sampler(trial)
                continue
            self._recover(trial, own)
        for variant in self.plan.variants:
            self._fail_waiting(variant)

    def _recover(self, trial: Trial, attempts: Sequence[Attempt]) -> None:
        """Queue a trial of an earlier command that has not ended or has failed, or leave it."""
        rows = self.ledger.epochs(trial.signature)
        # The driver may have ended after it stored the row and before it stopped the trial.
        if attempts and trial.status == "running" and self._is_stopped_early(trial, rows):
            self._end(trial, attempts[-1].attempt, rows, "stopped")
            return
        self._close_as_lost(attempts)
        has_failed = trial.status == "failed"
        is_retried = has_failed and self._retry_failed
        if attempts and not is_retried:
            self._errors[trial.variant].note(attempts[-1])
        is_beyond = trial.stage == "search" and trial.number >= self.plan.trials
        if is_beyond or (has_failed and not is_retried):
            if has_failed:
                self._tell_sampler(trial)
            return
        micro = 0
        if has_failed and self._from_scratch:
            self._restarting.add(trial.signature)
        else:
            most = self.plan.space.max_attempts
            micro = decisions.next_micro_batch(trial, attempts, rows, most)
        self._waiting[trial.signature] = micro

    def _close_as_lost(self, attempts: Sequence[Attempt]) -> None:
        """Close a trial's last attempt as lost if a driver that has ended left it open."""
        if attempts and (last := attempts[-1]).outcome is None:
            self.ledger.end_attempt(last.signature, last.attempt, outcome="lost")

    def _variant(self, signature: str) -> str:
        return self.ledger.trial(signature).variant

    def _is_given_up(self, variant: str) -> bool:
        return self._errors[variant].reached_limit()


def _report_problem(epoch: object, metrics: Mapping[str, Any]) -> str | None:
    """Return why a worker's report of an epoch is invalid, None if it is valid."""
    problems = [f"it lacks {name!r}" for name in METRIC_NAMES if name not in metrics]
    problems += [
        f"its {name!r} must be a number; got {value!r:.80}"
        for name in METRIC_NAMES
        if isinstance(value := metrics.get(name, 0), bool) or not isinstance(value, numbers.Real)
    ]
    if type(epoch) is not int or epoch < 0:
        problems.append(f"its epoch must be a whole number from 0; got {epoch!r:.80}")
    return f"A report of this trial is invalid: {'; '.join(problems)}." if problems else None
