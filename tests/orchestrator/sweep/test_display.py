"""The progress display on a terminal and elsewhere, and the tables of the summary."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.plan import Plan
from orchestrator.sweep.display import Display, duration
from orchestrator.sweep.summary import failures, leaderboard
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space


@pytest.fixture
def of_plan() -> Plan:
    return plan(space(trials=3))


@pytest.fixture
def ledger(tmp_path: Path, of_plan: Plan) -> Ledger:
    return new_ledger(tmp_path / "ledger.sqlite", of_plan)


def add(ledger: Ledger, key: str, variant: str, number: int, **params: object) -> None:
    ledger.plan_trial(
        signature=key, variant=variant, number=number, config={}, params=params, seen_seq=0
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
    return Console(file=out, force_terminal=terminal, width=120, color_system=None), out


def shown(item: object) -> str:
    to, out = console()
    to.print(item)
    return out.getvalue()


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
            return cells(out.getvalue(), "cnn2")[6]

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
    assert out.getvalue().splitlines()[1:] == ["bbbbbbbbbbbb  cnn2-001  failed"]


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
    last = out.getvalue().rpartition("test on digits")[2]
    assert (
        "│ variant │ trials │ running │ done │ stopped │ failed │ best val_top1, % │ images/s │"
        in (last.replace("┃", "│"))
    )
    assert cells(last, "cnn2") == ["cnn2", "3", "1", "0", "1", "1", "25.0", "1,200"]
    assert cells(last, "cnn3") == ["cnn3", "3", "1", "0", "0", "0", "", ""]


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
