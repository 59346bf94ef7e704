"""Shows the progress of a running sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.clock import Clock
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ranking import best_row, is_better
from orchestrator.ledger.records import ENDED, EpochRow, Trial
from orchestrator.plan import forecast
from orchestrator.plan.plan import Plan
from trainables.metrics import is_fraction

# Without a terminal, summary lines are printed less often the longer the sweep takes.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 15.0, 300.0


class Display:
    """The progress of a sweep. Use it as a context manager and call `show` often."""

    def __init__(
        self, console: Console, ledger: Ledger, plan: Plan, clock: Clock | None = None
    ) -> None:
        self.console, self.ledger, self.plan = console, ledger, plan
        self._clock = clock or Clock()
        self._began_s = self._clock.monotonic_s()
        # The ends that are not printed again, by signature: those from before this command. A
        # failed trial that is retried has a new end.
        self._printed = {t.signature: t.ended_seq for t in self._trials() if t.status in ENDED}
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
        """Update the table, or print what is new."""
        trials = self._trials()
        if self._live:
            rows = self.ledger.latest_epochs()
            left = Text(self._time_left(trials, rows), style="dim")
            self._live.update(Group(self._table(trials, rows), left), refresh=True)
            return
        for trial in trials:
            if trial.status in ENDED and self._printed.get(trial.signature) != trial.ended_seq:
                self._printed[trial.signature] = trial.ended_seq
                self.console.print(self._line(trial), soft_wrap=True)
        now_s = self._clock.monotonic_s()
        if not last and now_s >= self._next_summary_s:
            pause_s = max(_SHORTEST_PAUSE_S, (now_s - self._began_s) / 10)
            self._next_summary_s = now_s + min(pause_s, _LONGEST_PAUSE_S)
            self.console.print(self._summary(trials), soft_wrap=True)

    def _trials(self) -> list[Trial]:
        return [trial for trial in self.ledger.trials() if trial.variant in self.plan.variants]

    def _table(self, trials: Sequence[Trial], rows: dict[str, EpochRow]) -> Table:
        metric = self.plan.space.metric
        table = Table(
            *("variant", "trials", "running", "done", "stopped", "failed"),
            *(f"best {metric_heading(metric)}", "images/s"),
            title=f"{self.plan.space.name} on {self.plan.dataset}",
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for variant in self.plan.variants:
            own = [trial for trial in trials if trial.variant == variant]
            is_searched = bool(self.plan.space.params_for(variant))
            count = Counter(trial.status for trial in own)
            latest = [rows.get(t.signature) for t in own if t.status == "running"]
            speed = sum(row.metrics["images_per_s"] for row in latest if row)
            best = self._best(own)
            table.add_row(
                variant,
                str(self.plan.trials + (self.plan.final_seeds if is_searched else 0)),
                str(count["running"]),
                str(count["complete"]),
                str(count["stopped"]),
                str(count["failed"] + count["diverged"]),
                "" if best is None else metric_text(metric, best),
                f"{speed:,.0f}" if speed else "",
            )
        return table

    def _best(self, trials: Sequence[Trial]) -> float | None:
        """Return the best value of any epoch of trials that are running or can be chosen."""
        metric = self.plan.space.metric
        best = math.nan
        for trial in trials:
            value = trial.best_value if trial.status in ("complete", "stopped") else None
            if trial.status == "running":
                row = best_row(self.ledger.epochs(trial.signature), metric)
                value = row.metrics[metric] if row else None
            if value is not None and is_better(value, best, self.plan.space.mode):
                best = value
        return None if math.isnan(best) else best

    def _summary(self, trials: Sequence[Trial]) -> str:
        count = Counter(trial.status for trial in trials)
        return (
            f"{sum(count[s] for s in ENDED)} of {self.plan.num_trials} trials ended "
            f"({count['complete']} complete, {count['stopped']} stopped early, "
            f"{count['diverged']} diverged, {count['failed']} failed), "
            f"{count['running']} running; {self._time_left(trials, self.ledger.latest_epochs())}"
        )

    def _time_left(self, trials: Sequence[Trial], rows: Mapping[str, EpochRow]) -> str:
        elapsed = f"{duration(self._clock.monotonic_s() - self._began_s)} elapsed"
        left_s = forecast.left_s(self.plan, trials, rows, self._operations)
        return elapsed if not left_s else f"{elapsed}, about {duration(left_s)} left"

    def _line(self, trial: Trial) -> str:
        line = f"{trial.signature}  {trial.name}  {trial.status}"
        if trial.best_value is None:
            return line
        metric = self.plan.space.metric
        unit = " %" if is_fraction(metric) else ""
        return f"{line}  best {metric} {metric_text(metric, trial.best_value)}{unit}"


def metric_heading(metric: str) -> str:
    """Return the heading of a column of a metric's values, with its unit."""
    return f"{metric}, %" if is_fraction(metric) else metric


def metric_text(metric: str, value: float) -> str:
    """Return a metric's value as it is printed, without its unit."""
    return f"{100 * value:.1f}" if is_fraction(metric) else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
