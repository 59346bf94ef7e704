"""The command line: its flags, their meaning, and the errors for wrong values."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import search_spaces
from orchestrator.errors import (
    OrchestratorError,
    SweepExistsError,
    SweepNotFoundError,
    UsageError,
    unknown_name,
)
from orchestrator.plan.options import SweepConfig, given_options
from orchestrator.storage.paths import SweepPaths, is_sweep_name
from orchestrator.storage.sweeps import sweep_names
from orchestrator.sweep.__main__ import main
from orchestrator.sweep.arguments import _parser
from tests.orchestrator.sweeps import parse_args

# The command line's contract: a change here is a change for every user.
FLAGS = (
    "--address",
    "--budget",
    "--data-dir",
    "--dataset",
    "--dry-run",
    "--epochs",
    "--final-on-all",
    "--final-seeds",
    "--force",
    "--from-scratch",
    "--gpus-per-trial",
    "--hang-timeout",
    "--help",
    "--image-size",
    "--keep",
    "--max-concurrent",
    "--max-device-hours",
    "--measure",
    "--name",
    "--no-final-on-all",
    "--no-retry-failed",
    "--register",
    "--resume",
    "--retry-failed",
    "--seed",
    "--storage",
    "--tracking-uri",
    "--trials",
    "--variants",
    "--verbose",
    "--verify",
    "--weights",
    "--workers-per-trial",
)


def test_the_command_has_exactly_these_flags() -> None:
    flags = {
        option
        for action in _parser()._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    assert tuple(sorted(flags)) == FLAGS


def test_without_arguments_the_space_is_digits_and_the_rest_has_its_default() -> None:
    assert parse_args([]) == SweepConfig(space="digits", name="digits")
    assert parse_args(["digits"]) == parse_args([])


def test_every_flag_is_read() -> None:
    config = parse_args(
        [
            *(
                "tinyimagenet",
                "--trials",
                "7",
                "--epochs",
                "3",
                "--variants",
                "cnn2, resnet50,cnn2",
            ),
            *("--dataset", "mine", "--seed", "5", "--image-size", "paper", "--max-concurrent", "4"),
            *("--gpus-per-trial", "0.25", "--workers-per-trial", "2", "--data-dir", "/d a"),
            *("--storage", "out", "--tracking-uri", "http://h:5000", "--address", "h:6379"),
            *("--register", "my digits.v1"),
            *("--name", "my-sweep.2", "--resume", "--dry-run", "--verbose", "--verify"),
            *("--final-seeds", "2", "--final-on-all", "--weights", "none"),
            *("--keep", "best-2", "--hang-timeout", "60", "--from-scratch", "--force"),
            *("--budget", "1h30m", "--max-device-hours", "2.5", "--measure"),
        ]
    )
    assert config == SweepConfig(
        space="tinyimagenet",
        trials=7,
        epochs=3,
        variants=("cnn2", "resnet50"),
        dataset="mine",
        seed=5,
        image_size="paper",
        weights="none",
        final_seeds=2,
        final_on_all=True,
        max_concurrent=4,
        gpus_per_trial=0.25,
        workers_per_trial=2,
        data_dir=Path("/d a"),
        storage=Path("out"),
        tracking_uri="http://h:5000",
        register="my digits.v1",
        address="h:6379",
        name="my-sweep.2",
        resume=True,
        dry_run=True,
        verbose=True,
        keep="best-2",
        budget_s=5400.0,
        max_device_hours=2.5,
        measure=True,
        hang_timeout_s=60.0,
        from_scratch=True,
        force=True,
        verify=True,
    )
    unset = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) in (None, False)]
    assert unset == []
    assert config.paths == SweepPaths(Path("out"), "my-sweep.2")


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("0.5h", 1800)]
)
def test_a_budget_in_hours_minutes_and_seconds_is_read(text: str, seconds: float) -> None:
    assert parse_args(["--budget", text]).budget_s == seconds


@pytest.mark.parametrize("text", ["", "2", "2d", "h", "30m2h", "-2h"])
def test_a_budget_in_another_form_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_args([f"--budget={text}"])
    assert ended.value.code == 2
    assert "a time is written as 90m, 2h or 1h30m" in capsys.readouterr().err


def test_the_default_name_is_the_name_of_the_space_file() -> None:
    assert parse_args(["some/where/mine.py"]).name == "mine"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--trials", "0"], "`--trials` must be 1 or more; got 0."),
        (["--epochs", "-3"], "`--epochs` must be 1 or more; got -3."),
        (["--seed", "-1"], "`--seed` must be 0 or more; got -1."),
        (["--max-concurrent", "0"], "`--max-concurrent` must be 1 or more; got 0."),
        (["--workers-per-trial", "0"], "`--workers-per-trial` must be 1 or more; got 0."),
        (["--gpus-per-trial", "1.5"], "must be 0 to 1, or a whole number; got 1.5."),
        (["--gpus-per-trial", "-1"], "must be 0 to 1, or a whole number; got -1."),
        (["--gpus-per-trial", "nan"], "must be 0 to 1, or a whole number; got nan."),
        (["--gpus-per-trial", "inf"], "must be 0 to 1, or a whole number; got inf."),
        (["--budget", "0m"], "`--budget` must be above 0; got 0."),
        (["--max-device-hours", "-1"], "`--max-device-hours` must be above 0; got -1."),
        (["--image-size", "big"], "`--image-size` must be native, paper or pixels; got 'big'."),
        (["--image-size", "0"], "`--image-size` must be native, paper or pixels; got '0'."),
        (["--image-size", "²"], "`--image-size` must be native, paper or pixels; got '²'."),
        (["--variants", " , "], "`--variants` must list at least one model"),
        (["--name", "../up"], "`--name` must be letters, digits, '.', '_' and '-'"),
        (["--name", ""], "starting with a letter or digit; got ''."),
        (["my space.py"], "got 'my space'."),
    ],
)
def test_a_wrong_value_gives_an_error_with_the_rule(argv: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_args(argv)
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("share", ["0", "0.25", "1", "2", "8.0"])
def test_shares_of_a_gpu_and_whole_gpus_are_accepted(share: str) -> None:
    assert parse_args(["--gpus-per-trial", share]).gpus_per_trial == float(share)


def test_all_wrong_values_are_reported_at_once() -> None:
    argv = ["--trials", "0", "--seed", "-1", "--image-size", "x", "--variants", ",", "--name", "/"]
    with pytest.raises(UsageError) as caught:
        parse_args(argv)
    named = [line.split("`")[1] for line in str(caught.value).splitlines()]
    assert named == ["--trials", "--seed", "--variants", "--image-size", "--name"]


@pytest.mark.parametrize("argv", [["--unknown"], ["--trials", "many"], ["digits", "extra"]])
def test_a_wrong_flag_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(argv)
    assert caught.value.code == 2
    assert "usage: python -m orchestrator.sweep" in capsys.readouterr().err


def test_help_names_every_flag_and_the_built_in_spaces(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert [flag for flag in FLAGS if flag not in printed] == []
    assert re.findall(r"\w+", printed.partition("Built-in spaces:")[2]) == search_spaces.names()


@pytest.mark.parametrize("columns", ["60", "80", "300"])
def test_help_has_short_lines_groups_and_defaults(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    parser = _parser()
    lines = parser.format_help().splitlines()
    assert [line for line in lines if len(line) >= 90] == []
    assert [line for line in lines if line.endswith(":") and not line.startswith(" ")] == [
        "positional arguments:",
        "options:",
        "trials:",
        "evaluation on the test split:",
        "locations:",
        "resources and limits:",
        "planning, resuming and checking:",
    ]
    with_value = [action for action in parser._actions if action.nargs != 0]
    without_default = [a.dest for a in with_value if "default: " not in (a.help or "")]
    assert without_default == []


def test_a_sweep_name_is_a_folder_name_anywhere() -> None:
    good = ["digits", "a", "7", "my-sweep_2.1", "A" * 100]
    bad = ["", ".", "..", ".hidden", "-x", "a/b", "a b", "ä", "a\n", "A" * 101]
    assert [is_sweep_name(name) for name in good] == [True] * len(good)
    assert [is_sweep_name(name) for name in bad] == [False] * len(bad)


def test_existing_sweeps_are_those_with_a_ledger(tmp_path: Path) -> None:
    for name in ("zebra", "ant", "empty"):
        (tmp_path / name).mkdir()
    for name in ("zebra", "ant"):
        SweepPaths(tmp_path, name).ledger.touch()
    assert sweep_names(str(tmp_path)) == ["ant", "zebra"]
    assert sweep_names(str(tmp_path / "none")) == []


def test_the_default_tracking_address_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = SweepPaths(Path("results"), "s").default_tracking_uri
    assert uri == f"sqlite:///{tmp_path}/results/mlflow.db"


def test_the_error_for_an_unknown_name_suggests_the_nearest() -> None:
    text = unknown_name("dataset", "cifr10", ["tinyimagenet", "cifar10", "cifar100"])
    assert text == (
        "Unknown dataset 'cifr10'. Known: cifar10, cifar100, tinyimagenet. Did you mean 'cifar10'?"
    )
    assert unknown_name("dataset", "zzz", []) == "Unknown dataset 'zzz'. Known: none."


def test_errors_of_the_user_are_value_errors_and_ours() -> None:
    for error in (SweepExistsError, SweepNotFoundError):
        assert issubclass(error, UsageError)
    assert issubclass(UsageError, OrchestratorError)
    assert issubclass(UsageError, ValueError)


@pytest.mark.parametrize("name", ["", "a/b", "a:1", "../x", "it's", " x", "x" * 251])
def test_a_name_that_mlflow_cannot_register_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^`--register` must be letters, digits, spaces, .*; got"):
        parse_args(["digits", f"--register={name}"])


def test_a_resumed_sweep_keeps_the_name_to_register() -> None:
    assert given_options(parse_args(["digits", "--register", "my model"])) == {
        "register": "my model"
    }
