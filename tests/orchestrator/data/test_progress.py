"""The progress of a long step on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from orchestrator.data.progress import progress


def show() -> None:
    with progress("Decoding train", total=200, unit="images") as update:
        update(100)
        update(200)


@pytest.mark.parametrize(("term", "is_bar"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_a_terminal_gets_a_bar_if_it_can_redraw(
    monkeypatch: pytest.MonkeyPatch, term: str, is_bar: bool
) -> None:
    monkeypatch.setenv("TERM", term)
    outside, inside = os.openpty()
    os.set_blocking(outside, False)
    with open(inside, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        show()
        terminal.flush()
        read = b""
        with contextlib.suppress(BlockingIOError):  # everything is read
            while part := os.read(outside, 4096):
                read += part
    os.close(outside)
    text = read.decode()
    assert ("\x1b[" in text) == is_bar
    assert ("Decoding train: 200 of 200 images, " in text) != is_bar
    assert ("200/200" in text) == is_bar


def test_a_file_gets_lines_whatever_forces_colors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        show()
    assert "\x1b" not in (tmp_path / "log").read_text()
