"""Shows the progress of a running sweep: tables that are redrawn on a terminal, else lines."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live

from orchestrator.clock import Clock
from orchestrator.ledger.leaderboard import params_text
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import ENDED, EpochRow, Trial
from orchestrator.plan import forecast
from orchestrator.plan.plan import Plan
from orchestrator.sweep.progress import Progress, TrialProgress, duration
from orchestrator.sweep.screen import Screen, best_text, draw, glyphs_for
from trainables.metrics import metric_with_unit

# Without a terminal, the progress is printed less often the longer the sweep takes, with at most
# this many running trials.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 15.0, 300.0
_MOST_LINES = 10


class Display:
    """The progress of a sweep. Use it as a context manager and call `show` often."""

    def __init__(
        self, console: Console, ledger: Ledger, plan: Plan, clock: Clock | None = None
    ) -> None:
        self.console, self.plan = console, plan
        self.progress = Progress(ledger, plan)
        self._clock = clock or Clock()
        self._began_s = self._clock.monotonic_s()
        self.progress.update()
        # The ends that are not printed again, by signature: those from before this command. A
        # failed trial that is retried has a new end.
        ended = (trial for trial in self.progress.trials if trial.status in ENDED)
        self._printed = {trial.signature: trial.ended_seq for trial in ended}
        costs = ledger.header().variants
        self._operations = {name: each["multiply_accumulates"] for name, each in costs.items()}
        # Not redirected, because output of libraries belongs in the log, not above the table.
        self._live = (
            Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            if console.is_terminal
            else None
        )
        self._next_summary_s = self._began_s

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.show(last=True)
        if self._live:
            self._live.stop()

    def show(self, *, last: bool = False) -> None:
        """Update the tables, or print what is new."""
        self.progress.update()
        if self._live:
            self._live.update(Group(*draw(self.progress, self._status(), self._screen())))
            self._live.refresh()
            return
        for trial in self.progress.trials:
            if trial.status in ENDED and self._printed.get(trial.signature) != trial.ended_seq:
                self._printed[trial.signature] = trial.ended_seq
                self.console.print(self._line(trial), soft_wrap=True)
        now_s = self._clock.monotonic_s()
        if not last and now_s >= self._next_summary_s:
            pause_s = max(_SHORTEST_PAUSE_S, (now_s - self._began_s) / 10)
            self._next_summary_s = now_s + min(pause_s, _LONGEST_PAUSE_S)
            for line in self._summary():
                self.console.print(line, soft_wrap=True)

    def _screen(self) -> Screen:
        console = self.console
        # rich asks the standard streams, which may be files.
        with contextlib.suppress(OSError, ValueError):
            size = os.get_terminal_size(console.file.fileno())
            if all(size):
                console.size = size
        width, height = console.size
        glyphs = glyphs_for(console.encoding)
        return Screen(width=width, height=height, glyphs=glyphs, now_s=self._clock.now_s())

    def _status(self, ends: str = "") -> str:
        """Return how many trials have ended and are running, and the time; `ends` is inserted."""
        progress = self.progress
        ended = sum(trial.status in ENDED for trial in progress.trials)
        waiting = f", {len(progress.waiting)} waiting to resume" if progress.waiting else ""
        return (
            f"{ended} of {self.plan.num_trials} trials ended{ends}, "
            f"{len(progress.running)} running{waiting}; "
            f"{self._time_left(progress.trials, progress.latest)}"
        )

    def _summary(self) -> list[str]:
        """Return lines on all trials, on the best one and on those that are running."""
        progress = self.progress
        count = Counter(trial.status for trial in progress.trials)
        ends = (
            f" ({count['complete']} complete, {count['stopped']} stopped early, "
            f"{count['diverged']} diverged, {count['failed']} failed)"
        )
        lines = [self._status(ends)]
        if progress.best:
            best = best_text(progress.best, self.plan.space.metric)
            lines.append(f"  {best}  {params_text(progress.best.trial.params)}".rstrip())
        lines += map(self._running_line, progress.running[:_MOST_LINES])
        if (more := len(progress.running) - _MOST_LINES) > 0:
            lines.append(f"  and {more} more running")
        return lines

    def _time_left(self, trials: Sequence[Trial], rows: Mapping[str, EpochRow]) -> str:
        elapsed = f"{duration(self._clock.monotonic_s() - self._began_s)} elapsed"
        left_s = forecast.left_s(self.plan, trials, rows, self._operations)
        return elapsed if not left_s else f"{elapsed}, about {duration(left_s)} left"

    def _running_line(self, each: TrialProgress) -> str:
        metric = self.plan.space.metric
        parts = [f"  {each.trial.name}", f"epoch {each.epoch} of {each.epochs}"]
        if each.last is not None:
            last = f"{metric} {metric_with_unit(metric, each.last)}"
            best = f", best {metric_with_unit(metric, each.best[1])}" if each.best else ""
            parts.append(f"{last}{best}")
        if each.images_per_s is not None:
            parts.append(f"{each.images_per_s:,.0f} images/s")
        return "  ".join([*parts, params_text(each.trial.params)]).rstrip()

    def _line(self, trial: Trial) -> str:
        line = f"{trial.signature}  {trial.name}  {trial.status}"
        if trial.best_value is None:
            return line
        metric = self.plan.space.metric
        return f"{line}  best {metric} {metric_with_unit(metric, trial.best_value)}"
