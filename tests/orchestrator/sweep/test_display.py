"""The progress display on a terminal and elsewhere, and the tables of the summary."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.clock import Clock
from orchestrator.command import console_on
from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.plan import Plan
from orchestrator.sweep.display import Display
from orchestrator.sweep.progress import duration
from orchestrator.sweep.summary import failures, leaderboard
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space

CONFIG = {"epochs": 9, "validation_fraction": 0.1, "select_by": "val_top1"}


@pytest.fixture
def of_plan() -> Plan:
    return plan(space(trials=3))


@pytest.fixture
def ledger(tmp_path: Path, of_plan: Plan) -> Ledger:
    return new_ledger(tmp_path / "ledger.sqlite", of_plan)


def add(ledger: Ledger, key: str, variant: str, number: int, **params: object) -> None:
    ledger.plan_trial(
        signature=key, variant=variant, number=number, config=CONFIG, params=params, seen_seq=0
    )
    ledger.start_attempt(key, resumed_from=None, micro_batch_size=0)


def end(
    ledger: Ledger, key: str, status: str, best: tuple[int, float] | None = None, text: str = ""
) -> None:
    ledger.end_attempt(
        key,
        len(ledger.attempts(key)),
        outcome=status,
        failure_class="bug" if text else None,
        failure_text=text or None,
        trial_status=status,  # type: ignore[arg-type]
        best=best,
    )


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120, height=40, color_system=None), out


def shown(item: object) -> str:
    to, out = console()
    to.print(item)
    return out.getvalue()


def row(text: str, heading: str, name: str) -> dict[str, str]:
    """Return by heading the cells of a row of the display's last table with a heading."""
    lines = text.splitlines()
    at = max(number for number, line in enumerate(lines) if line.startswith(f"{heading} "))
    titles = list(re.finditer(r"\S+( \S+)*", lines[at]))
    line = next(line for line in lines[at:] if line.startswith(f"{name} "))
    found, start = {heading: name}, len(name)
    for title in titles[1:]:
        found[title[0]] = line[start : title.end()].strip("━─ ")
        start = title.end()
    return found


