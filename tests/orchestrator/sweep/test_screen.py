"""The lines of the display: they fit any terminal and encoding."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.cells import cell_len

from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.plan import Plan
from orchestrator.sweep.progress import Progress
from orchestrator.sweep.screen import ASCII, BLOCKS, Glyphs, Screen, curve, draw, glyphs_for
from tests.orchestrator.simulated_sweeps import without_fsync
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space

CONFIG = {"epochs": 30, "validation_fraction": 0.1, "select_by": "val_top1"}
PARAMS = {"lr": 0.00123456, "dropout": 0.25, "batch_size": 128, "optimizer": "adamw"}
STATUS = "3 of 40 trials ended, 2 running; 0:00:41 elapsed, about 0:03:20 left"


def read(path: Path, of_plan: Plan, running: int, epochs: int = 2) -> Progress:
    """Return the progress of a sweep with running trials of its variants in turn."""
    ledger = without_fsync(new_ledger(path / f"{running}.sqlite", of_plan))
    for number in range(running):
        start(ledger, of_plan.variants[number % len(of_plan.variants)], number, epochs)
    progress = Progress(ledger, of_plan)
    progress.update()
    return progress


def start(ledger: Ledger, variant: str, number: int, epochs: int) -> None:
    key = f"{variant}{number}"
    ledger.plan_trial(
        **{"signature": key, "variant": variant, "number": number, "seen_seq": 0},
        **{"config": CONFIG, "params": PARAMS},
    )
    ledger.start_attempt(key, resumed_from=None, micro_batch_size=0)
    for epoch in range(epochs):
        values = metrics(val_top1=epoch / 40 + number / 4000, images_per_s=123456)
        ledger.record_epoch(key, 1, epoch, values, None)


def drawn(progress: Progress, width: int, height: int, glyphs: Glyphs = BLOCKS) -> list[str]:
    screen = Screen(width=width, height=height, glyphs=glyphs, now_s=0.0)
    return [line.plain for line in draw(progress, STATUS, screen)]


@pytest.mark.parametrize("running", [0, 1, 2, 8, 50])
def test_the_lines_fit_the_terminal_and_what_is_left_out_is_counted(
    tmp_path: Path, running: int
) -> None:
    names = ("cnn2", *(f"efficientnet_b{number}" for number in range(8)))
    for variants in (names[:2], names, ("convnextv2_nano.fcmae_ft_in22k_in1k", "cnn2")):
        folder = tmp_path / variants[0] / str(len(variants))
        progress = read(folder, plan(space(variants=variants, trials=100)), running)
        for width, height in ((80, 24), (120, 40), (200, 60), (60, 16), (40, 10)):
            check_fit(drawn(progress, width, height), width, height, len(variants), running)


def check_fit(lines: list[str], width: int, height: int, variants: int, running: int) -> None:
    assert len(lines) < height
    assert max(map(cell_len, lines)) <= width
    text = "\n".join([*lines, ""])
    assert ("The first trials are starting.\n" in text) == (running == 0 and height > 6 + variants)
    of_trials = [line for line in lines if re.match(r"\S+-\d{3} ", line)]
    more = re.search(r"and (\d+) more running trials?\n", text)
    assert len(of_trials) + int(more[1] if more else 0) == running
    assert len(of_trials) >= min(running, 1)
    of_variants = [line for line in lines[3:] if re.match(r"\S+  +100 ", line)]
    more = re.search(r"and (\d+) more variants?\n", text)
    assert len(of_variants) + int(more[1] if more else 0) == variants


def test_eighty_columns_have_everything(tmp_path: Path) -> None:
    progress = read(tmp_path, plan(space(variants=("cnn3", "efficientnet_b0"), trials=20)), 2, 20)
    assert [line.rstrip() for line in drawn(progress, 80, 24)] == [
        "test on digits",
        STATUS,
        "",
        "variant          trials  running  done  stopped  failed  best val_top1, %",
        "cnn3                 20        1     0        0       0              47.5",
        "efficientnet_b0      20        1     0        0       0              47.5",
        "",
        "trial                   epoch                  val_top1, %: last  best  images/s",
        "cnn3-000             20 of 30  ━━━━━━━━━─────               47.5  47.5   123,456",
        "    batch_size 128  dropout 0.25  lr 0.00123  optimizer adamw",
        "efficientnet_b0-001  20 of 30  ━━━━━━━━━─────               47.5  47.5   123,456",
        "    batch_size 128  dropout 0.25  lr 0.00123  optimizer adamw",
        "",
        "Best so far: efficientnet_b0-001 (running), val_top1 47.5 % in epoch 20 of 30",
        "    batch_size 128  dropout 0.25  lr 0.00123  optimizer adamw",
        " 47.5 │                              ▁▁▃▃▅▅▆▆██",
        "      │                    ▁▁▃▃▅▅▆▆████████████",
        "      │          ▁▁▃▃▄▄▆▆██████████████████████",
        "  0.0 │▁▁▃▃▄▄▆▆████████████████████████████████",
        "epoch  1                                                         30",
    ]


@pytest.mark.parametrize(
    ("encoding", "glyphs"),
    [
        *[(name, BLOCKS) for name in ("utf-8", "utf-16", "gb18030")],
        *[(name, ASCII) for name in ("ascii", "latin-1", "cp1252", "no such encoding")],
    ],
)
def test_characters_are_those_of_the_encoding(encoding: str, glyphs: Glyphs) -> None:
    assert glyphs_for(encoding) == glyphs


def test_without_unicode_all_lines_are_ascii(tmp_path: Path) -> None:
    variants = ("convnextv2_nano.fcmae_ft_in22k_in1k", "cnn2")
    progress = read(tmp_path, plan(space(variants=variants, trials=20)), 2, 20)
    for width in (60, 80, 120):
        text = "\n".join(drawn(progress, width, 30, ASCII))
        assert text.isascii()
        assert "####" in text
        assert " |" in text


NAN = math.nan


@pytest.mark.parametrize(
    ("values", "epochs", "width", "mode", "lines"),
    [
        ((0, 31), 2, 2, "max", [" █", " █", " █", "▁█"]),
        ((31, 0), 2, 2, "min", ["█ ", "█ ", "█ ", "█▁"]),
        ((0, 7, NAN, 8, 31), 7, 7, "max", ["    █  ", "    █  ", "   ▁█  ", "▁█ ██  "]),
        ((5, 5), 3, 6, "max", ["      ", "      ", "      ", "▁▁▁▁  "]),
        ((0, 31, 0, 0, 0, 8), 6, 3, "max", ["█  ", "█  ", "█ ▁", "█▁█"]),
        ((31, 0, 31, 31, 31, 8), 6, 3, "min", [" █ ", " █ ", " █▁", "▁██"]),
        ((0, 31), 9, 80, "max", ["    ████", "    ████", "    ████", "▁▁▁▁████"]),
    ],
)
def test_the_curve_has_a_column_for_each_epoch(
    values: Sequence[float], epochs: int, width: int, mode: str, lines: list[str]
) -> None:
    """Or, with more epochs than columns, for the best of several."""
    filled = [line.ljust(epochs * 4 if width == 80 else width) for line in lines]
    assert curve(values, epochs, width, mode, BLOCKS) == filled


def test_a_refresh_reads_only_what_has_changed(tmp_path: Path) -> None:
    """The work for one new epoch does not grow with the sweep."""

    def steps(trials: int) -> tuple[int, int]:
        of_plan = plan(space(variants=("cnn2",), trials=trials))
        progress = read(tmp_path, of_plan, trials, 5)
        connection, count = progress.ledger.database.connection, [0]

        def step() -> int:
            count[0] += 1
            return 0

        connection.set_progress_handler(step, 10)
        progress.update()
        unchanged = count[0]
        connection.set_progress_handler(None, 10)
        progress.ledger.record_epoch("cnn20", 1, 5, metrics(val_top1=0.9), None)
        connection.set_progress_handler(step, 10)
        progress.update()
        return unchanged, count[0] - unchanged

    assert steps(200) == steps(20)


def test_an_epoch_that_arrives_late_is_in_its_place(tmp_path: Path) -> None:
    of_plan = plan(space(variants=("cnn2",)))
    progress = read(tmp_path, of_plan, 1, 1)
    ledger = progress.ledger
    ledger.record_epoch("cnn20", 1, 2, metrics(val_top1=0.75), None)
    progress.update()
    ledger.record_epoch("cnn20", 1, 1, metrics(val_top1=0.5), None)
    progress.update()
    assert [row.epoch for row in progress.running[0].rows] == [0, 1, 2]
    assert (progress.running[0].last, progress.running[0].best) == (0.75, (2, 0.75))
    assert "3 of 30" in "\n".join(drawn(progress, 80, 24))
