"""Writes the ledger to MLflow while the sweep runs. No trial waits for it."""

from __future__ import annotations

import contextlib
import logging

from rich.console import Console
from rich.text import Text

from orchestrator.ledger.records import ENDED
from orchestrator.redaction import redacted
from orchestrator.sweep.signals import EndLimit
from orchestrator.threads import StepThread
from orchestrator.tracking import client, sweep_run
from orchestrator.tracking.tracker import Tracker

_log = logging.getLogger(__name__)

# MLflow is reported as behind when that has lasted this long.
_REPORT_AFTER_S = 10.0
# The first pass waits for the first epoch, at most this long after the first attempt: importing
# MLflow and creating its database keep a core busy for 3 s, which the first trials need.
_FIRST_AFTER_S = 10.0
# Pause after a pass, and longest pause before retrying a failed pass.
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 10.0
# Pauses before the retries of the last pass.
_LAST_PAUSES_S = (1.0, 3.0)


class MlflowThread:
    """The writer to MLflow. Start its `thread`, call `report` often, and `finish` once.

    A simulation calls `step` by hand, and `end` before the last steps.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self._clock = tracker, tracker.clock
        self.thread = StepThread("mlflow", self.step)
        self._outcome: str | None = None  # of the sweep, once it is known
        self._first_by_s: float | None = None  # when the first pass is made at the latest
        self._has_begun = False
        self._pause_s = 0.0  # after the last pass
        self._last_pauses_s = list(_LAST_PAUSES_S)
        self._has_all = False  # MLflow, after the last pass
        self._error: Exception | None = None  # of the last pass
        self._pass_began_s: float | None = None
        self._up_to_date_s = self._clock.monotonic_s()  # when MLflow last had everything
        self._reported_s: float | None = None  # when the user was told that it is behind

    def step(self) -> float | None:
        """Make one pass over what changed; return the seconds until the next, None after the last.

        Before the first epoch it makes no pass and only waits.
        """
        if not self._may_begin():
            return 0.2
        if self._outcome is not None:
            return self._last_step(self._outcome)
        has_failed = not self._sync() and self._error is not None
        longer_s = min(max(_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        self._pause_s = longer_s if has_failed else _PAUSE_S
        return self._pause_s

    def end(self, outcome: str) -> None:
        """Make the next passes the last ones, which also write the sweep's outcome."""
        self._outcome = outcome
        self.thread.wake()

    def report(self, console: Console) -> None:
        """Print the tracker's notes, and once that MLflow is behind or up to date again."""
        while self.tracker.notes:
            console.print(Text(self.tracker.notes.pop(0), style="yellow"), soft_wrap=True)
        problem = self._problem()
        if self._reported_s is not None:
            if self._up_to_date_s > self._reported_s:
                self._reported_s = None
                console.print("MLflow has caught up.", soft_wrap=True)
        elif problem is not None:
            self._reported_s = self._clock.monotonic_s()
            self._warn(
                console,
                f"is behind: {problem} The trials continue; the ledger keeps everything that is "
                "missing in MLflow.",
            )

    def finish(self, console: Console, outcome: str, limit: EndLimit) -> None:
        """Write the rest, up to the limit; what is missing then, `--resume` writes."""
        self.end(outcome)
        limit.wait_for(self.thread, lambda: self.report(console))
        if not self._has_all:
            self._warn(
                console,
                f"does not have everything: {self._reason() or 'it does not answer.'} The ledger "
                "has it; the same command with --resume writes the rest.",
            )

    def _warn(self, console: Console, text: str) -> None:
        line = Text(f"MLflow at {redacted(self.tracker.uri)} {text}", style="yellow")
        console.print(line, soft_wrap=True)

    def _problem(self) -> str | None:
        """Return why MLflow is behind, None unless that is worth reporting by now."""
        now_s, error = self._clock.monotonic_s(), self._error
        if error is not None and client.advice(error, self.tracker.uri) is not None:
            return self._reason()  # waiting does not help
        if now_s - self._up_to_date_s <= _REPORT_AFTER_S:
            return None
        answered_s = self.tracker.answered_s
        is_silent = (
            self._pass_began_s is not None
            and answered_s is not None  # opening a store for the first time may take long
            and now_s - max(answered_s, self._pass_began_s) > _REPORT_AFTER_S
        )
        return self._reason() or ("it does not answer." if is_silent else None)

    def _reason(self) -> str | None:
        """Return a sentence on what MLflow did not accept and why, None if it accepted all."""
        error, rejected = self._error, dict(self.tracker.rejected)
        if error is not None:
            return redacted(client.reason(error, self.tracker.uri))
        if rejected:
            signature, first = next(iter(rejected.items()))
            others = f" and {len(rejected) - 1} more" if len(rejected) > 1 else ""
            return f"it rejects trial {signature}{others}: {first.reason}"
        return None

    def _may_begin(self) -> bool:
        """Return whether the first pass may be made: an epoch exists, or the wait is over.

        The wait begins with the first attempt: a sweep that ends before it leaves no trace.
        """
        if self._has_begun:
            return True
        now_s, ledger = self._clock.monotonic_s(), self.tracker.ledger
        with contextlib.suppress(Exception):  # a broken ledger is reported by the trials
            if self._first_by_s is None and ledger.attempts():
                self._first_by_s = now_s + _FIRST_AFTER_S
            may_wait = self._first_by_s is None or now_s < self._first_by_s
            if may_wait and self._outcome is None and not ledger.latest_epochs():
                return False
        self._has_begun, self._up_to_date_s = True, now_s
        return True

    def _last_step(self, outcome: str) -> float | None:
        began_s = self._clock.monotonic_s()
        self._has_all = self._sync(outcome)
        # A server that does not answer is not waited for again.
        is_silent = self._clock.monotonic_s() - began_s > _REPORT_AFTER_S
        if self._has_all or is_silent or not self._last_pauses_s:
            return None
        return self._last_pauses_s.pop(0)

    def _figures(self, outcome: str) -> dict[str, float]:
        """Return the metrics of the sweep's own run: their final values, none before that.

        An interrupted sweep has points that an unbroken one does not have otherwise.
        """
        ledger = self.tracker.ledger
        is_final = outcome != "interrupted" and all(t.status in ENDED for t in ledger.trials())
        return sweep_run.figures(ledger) if is_final else {}

    def _sync(self, outcome: str | None = None) -> bool:
        """Bring MLflow up to date once; return whether it accepted everything."""
        self._pass_began_s = self._clock.monotonic_s()
        if not self.tracker.ledger.database.is_in_place():
            return False  # MLflow would create its files again where the sweep was before
        try:
            if outcome is not None:
                self.tracker.finish(outcome, self._figures(outcome))
            else:
                self.tracker.sync()
        except Exception as error:
            if self._error is None:
                _log.warning(redacted(f"MLflow cannot be reached for now: {error!r}"))
            self._error = error
            return False
        finally:
            self._pass_began_s = None
        self._error = None
        if self.tracker.rejected:
            return False
        self._up_to_date_s = self._clock.monotonic_s()
        return True
