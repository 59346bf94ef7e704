"""The README's commands parse, its spaces load, and what it points to exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import search_spaces
from orchestrator.data.__main__ import _parser as data_parser
from orchestrator.predict.__main__ import _parser as predict_parser
from orchestrator.report.__main__ import _parser as report_parser
from orchestrator.sweep.arguments import parse_args

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def _commands(module: str) -> list[list[str]]:
    lines = re.findall(rf"^    python -m {re.escape(module)} (.*)$", README, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_sweep_command_parses() -> None:
    commands = _commands("orchestrator.sweep")
    assert len(commands) >= 3
    for words in commands:
        assert parse_args(words).space in search_spaces.names()


def test_every_report_and_predict_command_parses() -> None:
    for module, parser in (("report", report_parser()), ("predict", predict_parser())):
        commands = _commands(f"orchestrator.{module}")
        assert commands
        for words in commands:
            assert parser.parse_args(words) is not None


def test_every_built_in_space_is_named() -> None:
    for name in search_spaces.names():
        assert name in README


def test_every_data_command_parses() -> None:
    commands = _commands("orchestrator.data")
    assert len(commands) >= 5
    for words in commands:
        assert data_parser().parse_args(words) is not None


def test_the_example_space_is_valid(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "mine.py"
    path.write_text(code)
    assert search_spaces.load(str(path)).name == "mine"


def test_every_flag_is_in_the_table() -> None:
    from orchestrator.sweep.arguments import _parser

    for action in _parser()._actions:
        for flag in action.option_strings:
            assert flag in ("-h", "--help") or f"`{flag}" in README


def test_every_link_and_path_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (REPOSITORY / target).is_file(), target
    for path in re.findall(r"`((?:orchestrator|trainables|search_spaces|tests)/[^` ]*)`", README):
        assert (REPOSITORY / path).exists(), path