def cells(text: str, variant: str) -> list[str]:
    """Return the cells of a table's row that begins with a variant."""
    [line] = [line for line in text.splitlines() if line.startswith(f"│ {variant} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_best_is_the_best_epoch_so_far_not_the_latest(ledger: Ledger, of_plan: Plan) -> None:
    to, out = console(terminal=True)
    add(ledger, "a" * 12, "cnn2", 0)
    add(ledger, "b" * 12, "cnn2", 1)
    seen = []
    with Display(to, ledger, of_plan) as screen:

        def best() -> str:
            out.truncate(0)
            screen.show()
            return row(out.getvalue(), "variant", "cnn2")["best val_top1, %"]

        assert best() == ""
        for epoch, value in enumerate((math.nan, 0.5385, 0.4231, 0.4615)):
            ledger.record_epoch("a" * 12, 1, epoch, metrics(val_top1=value), None)
            seen.append(best())
        end(ledger, "a" * 12, "complete", (1, 0.5385))
        ledger.record_epoch("b" * 12, 1, 0, metrics(val_top1=0.9), None)
        seen.append(best())
        end(ledger, "b" * 12, "diverged", (0, 0.9))  # such a trial is never chosen
        seen.append(best())
    assert seen == ["", "53.8", "53.8", "53.8", "90.0", "53.8"]


def test_the_end_of_each_trial_is_printed_as_one_line(ledger: Ledger, of_plan: Plan) -> None:
    to, out = console()
    add(ledger, "aaaaaaaaaaaa", "cnn2", 0)
    with Display(to, ledger, of_plan) as screen:
        screen.show()
        end(ledger, "aaaaaaaaaaaa", "complete", (1, 0.93754))
        screen.show()
        screen.show()
        add(ledger, "bbbbbbbbbbbb", "cnn2", 1)
        end(ledger, "bbbbbbbbbbbb", "failed", text="boom")
    lines = out.getvalue().splitlines()
    assert lines[0] == (
        "0 of 6 trials ended (0 complete, 0 stopped early, 0 diverged, 0 failed), 1 running; "
        "0:00:00 elapsed"
    )
    assert lines[1:] == [
        "  cnn2-000  epoch 0 of 9",
        "aaaaaaaaaaaa  cnn2-000  complete  best val_top1 93.8 %",
        "bbbbbbbbbbbb  cnn2-001  failed",
    ]


def test_a_resumed_sweep_prints_only_new_ends(ledger: Ledger, of_plan: Plan) -> None:
    for number, key in enumerate(("aaaaaaaaaaaa", "bbbbbbbbbbbb")):
        add(ledger, key, "cnn2", number)
    end(ledger, "aaaaaaaaaaaa", "complete", (0, 0.5))
    end(ledger, "bbbbbbbbbbbb", "failed", text="boom")
    to, out = console()
    with Display(to, ledger, of_plan) as screen:
        screen.show()
        ledger.start_attempt("bbbbbbbbbbbb", resumed_from=None, micro_batch_size=0)
        end(ledger, "bbbbbbbbbbbb", "failed", text="boom")
    assert out.getvalue().splitlines()[1:] == [
        "  Best so far: cnn2-000 (complete), val_top1 50.0 % in epoch 1 of 9",
        "bbbbbbbbbbbb  cnn2-001  failed",
    ]


def test_trials_of_variants_outside_the_plan_are_not_counted(ledger: Ledger) -> None:
    add(ledger, "aaaaaaaaaaaa", "cnn9", 0)
    end(ledger, "aaaaaaaaaaaa", "complete", (0, 0.5))
    to, out = console()
    Display(to, ledger, plan(space(trials=3))).show()
    assert out.getvalue().startswith("0 of 6 trials ended (0 complete")


def test_the_table_on_a_terminal_counts_each_variant(ledger: Ledger, of_plan: Plan) -> None:
    for number, key in enumerate("abc"):
        add(ledger, key, "cnn2", number)
    add(ledger, "d", "cnn3", 0)
    ledger.record_epoch("a", 1, 0, metrics(val_top1=0.25, images_per_s=1200.4), None)
    end(ledger, "b", "stopped", (0, 0.125))
    end(ledger, "c", "diverged")
    to, out = console(terminal=True)
    with Display(to, ledger, of_plan) as screen:
        screen.show()
    printed = out.getvalue()
    assert "test on digits\n2 of 6 trials ended, 2 running; 0:00:00 elapsed" in printed
    assert row(printed, "variant", "cnn2") == {
        **{"variant": "cnn2", "trials": "3", "running": "1", "done": "0", "stopped": "1"},
        **{"failed": "1", "best val_top1, %": "25.0", "images/s": "1,200"},
    }
    assert row(printed, "variant", "cnn3") == {
        **{"variant": "cnn3", "trials": "3", "running": "1", "done": "0", "stopped": "0"},
        **{"failed": "0", "best val_top1, %": "", "images/s": ""},
    }


def test_each_running_trial_has_a_row_before_its_first_epoch(ledger: Ledger, of_plan: Plan) -> None:
    """With its epoch, the metric's last and best value, images per second and hyperparameters."""
    ledger._clock = Clock(now_s=lambda: 1000.0)
    add(ledger, "a", "cnn2", 0, lr=0.012345, optimizer="sgd")
    add(ledger, "b", "cnn3", 0, lr=0.5)
    for epoch, value in enumerate((0.125, 0.75, 0.5)):
        ledger.record_epoch("a", 1, epoch, metrics(val_top1=value, images_per_s=1234), None)
    to, out = console(terminal=True)
    with Display(to, ledger, of_plan, Clock(now_s=lambda: 1012.0)) as screen:
        screen.show()
    printed = out.getvalue()
    first = row(printed, "trial", "cnn2-000")
    assert first["trial"] == "cnn2-000"
    assert first["epoch"].split() == ["3", "of", "9"]
    values = ("val_top1, %: last", "best", "images/s", "hyperparameters")
    assert [first[name] for name in values[:3]] == ["50.0", "75.0", "1,234"]
    assert [each.rstrip() for each in printed.splitlines() if "cnn2-000 " in each][-2:] == [
        "cnn2-000  3 of 9  ━━━━━━──────────────               50.0  75.0     1,234  "
        "lr 0.0123  optimizer sgd",
        "Best so far: cnn2-000 (running), val_top1 75.0 % in epoch 2 of 9",
    ]
    assert "cnn3-000  0 of 9  ────────────────────   starting 0:00:12" in printed


def test_the_curve_of_the_best_trial_is_below(ledger: Ledger, of_plan: Plan) -> None:
    add(ledger, "a", "cnn2", 0, lr=0.1)
    for epoch, value in enumerate((0.0, 0.31, 0.62, math.nan, 0.155)):
        ledger.record_epoch("a", 1, epoch, metrics(val_top1=value), None)
    to, out = console(terminal=True)
    with Display(to, ledger, of_plan) as screen:
        screen.show()
    assert [line.rstrip() for line in out.getvalue().splitlines()[-8:-1]] == [
        "Best so far: cnn2-000 (running), val_top1 62.0 % in epoch 3 of 9",
        "    lr 0.1",
        " 62.0 │        ████",
        "      │    ▁▁▁▁████",
        "      │    ████████    ▁▁▁▁",
        "  0.0 │▁▁▁▁████████    ████",
        "epoch  1                                  9",
    ]


def test_a_trial_that_waits_for_its_next_attempt_is_not_counted_as_running(
    ledger: Ledger, of_plan: Plan
) -> None:
    for number, key in enumerate("abc"):
        add(ledger, key, "cnn2", number)
    ledger.record_epoch("a", 1, 0, metrics(val_top1=0.5), None)
    ledger.end_attempt("a", 1, outcome="lost")
    ledger.end_attempt("c", 1, outcome="lost")
    to, out = console(terminal=True)
    with Display(to, ledger, of_plan) as screen:
        screen.show()
    printed = out.getvalue()
    assert "0 of 6 trials ended, 1 running, 2 waiting to resume; 0:00:00 elapsed" in printed
    assert row(printed, "variant", "cnn2")["running"] == "1"
    assert row(printed, "trial", "cnn2-000")["val_top1, %: last"] == "waiting"
    to, out = console(terminal=True)
    with Display(to, ledger, plan(space(trials=2))) as screen:  # cnn2-002 is not resumed
        screen.show()
    assert "1 running, 1 waiting to resume" in out.getvalue()


def test_a_trial_without_a_validation_split_has_no_value(ledger: Ledger, of_plan: Plan) -> None:
    """Its `val_` metrics are 0."""
    ledger.plan_trial(
        **{"signature": "a", "variant": "cnn2", "number": 0, "seen_seq": 0, "params": {}},
        config=CONFIG | {"validation_fraction": 0.0},
    )
    ledger.start_attempt("a", resumed_from=None, micro_batch_size=0)
    ledger.record_epoch("a", 1, 0, metrics(val_top1=0.0, images_per_s=7), None)
    for terminal in (True, False):
        to, out = console(terminal=terminal)
        with Display(to, ledger, of_plan) as screen:
            screen.show()
        assert "Best so far" not in out.getvalue()
        assert "0.0" not in out.getvalue()
        if terminal:
            assert row(out.getvalue(), "trial", "cnn2-000")["images/s"] == "7"
        else:
            assert "  cnn2-000  epoch 1 of 9  7 images/s\n" in out.getvalue()


def test_plain_lines_show_the_running_trials(ledger: Ledger, tmp_path: Path) -> None:
    now_s = [0.0]
    of_plan = plan(space(trials=30))
    for number in range(12):
        add(ledger, f"{number:012}", "cnn2", number, lr=0.1)
    ledger.record_epoch("0" * 12, 1, 0, metrics(val_top1=0.75, images_per_s=1234), None)
    ledger.record_epoch("0" * 12, 1, 1, metrics(val_top1=0.5, images_per_s=1234), None)
    to, out = console()
    with Display(to, ledger, of_plan, Clock(monotonic_s=lambda: now_s[0])) as screen:
        for now_s[0] in (0, 14, 16, 20):
            screen.show()
    lines = out.getvalue().splitlines()
    first = [
        "0 of 60 trials ended (0 complete, 0 stopped early, 0 diverged, 0 failed), 12 running; "
        "0:00:00 elapsed",
        "  Best so far: cnn2-000 (running), val_top1 75.0 % in epoch 1 of 9  lr 0.1",
        "  cnn2-000  epoch 2 of 9  val_top1 50.0 %, best 75.0 %  1,234 images/s  lr 0.1",
        "  cnn2-001  epoch 0 of 9  lr 0.1",
    ]
    assert [lines[0].partition(", about")[0], *lines[1:4]] == first
    assert lines[12] == "  and 2 more running"
    assert lines[13].startswith("0 of 60 trials ended")
    assert lines[14:] == lines[1:13]


MOVES = r"\x1b\[[0-9;?]*[A-HJKSTfhlnsu]|\r"  # of the cursor; colors end in "m"
COLORS = r"\x1b\[[0-9;]*m"


def show_on(stream: int, ledger: Ledger, of_plan: Plan) -> None:
    with open(os.dup(stream), "w", encoding="utf-8") as file:
        to = console_on(file)
        with Display(to, ledger, of_plan) as screen:
            screen.show()
            to.print("Careful.", style="yellow")
            screen.show()


@pytest.mark.parametrize(
    ("variables", "has_colors"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"CLICOLOR_FORCE": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "0"}, False),
        ({"FORCE_COLOR": ""}, False),
        ({"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}, False),
    ],
)
def test_a_file_gets_plain_lines_with_any_variable(
    ledger: Ledger,
    of_plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    has_colors: bool,
) -> None:
    add(ledger, "a", "cnn2", 0)
    without_color_variables(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "log").open("w") as log:
        show_on(log.fileno(), ledger, of_plan)
    printed = (tmp_path / "log").read_text()
    assert re.findall(MOVES, printed) == []
    assert bool(re.findall(COLORS, printed)) == has_colors
    lines = re.sub(COLORS, "", printed).splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "0 of 6 trials ended",
        "  cnn2-000  epoch 0 of 9",
        "Careful.",
    ]


@pytest.mark.parametrize(
    ("variables", "is_redrawn", "has_colors"),
    [
        ({"TERM": "xterm-256color"}, True, True),
        ({"TERM": "xterm-256color", "FORCE_COLOR": ""}, True, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "unknown"}, False, False),
        ({"TERM": "xterm", "TTY_INTERACTIVE": "0"}, False, False),
        ({"TERM": "xterm", "TTY_COMPATIBLE": "0"}, False, False),
    ],
)
def test_a_terminal_is_redrawn_if_it_can_be(
    ledger: Ledger,
    of_plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    is_redrawn: bool,
    has_colors: bool,
) -> None:
    add(ledger, "a", "cnn2", 0)
    without_color_variables(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outside, inside = os.openpty()
    os.set_blocking(outside, False)
    show_on(inside, ledger, of_plan)
    read = b""
    with contextlib.suppress(BlockingIOError):  # everything is read
        while part := os.read(outside, 4096):
            read += part
    printed = read.decode().replace("\r\n", "\n")
    assert bool(re.findall(MOVES, printed)) == is_redrawn
    assert bool(re.findall(r"\x1b\[[0-9;]*3[0-7]m", printed)) == has_colors
    assert ("  cnn2-000  epoch 0 of 9" in printed) != is_redrawn
    os.close(inside)
    os.close(outside)


def without_color_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)


