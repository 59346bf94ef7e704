"""Draws a sweep's progress as lines that fit a terminal: tables, bars and a curve."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from orchestrator.ledger.leaderboard import params_text
from orchestrator.plan.plan import Plan
from orchestrator.sweep.progress import Progress, TrialProgress, duration
from trainables.metrics import metric_heading, metric_text, metric_with_unit

_CURVE_LINES = 4  # of characters, without heading and axis
_WIDEST_BAR, _WIDEST_EPOCH = 20, 4  # characters of a bar, and of an epoch in a curve
_PARAM = 12  # columns of a hyperparameter beside its name


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters of bars and curves."""

    done: str  # part of a bar
    left: str
    levels: str  # of one character of a curve, from empty to full
    axis: str


BLOCKS = Glyphs("━", "─", " ▁▂▃▄▅▆▇█", "│")
ASCII = Glyphs("#", ".", " .:#", "|")


def glyphs_for(encoding: str) -> Glyphs:
    """Return the characters that an encoding has."""
    try:
        "━─▁▂▃▄▅▆▇█│…".encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return ASCII
    return BLOCKS


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """The terminal that the lines must fit, and the time."""

    width: int
    height: int
    glyphs: Glyphs
    now_s: float


def draw(progress: Progress, status: str, screen: Screen) -> list[Text]:
    """Return the lines of the display: counts of each variant, running trials, the best trial.

    `status` is the line below the title. Where the lines do not fit, the curve is left out first,
    then running trials, then variants; how many are left out is printed.
    """
    plan = progress.plan
    lines = [Text(f"{plan.space.name} on {plan.dataset}", style="bold"), Text(status), Text()]
    heading, *variants = _variant_lines(progress, screen)
    trial_heading, trials = _trial_lines(progress, screen)
    number = len(progress.running) + len(progress.waiting)
    per_trial = max(map(len, trials), default=0)
    best = _best_lines(progress.best, plan, screen) if progress.best else []
    room = screen.height - len(lines) - 2  # the heading of the variants, and a spare line
    few = min(number, 3) * per_trial + (2 if trials else 0)
    shown = _fitting(len(variants), room - few, 1)
    lines += [Text(heading, style="bold")] if shown else []
    lines += map(Text, variants[:shown])
    lines += _more(len(variants) - shown, "variant")
    room = screen.height - len(lines) - 1
    if trials:
        room -= 2
        shown = _fitting(number, room - len(best), per_trial)
        if shown < min(number, 4):  # without the curve
            shown = _fitting(number, room, per_trial)
        lines += [Text(), Text(trial_heading, style="bold")]
        lines += [line for trial in trials[:shown] for line in trial]
        lines += _more(number - shown, "running trial")
        room = screen.height - len(lines) - 1
    elif not progress.trials and room >= 2:
        lines += [Text(), Text("The first trials are starting.", style="dim")]
    if len(best) > room:
        best = best[:2]  # a blank line and the heading
    lines += best if len(best) <= room else []
    for line in lines:
        line.no_wrap = True
        line.truncate(screen.width, overflow="ellipsis" if screen.glyphs is BLOCKS else "crop")
    return lines


