"""Wrong input: one clear message, exit status 2, nothing written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import search_spaces
from tests.integration.sweeps import sweep

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (("tinyimagnet",), ("Unknown search space 'tinyimagnet'", "Did you mean 'tinyimagenet'?")),
        (("./none.py",), ("There is no space file at none.py",)),
        (("digits", "--variants", "efficientnet_b9"), ("efficientnet_b9", "Did you mean")),
        (("digits", "--image-size", "8"), ("cnn2", "cnn3", "8")),
        (("digits", "--dataset", "digit"), ("Unknown dataset 'digit'", "Did you mean 'digits'?")),
        (("digits", "--trials", "0"), ("`--trials` must be 1 or more; got 0.",)),
        (("digits", "--resume"), ("no sweep named 'digits'", "Existing: none")),
        (("digits", "--name", "a/b"), ("`--name`", "'a/b'")),
        (
            ("digits", "--trials", "-1", "--image-size", "big"),
            ("`--trials` must be 1 or more; got -1.", "`--image-size` must be"),
        ),
    ],
)
def test_wrong_input_gives_a_sentence_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], sentences: tuple[str, ...]
) -> None:
    process = sweep(tmp_path, *arguments)
    assert process.returncode == 2, process.stdout + process.stderr
    assert "Traceback" not in process.stderr + process.stdout
    for sentence in sentences:
        assert sentence in process.stderr
    assert not (tmp_path / "results").exists()


def test_an_unreachable_cluster_is_named_in_the_error(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    process = sweep(tmp_path, "digits", "--address", "127.0.0.1:1", "--data-dir", digits_data_dir)
    assert process.returncode == 2, process.stdout + process.stderr
    assert "No Ray cluster can be joined at '127.0.0.1:1'" in process.stderr
    assert not (tmp_path / "results").exists()  # the name is free again


def test_without_a_network_the_error_names_the_missing_archive(tmp_path: Path) -> None:
    process = sweep(tmp_path, "tinyimagenet", "--trials", 1)
    if process.returncode != 2:
        pytest.skip("the Tiny ImageNet server can be reached from here")
    assert "http://cs231n.stanford.edu/tiny-imagenet-200.zip" in process.stderr
    assert "data/tiny-imagenet-200.zip" in process.stderr


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    process = sweep(tmp_path, "tinyimagenet", "--dry-run", "--epochs", 3)
    assert process.returncode == 0, process.stderr
    assert (
        "13,070,472" in process.stdout
    )  # cnn2, `tinyimagenet_baselines`'s model 1, by its published total
    assert "efficientnet_b7" in process.stdout
    assert list(tmp_path.iterdir()) == []


def test_make_sweep_passes_arguments_and_resumes_an_existing_sweep(tmp_path: Path) -> None:
    """`make -n` shows the command; an existing sweep gets --resume."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()

    def shown(*words: str) -> str:
        return subprocess.run(
            ["make", "-n", "sweep", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "orchestrator.sweep digits" in shown()
    assert "--resume" not in shown()
    line = shown("SPACE=tinyimagenet", "ARGS=--trials 2 --name mine --storage here")
    assert "orchestrator.sweep tinyimagenet --trials 2 --name mine --storage here" in line
    assert "--resume" not in line
    (tmp_path / "here" / "mine").mkdir(parents=True)
    (tmp_path / "here" / "mine" / "ledger.sqlite").touch()
    assert "--resume" in shown("SPACE=tinyimagenet", "ARGS=--trials 2 --name mine --storage here")


def test_help_lists_every_built_in_space() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "orchestrator.sweep", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    listed = process.stdout.partition("Built-in spaces:")[2]
    assert re.findall(r"\w+", listed) == search_spaces.names()


def test_the_error_names_a_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    process = sweep(tmp_path, "digits", "--storage", "file/below")
    assert process.returncode == 2, process.stdout + process.stderr
    assert "The storage file/below cannot be written" in process.stderr
