"""Spaces, flags and weights that are wrong: every mistake named, status 2, nothing left behind."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tests.faults.commands import tree
from tests.faults.test_bad_input import Malice
from tests.integration.sweeps import sweep

pytestmark = [pytest.mark.faults, pytest.mark.quick]

HEAD = """\
import sys
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from search_spaces.space import SearchSpace
"""
# A sound space; `{}` takes what is to be wrong, a later keyword wins.
SOUND = (
    "VALUES = dict(name='mine', dataset='digits', variants=('cnn3',), trials=1, image_size=32,\n"
    "    base={'epochs': 1}, params={'lr': FloatDistribution(1e-3, 1e-2)})\n"
)


def _assert_refused(folder: Path, *arguments: str, sentences: tuple[str, ...]) -> None:
    """Assert that the command ends with 2 and these sentences, and changes nothing."""
    before = tree(folder)
    ended = sweep(folder, *arguments)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2, said
    assert "Traceback" not in said
    for sentence in sentences:
        assert sentence in said
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("source", "sentences"),
    [
        ("x = FloatDistribution(0.5, 0.1)", ("mine.py, line 4,", "`low <= high` must hold")),
        (
            "x = FloatDistribution(0.0, 0.1, log=True)",
            ("mine.py, line 4,", "`low > 0` must hold for `log=True`"),
        ),
        ("x = CategoricalDistribution([])", ("line 4,", "`choices` must contain one or more")),
        ("SPACE = SearchSpace(name='mine',", ("mine.py, line 4,", "SyntaxError: '(' was never")),
        ("def f():\n    return {}['lost']\nf()", ("mine.py, line 5,", "KeyError: 'lost'")),
        ("sys.exit(0)", ("mine.py, line 4,", "SystemExit: 0")),
        ("def f():\n    f()\nf()", ("mine.py, line 5,", "RecursionError")),
        ("space = 1", ("must define `SPACE = SearchSpace(...)`",)),
        ("SPACE = SearchSpace(nam='mine')", ("line 4,", "unexpected keyword argument 'nam'")),
        ("\0", ("mine.py", "null bytes")),
    ],
    ids=lambda value: value.splitlines()[-1][:30] if isinstance(value, str) else "",
)
def test_the_error_of_an_unreadable_space_file_has_its_line_and_reason(
    tmp_path: Path, source: str, sentences: tuple[str, ...]
) -> None:
    """Case 77: values that no range can have, a syntax error, a file that raises or exits."""
    (tmp_path / "mine.py").write_text(HEAD + source + "\n")
    _assert_refused(tmp_path, "./mine.py", sentences=sentences)


def test_every_mistake_of_a_space_is_named_at_once(tmp_path: Path) -> None:
    """Case 77: unknown parameter, duplicate variant, wrong numbers, choices and kinds."""
    (tmp_path / "mine.py").write_text(
        HEAD
        + "SPACE = SearchSpace(name='mine', dataset='digits', variants=('cnn3', 'cnn3'), trials=0,"
        " mode='up', metric='accuracy', image_size='big', gpus_per_trial=1.5, rung_factor=1,"
        " base={'epochs': 1, 'lrr': 3, 'lr': FloatDistribution(0.1, 0.2)},"
        " params={'dropuot': FloatDistribution(0, 0.1), 'momentum': 0.9},"
        " by_variant={'resnet50': {'lr': 0.1}})\n"
    )
    sentences = (
        "Unknown training parameter 'lrr'. Did you mean 'lr'?",
        "Unknown training parameter 'dropuot'. Did you mean 'dropout'?",
        "`params['momentum']` must be",
        "`base['lr']` is a range",
        "must name each model once; got ('cnn3', 'cnn3')",
        "`trials` must be a whole number, 1 or more; got 0.",
        "`mode` must be 'max' or 'min'; got 'up'.",
        "`metric` must be one of",
        "An image size must be 'native', 'paper' or pixels; got 'big'.",
        "must be 0 to 1, or a whole number; got 1.5.",
        "`rung_factor` must be a whole number, 2 or more; got 1.",
        "resnet50, which `variants` does not list",
    )
    _assert_refused(tmp_path, "./mine.py", sentences=sentences)
    _assert_refused(tmp_path, "./mine.py", "--dry-run", sentences=sentences)


def test_values_that_training_cannot_use_are_named_before_anything_starts(tmp_path: Path) -> None:
    """Case 77: unknown optimizer, infinite and negative rates, a fraction for a whole number."""
    (tmp_path / "mine.py").write_text(
        HEAD + SOUND + "SPACE = SearchSpace(**{**VALUES, 'params': {\n"
        "    'optimizer': CategoricalDistribution(['adam', 'sdg']),\n"
        "    'batch_size': FloatDistribution(1.0, 2.0),\n"
        "    'lr': FloatDistribution(-1.0, float('inf')),\n"
        "    'dropout': FloatDistribution(0.0, 1.5),\n"
        "    'epsilon': FloatDistribution(float('nan'), float('nan'))}})\n"
    )
    sentences = (
        "`optimizer` must be one of 'sgd'",
        "got 'sdg'",
        "`batch_size` must be of type int; got 1.0, 2.0.",
        "`lr` must be finite and 0.0 or more; got -1.0, inf.",
        "`dropout` must be finite and 0.0 to 0.99; got 1.5.",
        "`epsilon` must be finite and 0.0 to 10.0; got nan.",
    )
    _assert_refused(tmp_path, "./mine.py", sentences=sentences)


def test_a_space_that_changed_within_the_same_second_is_read_again(tmp_path: Path) -> None:
    """Case 77: Python's cache of compiled files tells versions apart by size and second."""
    file = tmp_path / "mine.py"
    for number in (3, 4):
        file.write_text(f"{HEAD}raise ValueError('version {number}')\n")
        os.utime(file, (1_700_000_000, 1_700_000_000))
        _assert_refused(tmp_path, "./mine.py", sentences=(f"version {number}",))


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (("--trials", "many"), ("invalid int value: 'many'",)),
        (("--no-such-flag",), ("unrecognized arguments: --no-such-flag",)),
        (("--variants", ","), ("`--variants` must list at least one model",)),
        (("--gpus-per-trial", "nan"), ("`--gpus-per-trial` must be 0 to 1",)),
        (("--gpus-per-trial", "-1"), ("`--gpus-per-trial` must be 0 to 1",)),
        (("--seed", "-3", "--epochs", "0"), ("`--seed` must be 0 or more", "`--epochs` must be 1")),
        (("--name", "../up"), ("`--name` must be", "'../up'")),
        (("--name", "a\nb"), ("`--name` must be", "'a\\nb'")),
        (("--dataset", "../../etc"), ("Unknown dataset '../../etc'",)),
    ],
    ids=" ".join,
)
def test_the_error_of_a_wrong_flag_is_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], sentences: tuple[str, ...]
) -> None:
    """Case 77: the command line."""
    _assert_refused(tmp_path, "digits", *arguments, sentences=sentences)