def test_the_search_results_list_the_best_variant_first(ledger: Ledger, of_plan: Plan) -> None:
    values = {"a": ("cnn2", 0.5), "b": ("cnn2", 0.7), "c": ("cnn3", 0.9), "d": ("cnn2", 0.7)}
    for number, (key, (variant, value)) in enumerate(values.items()):
        add(ledger, key, variant, number, lr=0.012345, optimizer="sgd")
        end(ledger, key, "complete", (3, value))
    add(ledger, "e", "cnn3", 9)
    end(ledger, "e", "diverged")
    table = leaderboard(of_plan, ledger.trials())
    text = shown(table)
    assert cells(text, "cnn3")[:5] == ["cnn3", "90.0", "4", "2", "c"]
    assert cells(text, "cnn2") == ["cnn2", "70.0", "4", "3", "b", "lr 0.0123  optimizer sgd"]
    assert text.index("cnn3") < text.index("cnn2")
    lowest = leaderboard(plan(space(mode="min", metric="val_loss")), ledger.trials())
    assert cells(shown(lowest), "cnn2")[:2] == ["cnn2", "0.5000"]
    assert shown(lowest).index("cnn2") < shown(lowest).index("cnn3")


def test_failure_lines_have_class_reason_and_log(ledger: Ledger) -> None:
    add(ledger, "a", "cnn2", 0)
    end(ledger, "a", "failed", text="Traceback\n  File x\nValueError: no\n")
    add(ledger, "b", "cnn2", 1)
    end(ledger, "b", "diverged")
    add(ledger, "c", "cnn2", 2)
    end(ledger, "c", "complete", (0, 0.5))
    assert failures(ledger.trials(), ledger.attempts()) == [
        "a  cnn2-000  failed after 1 attempt  bug: ValueError: no  (log: trials/a/attempt_1.log)",
        "b  cnn2-001  diverged after 1 attempt  the loss was not finite  "
        "(log: trials/b/attempt_1.log)",
    ]