def _fitting(count: int, room: int, lines: int) -> int:
    """Return how many items of some lines each fit, with a line for the number of the others."""
    if count * lines <= room:
        return count
    return max((room - 1) // lines, 0)


def _more(count: int, what: str) -> list[Text]:
    return [Text(f"and {count} more {what}{'s' if count > 1 else ''}", style="dim")] * (count > 0)


def _variant_lines(progress: Progress, screen: Screen) -> list[str]:
    """Return the table of variants, its heading first."""
    plan, metric = progress.plan, progress.plan.space.metric
    rows = [
        [
            *("variant", "trials", "running", "done", "stopped", "failed"),
            *(f"best {metric_heading(metric)}", "images/s"),
        ]
    ]
    for variant in plan.variants:
        own = [trial for trial in progress.trials if trial.variant == variant]
        running = [each for each in progress.running if each.trial.variant == variant]
        count = Counter(trial.status for trial in own)
        best = progress.best_value(own)
        is_searched = bool(plan.space.params_for(variant))
        rows.append(
            [
                _shortened(variant, max(screen.width - 58, 12), screen.glyphs),
                str(plan.trials + (plan.final_seeds if is_searched else 0)),
                *map(str, (len(running), count["complete"], count["stopped"])),
                str(count["failed"] + count["diverged"]),
                "" if best is None else metric_text(metric, best),
                _speed(sum(each.images_per_s or 0 for each in running)),
            ]
        )
    lines = _aligned(rows, 1)
    # The speed is beside each running trial, too.
    return lines if cell_len(lines[0]) <= screen.width else _aligned([r[:-1] for r in rows], 1)


def _trial_lines(progress: Progress, screen: Screen) -> tuple[str, list[list[Text]]]:
    """Return the heading of the running trials, and the lines of each that could fit.

    Hyperparameters are beside a trial if the terminal is wide enough, otherwise below it.
    """
    metric, glyphs = progress.plan.space.metric, screen.glyphs
    trials = [*progress.running, *progress.waiting][: screen.height]
    rows = [["trial", "epoch", "", f"{metric_heading(metric)}: last", "best", "images/s"]]
    for each in trials:
        name = _shortened(each.trial.name, max(screen.width - 53, 12), glyphs)
        rows.append([name, f"{each.epoch} of {each.epochs}", "", *_results(each, metric, screen)])
    width = cell_len(_aligned(rows, 1)[0]) + 2
    bar = min(_WIDEST_BAR, screen.width - width)
    for each, row in zip(trials, rows[1:], strict=True):
        row[2] = _bar(each.epoch, each.epochs, bar, glyphs) if bar >= 5 else ""
    names = max((list(each.trial.params) for each in trials), key=len, default=[])
    is_wide = width + bar + sum(len(name) + _PARAM for name in names) <= screen.width
    heading, *lines = _aligned(rows, 1)
    drawn = []
    for each, line in zip(trials, lines, strict=True):
        params = params_text(each.trial.params)
        first = Text(f"{line}  {params}" if is_wide else line)
        first.highlight_regex(f"{glyphs.done}+", "cyan")
        below = [Text(f"    {params}", style="dim")] if params and not is_wide else []
        drawn.append([first, *below])
    return f"{heading}  hyperparameters" if is_wide and names else heading, drawn


def _results(each: TrialProgress, metric: str, screen: Screen) -> list[str]:
    """Return the cells of a trial's last value, best value and speed."""
    if each.is_waiting:
        last = "waiting"
    elif each.attempt and not each.rows:
        last = f"starting {duration(max(screen.now_s - each.attempt.started_s, 0))}"
    else:
        last = "" if each.last is None else metric_text(metric, each.last)
    best = "" if each.best is None else metric_text(metric, each.best[1])
    return [last, best, _speed(each.images_per_s or 0)]


def _best_lines(best: TrialProgress, plan: Plan, screen: Screen) -> list[Text]:
    """Return a blank line, what the best trial is, and its curve if it has two epochs."""
    metric, glyphs = plan.space.metric, screen.glyphs
    lines = [Text(), Text(best_text(best, metric), style="bold")]
    if params := params_text(best.trial.params):
        lines.append(Text(f"    {params}", style="dim"))
    values = [math.nan] * best.epoch
    for row in best.rows:
        values[row.epoch] = row.metrics[metric]
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return lines
    labels = [metric_text(metric, value) for value in (max(finite), min(finite))]
    margin = max(*map(len, labels), len("epoch"))
    drawn = curve(values, best.epochs, screen.width - margin - 2, plan.space.mode, glyphs)
    sides = [labels[0], *[""] * (_CURVE_LINES - 2), labels[1]]
    lines += [
        Text(f"{side:>{margin}} {glyphs.axis}{line}")
        for side, line in zip(sides, drawn, strict=True)
    ]
    for line in lines[-_CURVE_LINES:]:
        line.stylize("cyan", margin + 2)
    lines.append(Text(f"{'epoch':>{margin}}  1{best.epochs:>{len(drawn[0]) - 1}}"))
    return lines


def best_text(best: TrialProgress, metric: str) -> str:
    """Return which trial is the best so far, with its value and epoch."""
    epoch, value = best.best or (0, math.nan)
    return (
        f"Best so far: {best.trial.name} ({best.trial.status}), {metric} "
        f"{metric_with_unit(metric, value)} in epoch {epoch + 1} of {best.epochs}"
    )


def curve(values: Sequence[float], epochs: int, width: int, mode: str, glyphs: Glyphs) -> list[str]:
    """Return the lines of a curve of one value per epoch, with blanks where there is none.

    The bars are scaled to the lowest and the highest value. If there are more epochs than columns,
    a column shows the best of its epochs.
    """
    columns = epochs * min(width // epochs, _WIDEST_EPOCH) if epochs <= width else max(width, 1)
    full, choose = len(glyphs.levels) - 1, max if mode == "max" else min
    bars: list[float] = []
    for column in range(columns):
        first = column * epochs // columns
        own = values[first : max((column + 1) * epochs // columns, first + 1)]
        bars.append(choose(filter(math.isfinite, own), default=math.nan))
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    scale = (_CURVE_LINES * full - 1) / (high - low) if high > low else 0.0
    levels = [1 + round((v - low) * scale) if math.isfinite(v) else 0 for v in bars]
    return [
        "".join(glyphs.levels[min(max(level - line * full, 0), full)] for level in levels)
        for line in reversed(range(_CURVE_LINES))
    ]


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return rows as lines with aligned columns, the first ones to the left, others to the right.

    A column without any text is left out.
    """
    columns = []
    for number, cells in enumerate(zip(*rows, strict=True)):
        width = max(map(cell_len, cells))
        blanks = [" " * (width - cell_len(cell)) for cell in cells]
        pairs = zip(cells, blanks, strict=True)
        columns.append([c + b if number < left else b + c for c, b in pairs] if width else [])
    return ["  ".join(line) for line in zip(*filter(None, columns), strict=True)]


def _bar(done: int, total: int, width: int, glyphs: Glyphs) -> str:
    filled = min(width * done // max(total, 1), width)
    return glyphs.done * filled + glyphs.left * (width - filled)


def _shortened(name: str, width: int, glyphs: Glyphs) -> str:
    """Return a name without its middle if it is too long: variants differ at the end."""
    cut = "…" if glyphs is BLOCKS else "..."
    return name if len(name) <= width else f"{name[: width - 9]}{cut}{name[-(9 - len(cut)) :]}"


def _speed(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s else ""