@pytest.mark.parametrize("name", ["evil.safetensors", "evil.pth", "evil.pt"])
def test_code_in_a_weights_file_is_not_run(tmp_path: Path, name: str) -> None:
    """Case 76: a pickle, under an honest name or not; refused before anything starts."""
    mark = tmp_path / "executed"
    weights = tmp_path / name
    weights.write_bytes(pickle.dumps(Malice(mark)))
    (tmp_path / "mine.py").write_text(
        HEAD + SOUND + f"VALUES['base']['weights'] = {str(weights)!r}\n"
        "SPACE = SearchSpace(**{**VALUES, 'variants': ('cnn3', 'efficientnet_b0')})\n"
    )
    reason = "not a whole safetensors file" if name.endswith("tensors") else "can run any code"
    _assert_refused(
        tmp_path, "./mine.py", "--dry-run", sentences=("cnn3, efficientnet_b0: ", reason)
    )
    assert not mark.exists()


def test_a_relative_path_of_weights_is_refused(tmp_path: Path) -> None:
    """Case 77: workers run in folders of their own, so each would look elsewhere."""
    (tmp_path / "w.safetensors").write_bytes(b"")
    (tmp_path / "mine.py").write_text(
        HEAD + SOUND + "VALUES['base']['weights'] = 'w.safetensors'\n"
        "SPACE = SearchSpace(**VALUES)\n"
    )
    _assert_refused(
        tmp_path, "./mine.py", "--dry-run", sentences=("must be absolute", "'w.safetensors'")
    )
