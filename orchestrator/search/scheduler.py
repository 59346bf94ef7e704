"""Decides what happens next: which trial starts, which stops, which is tried again.

Every decision is a function of the ledger's rows and the sweep's seed. It knows nothing of Ray,
MLflow or the terminal: `launch` asks it and tells it, `tracking` and the display read the ledger.
Its only own state, the studies and the queue, is rebuilt from the ledger when it is made.
"""

from __future__ import annotations

import collections
import math
import numbers
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger import ranking
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ranking import is_better
from orchestrator.ledger.records import ENDED, Attempt, Trial, TrialStatus
from orchestrator.plan.plan import Plan
from orchestrator.redaction import redacted
from orchestrator.search import retry_policy
from orchestrator.search.early_stopping import is_stopped
from orchestrator.search.sampler import new_study
from orchestrator.storage.paths import checkpoint_path
from trainables.config import TrainConfig
from trainables.metrics import METRIC_NAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStart:
    """One attempt to start now. `resume_from` is relative to the sweep's folder."""

    signature: str
    attempt: int
    variant: str
    number: int
    config: TrainConfig
    resume_from: str | None
    is_evaluated: bool  # by the test split, at its end


class TrialScheduler:
    """The sweep's decisions. Safe to call from several threads."""

    def __init__(
        self,
        ledger: Ledger,
        plan: Plan,
        *,
        is_whole: Callable[[str], bool] | None = None,
        has_room: Callable[[str], bool] | None = None,
        is_allowed: Callable[[str, int], bool] | None = None,
        retry_failed: bool = True,
        from_scratch: bool = False,
    ) -> None:
        """Rebuild everything from the ledger.

        Args:
            ledger: the sweep's, open for writing.
            plan: what to do.
            is_whole: says of a checkpoint's path, relative to the sweep's folder, whether it can
                be loaded; None trusts them all.
            has_room: says of a variant whether the disk has room for one more of its trials; None:
                it always has.
            is_allowed: says of a variant whether the budget has room for so many more epochs of it;
                None: there is no budget.
            retry_failed: whether trials that failed in an earlier command are tried again.
            from_scratch: whether those start anew instead of from their last checkpoint.
        """
        self.ledger, self.plan = ledger, plan
        self._is_whole = is_whole or (lambda path: True)
        self._has_room = has_room or (lambda variant: True)
        self._is_allowed = is_allowed or (lambda variant, epochs: True)
        self._retry_failed, self._from_scratch = retry_failed, from_scratch
        self._fresh: set[str] = set()  # signatures that start anew
        self._disk = retry_policy.DiskPauses()
        self._lock = threading.RLock()
        self._retries: collections.deque[str] = collections.deque()
        self._micro_batch_size: dict[str, int] = {}
        self._running: dict[str, int] = {}  # signature: attempt
        self._is_interrupted = False
        self._alike = {variant: retry_policy.RepeatedErrors() for variant in plan.variants}
        self._planned: collections.Counter[str] = collections.Counter()
        # By variant whose search is over: its best trial.
        self._winners: dict[str, Trial | None] = {}
        self._studies = {variant: new_study(plan, variant) for variant in plan.variants}
        self._rebuild()

    # What launch asks.

    def next_start(self) -> AttemptStart | None:
        """Return the next attempt to start, stored in the ledger; None when nothing is left now.

        Interrupted and failed trials go first, then the variants in order, smallest first, then
        the final trials of those whose search is over.
        """
        with self._lock:
            if self._is_interrupted or self._disk.halted or self._disk.is_on():
                return None
            following = self._following()
            if following is None:
                return None
            if not self._has_room(following[0]):
                self._disk.begin("There is too little room left on the disk for another trial.")
                return None
            variant, origin, waiting = following
            if waiting is not None:
                self._retries.remove(waiting)
                return self._start(self.ledger.trial(waiting))
            trial = self._plan_final(origin) if origin else self._plan_trial(variant)
            return self._start(trial)

    def num_running(self) -> int:
        """Return how many attempts are under way."""
        with self._lock:
            return len(self._running)

    def has_work(self) -> bool:
        """Return whether anything runs or is left to start."""
        with self._lock:
            return bool(self._running) or self._following() is not None

    def is_paused(self) -> bool:
        """Return whether nothing starts for now, because the disk failed a moment ago."""
        with self._lock:
            return self._disk.is_on()

    def halted(self) -> str | None:
        """Return why nothing starts any more, None when that is not so."""
        with self._lock:
            return self._disk.halted

    def given_up(self) -> tuple[str, ...]:
        """Return the variants that were stopped because the same traceback came again and again."""
        with self._lock:
            return tuple(variant for variant in self.plan.variants if self._is_given_up(variant))

    def left_out(self) -> dict[str, int]:
        """Return how many trials the budget had no room for, by variant, once nothing follows."""
        with self._lock:
            left = collections.Counter(self._variant(signature) for signature in self._retries)
            for variant in self.plan.variants:
                if self._is_given_up(variant):
                    continue
                left[variant] += max(self.plan.trials - self._planned[variant], 0)
                best = self._finished_search(variant)
                if best is not None:
                    seeds = [t for t in self.ledger.trials("final") if t.origin == best.signature]
                    left[variant] += max(self.plan.final_seeds - len(seeds), 0)
            return {variant: left[variant] for variant in self.plan.variants if left[variant]}

    # What launch tells.

    def on_epoch(
        self,
        signature: str,
        attempt: int,
        epoch: int,
        metrics: Mapping[str, float],
        checkpoint: str | None,
    ) -> bool:
        """Store an epoch and return whether the trial is to stop here.

        A report of an attempt that has ended or been replaced changes nothing and stops it.
        """
        with self._lock:
            if self._running.get(signature) != attempt:
                return True
            if problem := _unusable(epoch, metrics):
                self.on_end(
                    signature, attempt, outcome="failed", failure_class="bug", failure_text=problem
                )
                return True
            values = {name: float(metrics[name]) for name in METRIC_NAMES}
            is_new = self.ledger.record_epoch(signature, attempt, epoch, values, checkpoint)
            self._disk.end_count()
            if is_new:
                self._alike[self._variant(signature)].forget(signature)
            if is_new and self._stops_after_last_row(self.ledger.trial(signature)):
                self._end(signature, attempt, outcome="stopped", status="stopped")
                return True
            return False

    def on_evaluation(self, signature: str, attempt: int, result: Mapping[str, Any]) -> bool:
        """Store a trial's evaluation on the test split; return whether the trial must stop here."""
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
        outcome: str,
        failure_class: str | None = None,
        failure_text: str | None = None,
    ) -> None:
        """Take the end of an attempt: "complete", "diverged" or "failed" with its class and text.

        An attempt that has ended already is left as it is.
        """
        with self._lock:
            if self._running.get(signature) != attempt:
                return
            if outcome in ("complete", "diverged"):
                status: TrialStatus = "complete" if outcome == "complete" else "diverged"
                self._end(signature, attempt, outcome=outcome, status=status)
                return
            trial = self.ledger.trial(signature)
            text = redacted(failure_text or "")
            self.ledger.end_attempt(
                signature,
                attempt,
                outcome="failed",
                failure_class=failure_class,
                failure_text=text,
                trial_status="running",
            )
            decision = self._decide(trial, self.ledger.attempts(signature))
            if failure_class == "disk":
                self._disk.begin(retry_policy.last_line(text))
            self._alike[trial.variant].note(self.ledger.attempts(signature)[-1])
            if decision.retry and not self._is_given_up(trial.variant):
                del self._running[signature]
                self._micro_batch_size[signature] = decision.micro_batch_size
                self._retries.append(signature)
                return
            self._fail(signature)
            self._fail_waiting(trial.variant)

    def interrupt(self) -> None:
        """Close what runs as lost, which is nobody's failure; `--resume` goes on with it.

        Nothing starts afterwards.
        """
        with self._lock:
            self._is_interrupted = True
            for signature, attempt in self._running.items():
                self.ledger.end_attempt(signature, attempt, outcome="lost", trial_status="running")
            self._running.clear()

    # How it is done.

    def _following(self) -> tuple[str, Trial | None, str | None] | None:
        """Return the variant of the next attempt to start, None when none can start now.

        With it, where that is to be a new final trial, the one that it trains again, and where it
        is one that waits for its next attempt, its signature.
        """
        for waiting in self._retries:
            variant = self._variant(waiting)
            if self._is_allowed(variant, self._epochs_left(waiting)):
                return variant, None, waiting
        for variant in self.plan.variants:
            if self._planned[variant] >= self.plan.trials or self._is_given_up(variant):
                continue
            if self._is_allowed(variant, self.plan.epochs(variant)):
                return variant, None, None
        for variant in self.plan.variants:
            best = self._finished_search(variant)
            if best is None or self._missing_final(best) is None:
                continue
            if self._is_allowed(variant, self.plan.epochs(variant)):
                return variant, best, None
        return None

    def _epochs_left(self, signature: str) -> int:
        rows = self.ledger.epochs(signature)
        done = 0 if signature in self._fresh or not rows else rows[-1].epoch + 1
        return int(self.ledger.trial(signature).config["epochs"]) - done

    def _finished_search(self, variant: str) -> Trial | None:
        """Return the best trial of a variant whose search is over, None where there is none."""
        is_searched = bool(self.plan.space.params_for(variant))
        if not is_searched or not self.plan.final_seeds or self._is_given_up(variant):
            return None
        if variant not in self._winners:
            is_all_planned = self._planned[variant] >= self.plan.trials
            unended = [*self._running, *self._retries]
            if not is_all_planned or any(self._variant(one) == variant for one in unended):
                return None
            own = [trial for trial in self.ledger.trials("search") if trial.variant == variant]
            self._winners[variant] = ranking.best_of(own, self.plan.space.mode)
        return self._winners[variant]

    def _missing_final(self, origin: Trial) -> TrainConfig | None:
        """Return the first configuration of a final trial that is not planned yet."""
        planned = {trial.signature for trial in self.ledger.trials("final")}
        for number in range(self.plan.final_seeds):
            config = self.plan.train_config(origin.variant, number, origin.params, "final")
            if config.signature() not in planned:
                return config
        return None

    def _resume_point(self, signature: str) -> str | None:
        """Return the newest whole checkpoint of a trial whose epoch is in the ledger.

        An epoch that was trained again lies in a later attempt's folder than its row says, and is
        as good. An attempt that started anew leaves everything before it behind.
        """
        attempts = self.ledger.attempts(signature)
        anew = max((a.attempt for a in attempts if a.resumed_from is None), default=0)
        numbers = [a.attempt for a in attempts if a.attempt >= anew]
        for row in reversed(self.ledger.epochs(signature)):
            if row.checkpoint is None:
                continue
            # The one of its row is looked at first.
            for number in sorted(numbers, key=lambda number: number != row.attempt):
                path = checkpoint_path(signature, number, row.epoch)
                if self._is_whole(path):
                    return path
        return None

    def _start(self, trial: Trial) -> AttemptStart:
        is_fresh = trial.signature in self._fresh
        self._fresh.discard(trial.signature)
        resume_from = None if is_fresh else self._resume_point(trial.signature)
        micro = self._micro_batch_size.get(trial.signature, 0)
        attempt = self.ledger.start_attempt(
            trial.signature, resumed_from=resume_from, micro_batch_size=micro
        )
        self._running[trial.signature] = attempt
        config = TrainConfig.from_dict({**trial.config, "micro_batch_size": micro})
        return AttemptStart(
            signature=trial.signature,
            attempt=attempt,
            variant=trial.variant,
            number=trial.number,
            config=config,
            resume_from=resume_from,
            is_evaluated=self.plan.is_evaluated(trial),
        )

    def _plan_final(self, origin: Trial) -> Trial:
        config = self._missing_final(origin)
        assert config is not None
        own = [t for t in self.ledger.trials("final") if t.variant == origin.variant]
        self.ledger.plan_trial(
            signature=config.signature(),
            variant=origin.variant,
            stage="final",
            number=len(own),
            origin=origin.signature,
            config=config.to_dict(),
            params=origin.params,
            seen_seq=self.ledger.seq,
        )
        return self.ledger.trial(config.signature())

    def _plan_trial(self, variant: str) -> Trial:
        number = self._planned[variant]
        seen_seq = self.ledger.seq
        params = self._studies[variant].ask(number)
        config = self.plan.train_config(variant, number, params)
        self.ledger.plan_trial(
            signature=config.signature(),
            variant=variant,
            number=number,
            config=config.to_dict(),
            params=params,
            seen_seq=seen_seq,
        )
        self._planned[variant] += 1
        return self.ledger.trial(config.signature())

    def _end(
        self,
        signature: str,
        attempt: int,
        *,
        outcome: str,
        status: TrialStatus,
        failure_class: str | None = None,
        failure_text: str | None = None,
    ) -> None:
        self._running.pop(signature, None)
        if status != "failed":
            self._alike[self._variant(signature)].forget(signature)
        self.ledger.end_attempt(
            signature,
            attempt,
            outcome=outcome,
            failure_class=failure_class,
            failure_text=failure_text,
            trial_status=status,
            best=None if status in ("diverged", "failed") else self._best(signature),
        )
        self._tell(self.ledger.trial(signature))

    def _fail_waiting(self, variant: str) -> None:
        """Give up the trials that wait to be tried again, where their variant is given up.

        Those that never started stay as they are: nothing is known of them.
        """
        if not self._is_given_up(variant):
            return
        for signature in [s for s in self._retries if self._variant(s) == variant]:
            self._retries.remove(signature)
            if self.ledger.attempts(signature):
                self._fail(signature)

    def _fail(self, signature: str) -> None:
        """Give a trial up after its last attempt."""
        last = self.ledger.attempts(signature)[-1]
        self._end(
            signature,
            last.attempt,
            outcome=last.outcome or "failed",
            status="failed",
            failure_class=last.failure_class,
            failure_text=last.failure_text,
        )

    def _stops_after_last_row(self, trial: Trial) -> bool:
        """Return what early stopping says of a trial's last row, from what had arrived by then.

        Rows never change, so it says the same at any later time.
        """
        rows, space = self.ledger.epochs(trial.signature), self.plan.space
        if not rows or rows[-1].epoch + 1 >= trial.config["epochs"]:
            return False
        if self.plan.is_evaluated(trial):
            return False
        last = rows[-1]
        return is_stopped(
            last.metrics[space.metric],
            self.ledger.values_at(trial.variant, last.epoch, space.metric, up_to=last.seq),
            epochs_done=last.epoch + 1,
            first_rung=space.first_rung_epochs,
            factor=space.rung_factor,
            mode=space.mode,
        )

    def _decide(self, trial: Trial, attempts: Sequence[Attempt]) -> retry_policy.Decision:
        """Return what follows a trial's last, failed attempt."""
        share = trial.config["batch_size"] // trial.config["workers"]
        fruitful = {row.attempt for row in self.ledger.epochs(trial.signature)}
        return retry_policy.decide(attempts, fruitful, share, self.plan.space.max_attempts)

    def _variant(self, signature: str) -> str:
        return self.ledger.trial(signature).variant

    def _best(self, signature: str) -> tuple[int, float] | None:
        """Return the epoch the trial is evaluated by and the sweep's metric there.

        Without a validation split that is the last one, and it has no value.
        """
        trial, space = self.ledger.trial(signature), self.plan.space
        if not trial.config["validation_fraction"]:
            return self.ledger.epochs(signature)[-1].epoch, math.nan
        judge = trial.config["select_by"]
        mode = "min" if judge == "val_loss" else "max"
        best: tuple[int, float] | None = None
        best_evaluated = math.nan
        for row in self.ledger.epochs(signature):
            if is_better(row.metrics[judge], best_evaluated, mode):
                best_evaluated = row.metrics[judge]
                best = (row.epoch, row.metrics[space.metric])
        return best

    def _rebuild(self) -> None:
        """Bring studies, queue and counters to where the ledger is.

        An attempt that was running belongs to a driver that is gone: it is closed as lost, which
        is nobody's failure, and its trial goes on first. Failed trials are tried again. Trials
        beyond a number that has become smaller stay as they are.
        """
        attempts = collections.defaultdict(list)
        for attempt in self.ledger.attempts():
            attempts[attempt.signature].append(attempt)
        for trial in self.ledger.trials():
            own = attempts[trial.signature]
            if trial.variant not in self._studies:
                self._close(own)  # this command leaves it out, another may go on with it
                continue
            if trial.stage == "search":
                self._planned[trial.variant] += 1
                self._studies[trial.variant].add_planned(trial)
            if trial.status in ENDED and trial.status != "failed":
                self._tell(trial)
                continue
            self._recover(trial, own)
        for variant in self.plan.variants:
            self._fail_waiting(variant)

    def _recover(self, trial: Trial, attempts: Sequence[Attempt]) -> None:
        """Decide about a trial of an earlier command that has not ended well: queued, or left."""
        # The driver may have ended between a row and the decision that follows from it.
        if attempts and trial.status == "running" and self._stops_after_last_row(trial):
            last = attempts[-1].attempt
            self._end(trial.signature, last, outcome="stopped", status="stopped")
            return
        self._close(attempts)
        has_failed = trial.status == "failed"
        if attempts and not (has_failed and self._retry_failed):
            self._alike[trial.variant].note(attempts[-1])
        is_beyond = trial.stage == "search" and trial.number >= self.plan.trials
        if is_beyond or (has_failed and not self._retry_failed):
            if has_failed:
                self._tell(trial)
            return
        self._micro_batch_size[trial.signature] = self._next_micro_batch(trial, attempts)
        if has_failed and self._from_scratch:
            self._fresh.add(trial.signature)
            self._micro_batch_size[trial.signature] = 0
        self._retries.append(trial.signature)

    def _tell(self, trial: Trial) -> None:
        """Let the sampler know how a trial of the search has ended."""
        if trial.stage == "search":
            rows = self.ledger.epochs(trial.signature)
            self._studies[trial.variant].tell(trial, rows, self.plan.space.metric)

    def _close(self, attempts: Sequence[Attempt]) -> None:
        """Close a trial's last attempt as lost where a driver that is gone left it open."""
        if attempts and attempts[-1].outcome is None:
            last = attempts[-1]
            self.ledger.end_attempt(
                last.signature, last.attempt, outcome="lost", trial_status="running"
            )

    def _next_micro_batch(self, trial: Trial, attempts: Sequence[Attempt]) -> int:
        if not attempts:
            return 0
        if attempts[-1].outcome == "failed":
            decision = self._decide(trial, attempts)
            if decision.retry:
                return decision.micro_batch_size
        return attempts[-1].micro_batch_size

    def _is_given_up(self, variant: str) -> bool:
        return self._alike[variant].are_enough()


def _unusable(epoch: object, metrics: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a worker's report of an epoch, None when nothing is."""
    problems = [f"it lacks {name!r}" for name in METRIC_NAMES if name not in metrics]
    problems += [
        f"its {name!r} must be a number; got {metrics[name]!r:.80}"
        for name in METRIC_NAMES
        if name in metrics
        and (not isinstance(metrics[name], numbers.Real) or isinstance(metrics[name], bool))
    ]
    if type(epoch) is not int or epoch < 0:
        problems.append(f"its epoch must be a whole number from 0; got {epoch!r:.80}")
    return f"A report of this trial cannot be used: {'; '.join(problems)}." if problems else None