def test_the_time_left_is_the_time_of_the_remaining_epochs(tmp_path: Path) -> None:
    """Two variants with 3 trials of 9 epochs each; the second has four times the operations."""
    of_plan = plan(space(trials=3))
    costs = {"cnn2": {"multiply_accumulates": 10}, "cnn3": {"multiply_accumulates": 40}}
    ledger = new_ledger(tmp_path / "l.sqlite", of_plan, variants=costs)

    def printed() -> str:
        to, _ = console()
        return Display(to, ledger, of_plan)._time_left(ledger.trials(), ledger.latest_epochs())

    add(ledger, "a", "cnn2", 0)
    assert printed() == "0:00:00 elapsed"
    spans = {"epoch_s": 9.5, "val_s": 1.5, "checkpoint_s": 0.5}  # validation is part of an epoch
    ledger.record_epoch("a", 1, 0, metrics(**spans), None)
    # 26 epochs of 10 s and 27 of 40 s.
    assert printed() == "0:00:00 elapsed, about 0:22:20 left"
    end(ledger, "a", "stopped", (0, 0.5))
    add(ledger, "b", "cnn3", 0)
    ledger.record_epoch("b", 1, 2, metrics(**{**spans, "epoch_s": 29.5}), None)
    # Measured epochs replace the estimate: 18 epochs of 10 s, 24 of 30 s.
    assert printed() == "0:00:00 elapsed, about 0:15:00 left"
    add(ledger, "c", "cnn3", 1)  # two at a time
    assert printed() == "0:00:00 elapsed, about 0:07:30 left"
    for key in ("b", "c"):
        end(ledger, key, "complete", (0, 0.5))
    ledger.close()


def test_durations_are_printed_as_hours_minutes_seconds() -> None:
    assert [duration(s) for s in (0, 59.9, 3600, 3725, 360_000)] == [
        *("0:00:00", "0:00:59", "1:00:00", "1:02:05"),
        "100:00:00",
    ]
