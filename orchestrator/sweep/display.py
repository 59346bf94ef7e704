"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.ledger.header import read_header
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ranking import is_better
from orchestrator.ledger.records import ENDED, EpochRow, Trial
from orchestrator.plan import forecast
from orchestrator.plan.plan import Plan

# Without a terminal a line is said every so often, more seldom the longer it takes.
_PLAIN_EVERY_S = 15.0
_PLAIN_AT_MOST_EVERY_S = 300.0


class Display:
    """Shows the ledger; use as a context manager and call `show` often."""

    def __init__(self, console: Console, ledger: Ledger, plan: Plan) -> None:
        self.console, self.ledger, self.plan = console, ledger, plan
        self._started_s = time.time()
        # What an earlier command has said already; a failed trial that fails again ends anew.
        self._said = {t.signature: t.ended_seq for t in self._trials() if t.status in ENDED}
        costs = read_header(ledger).variants
        self._operations = {name: each["multiply_accumulates"] for name, each in costs.items()}
        # Without redirection: what libraries say belongs into the log, not above the table.
        self._live = (
            Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            if console.is_terminal
            else None
        )
        self._plain_s = 0.0

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.show(last=True)
        if self._live:
            self._live.stop()

    def show(self, *, last: bool = False) -> None:
        """Bring what is seen up to date."""
        trials = self._trials()
        if self._live:
            rows = self.ledger.latest_epochs()
            left = Text(self._time_left(trials, rows), style="dim")
            self._live.update(Group(self._table(trials, rows), left), refresh=True)
            return
        for trial in trials:
            if trial.status in ENDED and self._said.get(trial.signature) != trial.ended_seq:
                self._said[trial.signature] = trial.ended_seq
                self.console.print(_line(trial), soft_wrap=True)
        if not last and time.monotonic() - self._plain_s > self._plain_every_s():
            self._plain_s = time.monotonic()
            self.console.print(self._summary(trials), soft_wrap=True)

    def _trials(self) -> list[Trial]:
        return [trial for trial in self.ledger.trials() if trial.variant in self.plan.variants]

    def _plain_every_s(self) -> float:
        passed_s = time.time() - self._started_s
        return min(max(_PLAIN_EVERY_S, passed_s / 10), _PLAIN_AT_MOST_EVERY_S)

    def _table(self, trials: Sequence[Trial], rows: dict[str, EpochRow]) -> Table:
        metric = self.plan.space.metric
        table = Table(
            *("variant", "trials", "running", "done", "stopped", "failed"),
            *(f"best {metric}", "images/s"),
            title=f"{self.plan.space.name} on {self.plan.dataset}",
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for variant in self.plan.variants:
            own = [trial for trial in trials if trial.variant == variant]
            is_searched = bool(self.plan.space.params_for(variant))
            count = Counter(trial.status for trial in own)
            running = [t for t in own if t.status == "running"]
            speed = sum(
                rows[t.signature].metrics["images_per_s"] for t in running if t.signature in rows
            )
            best = self._best(own, rows)
            table.add_row(
                variant,
                str(self.plan.trials + (self.plan.final_seeds if is_searched else 0)),
                str(len(running)),
                str(count["complete"]),
                str(count["stopped"]),
                str(count["failed"] + count["diverged"]),
                "" if best is None else f"{best:.4f}",
                f"{speed:,.0f}" if speed else "",
            )
        return table

    def _best(self, trials: Sequence[Trial], rows: dict[str, EpochRow]) -> float | None:
        best: float | None = None
        for trial in trials:
            value = trial.best_value
            if value is None and trial.signature in rows and trial.status == "running":
                value = rows[trial.signature].metrics[self.plan.space.metric]
            if value is not None and (best is None or is_better(value, best, self.plan.space.mode)):
                best = value
        return best

    def _summary(self, trials: Sequence[Trial]) -> str:
        count = Counter(trial.status for trial in trials)
        total = self.plan.num_trials
        return (
            f"{sum(count[s] for s in ENDED)} of {total} trials ended "
            f"({count['complete']} complete, {count['stopped']} stopped early, "
            f"{count['diverged']} diverged, {count['failed']} failed), "
            f"{count['running']} running; {self._time_left(trials, self.ledger.latest_epochs())}"
        )

    def _time_left(self, trials: Sequence[Trial], rows: Mapping[str, EpochRow]) -> str:
        passed = f"{clock(time.time() - self._started_s)} passed"
        left_s = forecast.left_s(self.plan, trials, rows, self._operations)
        return passed if not left_s else f"{passed}, about {clock(left_s)} left"


def _line(trial: Trial) -> str:
    value = "" if trial.best_value is None else f"  best {trial.best_value:.4f}"
    return f"{trial.signature}  {trial.name}  {trial.status}{value}"


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
