"""What commands share: errors, exit statuses and arguments."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import command
from orchestrator.command import program
from orchestrator.data.__main__ import main as data
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.predict.__main__ import _parser as predict_parser
from orchestrator.predict.__main__ import main as predict
from orchestrator.report.__main__ import _parser as report_parser
from orchestrator.report.__main__ import main as report
from orchestrator.storage.store import StorageError
from tests.orchestrator.sweeps import parse_args

# A closed port of this machine, so that the connection fails at once.
ADDRESS = "s3://user:secret-key@bucket/sweeps?endpoint_override=127.0.0.1:9&scheme=http"


def run(action: Callable[[], int], *argv: str, failed: int = command.WRONG_USAGE) -> int:
    parser = argparse.ArgumentParser()
    command.add_verbose(parser.add_argument)
    return command.run(parser, lambda _: action(), argv, interrupted="Stopped.", failed=failed)


def raising(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize("status", [command.COMPLETE, command.FAILED])
def test_the_status_is_that_of_the_action(status: int) -> None:
    assert run(lambda: status) == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("Wrong."), command.WRONG_USAGE),
        (OrchestratorError("Wrong."), command.FAILED),
        (StorageError("Wrong."), command.FAILED),
    ],
)
def test_an_expected_error_is_printed_without_traceback(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error), failed=command.FAILED) == status
    assert capsys.readouterr() == ("", "Wrong.\n")


def test_an_error_of_the_system_says_how_to_see_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(raising(OSError("Wrong.")), failed=command.FAILED) == command.FAILED
    expected = "Wrong.\nRun the command with --verbose to see the traceback.\n"
    assert capsys.readouterr() == ("", expected)


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


def test_ctrl_c_prints_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "Stopped.\n")


def test_verbose_shows_the_traceback_without_secrets(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(raising(UsageError("No http://me:secret@host.")), "--verbose") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert "UsageError: No http://[redacted]@host." in printed
    assert "secret" not in printed


@pytest.mark.parametrize(
    "main",
    [
        lambda: report(["name", "--storage", ADDRESS]),
        lambda: predict(["name", "image.png", "--storage", ADDRESS]),
        lambda: data(["list", "--data-dir", ADDRESS]),
    ],
    ids=["report", "predict", "data"],
)
def test_no_command_prints_the_password_of_an_address(
    main: Callable[[], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.storage.retry.KEEP_TRYING_S", 0.0)
    assert main() == 2
    captured = capsys.readouterr()
    printed = captured.out + captured.err
    assert "s3://[redacted]@bucket/sweeps" in printed
    assert "secret-key" not in printed


def test_commands_take_the_same_places_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SWEEP_STORAGE", "s3://bucket/sweeps")
    monkeypatch.setenv("SWEEP_DATA_DIR", "/shared/data")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    for found in (
        parse_args([]),
        predict_parser().parse_args(["name", "image.png"]),
    ):
        assert found.storage == "s3://bucket/sweeps"
        assert found.data_dir == Path("/shared/data")
        assert found.tracking_uri == "http://127.0.0.1:5000"
    assert report_parser().parse_args(["name"]).storage == "s3://bucket/sweeps"
    given = predict_parser().parse_args(["name", "image.png", "--storage", "here"])
    assert given.storage == Path("here")


_PROGRAM = """
import atexit, sys
from orchestrator.command import exit_fast

class Kept:
    def __del__(self):
        sys.__stdout__.write("torn down")

def main():
    global kept
    kept = Kept()
    print("half a line", end="")
    atexit.register(print, ", the end")
    {end}

exit_fast(main)
"""


@pytest.mark.parametrize(
    ("end", "status", "is_torn_down", "error"),
    [
        ("return 0", 0, False, ""),
        ("return 3", 3, False, ""),
        ("sys.exit(2)", 2, True, ""),  # as argparse ends
        ("raise ValueError('why')", 1, True, "ValueError: why\n"),
    ],
)
def test_exit_fast_keeps_status_and_output_and_skips_the_teardown(end, status, is_torn_down, error):
    command = [sys.executable, "-c", _PROGRAM.format(end=end)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert ended.stdout == "half a line, the end\n" + "torn down" * is_torn_down
    assert ended.stderr.endswith(error)
    assert bool(ended.stderr) == bool(error)


_CLEAN_UP = """
import atexit, os, signal
from orchestrator.command import exit_fast

def interrupt(*_):
    raise KeyboardInterrupt

def clean_up():
    for _ in range({times}):
        os.kill(os.getpid(), {number})
    print("cleaned up")

def main():
    signal.signal({number}, interrupt)
    atexit.register(clean_up)
    return 3

exit_fast(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_exit_fast_cleans_up_in_spite_of_a_signal_and_a_second_one_ends_it(number, times):
    script = _CLEAN_UP.format(times=times, number=int(number))
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == (3 if times == 1 else -number)
    assert ended.stdout == ("cleaned up\n" if times == 1 else "")
    assert ended.stderr == ""


def test_exit_fast_fails_if_the_output_cannot_be_written():
    script = "from orchestrator.command import exit_fast; exit_fast(lambda: print(1) or 0)"
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", script], stdout=full, env=env, check=False)
    assert ended.returncode == 120  # Python's own


def test_exit_fast_keeps_the_status_without_any_output_stream():
    script = "from orchestrator.command import exit_fast; exit_fast(lambda: 3)"
    shell = ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, script]
    assert subprocess.run(shell, check=False).returncode == 3


_COMMAND = """
import argparse, sys
from orchestrator import command

def action(arguments):
    for number in range(20000):
        command.say(f"line {number}")
    command.console_on(sys.stdout).print("the end")
    command.warn(f"open: {open('/dev/null').fileno() > 2}")
    if arguments.optional:
        command.output_is_optional()
    return command.COMPLETE

parser = argparse.ArgumentParser()
parser.add_argument("--optional", action="store_true")
command.add_verbose(parser.add_argument)
command.exit_fast(lambda: command.run(parser, action, None))
"""


@pytest.mark.parametrize(
    ("shell", "status", "printed", "error"),
    [
        ("{command} | head -1", 0, "line 0\n", ""),
        ("{command} --help | head -1", 0, "usage:", None),
        ("{command} > /dev/full", 1, "", "No space left on device.\n"),
        ("{command} --optional > /dev/full", 0, "", "No space left on device.\n"),
        ("{command} > /dev/full 2> /dev/full", 1, "", ""),
        ("{command} >&-", 0, "", ""),
        ("{command} <&- >&- 2>&-", 0, "", ""),
    ],
)
def test_a_command_whose_output_cannot_be_written_ends_quietly(
    shell: str, status: int, printed: str, error: str | None, tmp_path: Path
) -> None:
    """A reader that has ended is no error; a full disk is, unless the results are files."""
    program = tmp_path / "program.py"
    program.write_text(_COMMAND)
    line = shell.format(command=f"{sys.executable} {program}")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    shell_line = ["bash", "-c", f"set -o pipefail; {line}"]
    ended = subprocess.run(shell_line, capture_output=True, text=True, check=False, env=env)
    assert ended.returncode == status, ended
    assert ended.stdout.startswith(printed)
    assert len(ended.stdout.splitlines()) <= 1
    if error is not None and "2>" not in shell:
        expected = f"Standard output cannot be written: [Errno 28] {error}" if error else ""
        assert ended.stderr == f"open: True\n{expected}"


def test_a_printed_command_runs_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the environment is not activated, and another one of the same name is."""
    programs = tmp_path / "my project" / ".venv" / "bin"
    for folder in (programs, tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "mlflow").write_text("#!/bin/sh\necho $0\n")
        (folder / "mlflow").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python3"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'other'}:/bin:/usr/bin")
    monkeypatch.chdir(tmp_path / "my project")
    assert program("mlflow") == ".venv/bin/mlflow"
    monkeypatch.chdir(tmp_path)
    assert program("mlflow") == "'my project/.venv/bin/mlflow'"
    monkeypatch.chdir(tmp_path / "other")
    assert program("mlflow") == f"'{programs}/mlflow'"
    ran = subprocess.run(
        ["sh", "-c", program("mlflow")], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"{programs}/mlflow\n"
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")
    assert program("mlflow") == "mlflow"
    assert program("absent") == "absent"


_PACKAGE = Path(command.__file__).parent
COMMANDS = [
    ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts).removesuffix(".__main__")
    for path in sorted(_PACKAGE.rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_imports_the_standard_library_and_this_project_only(module: str) -> None:
    """So it is printed at once: no torch, ray, mlflow, optuna, numpy, rich or other package."""
    assert {"orchestrator.sweep", "orchestrator.report", "orchestrator.data"} < set(COMMANDS)

    def imported(*argv: str) -> set[str]:
        python = [sys.executable, "-X", "importtime", *argv]
        ended = subprocess.run(python, capture_output=True, text=True, check=True)
        lines = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
        names = [line.rpartition("|")[2].strip() for line in lines[1:]]
        assert len(names) > 10
        # `copy` asks for Jython's `org.python.core`.
        return {name.partition(".")[0] for name in names} - {"org"}

    # What Python itself imports when it starts depends on the environment.
    packages = imported("-m", module, "--help") - imported("-c", "") - sys.stdlib_module_names
    assert "orchestrator" in packages
    assert packages <= {"orchestrator", "search_spaces", "trainables"}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "There is too little memory for this command"),
        (
            ImportError("libtorch.so: failed to map segment"),
            "cannot be loaded: libtorch.so: failed",
        ),
    ],
)
def test_too_little_memory_is_one_sentence(
    error: Exception, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error), failed=command.FAILED) == command.FAILED
    printed = capsys.readouterr().err
    assert text in printed
    assert "`ulimit -" in printed
    assert "Traceback" not in printed


def test_a_path_that_a_library_cannot_encode_is_named_with_the_locale(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As `-X utf8=0` and LC_ALL=C make of a path with an umlaut."""
    error = UnicodeEncodeError("utf-8", "x" * 500 + "/d\udcc3\udca4ten", 502, 504, "surrogates")
    assert run(raising(error)) == command.WRONG_USAGE
    printed = capsys.readouterr().err
    assert (
        r"/d\udcc3\udca4ten' is not. Run the command in a UTF-8 locale, such as LC_ALL" in printed
    )
    assert len(printed) < 500
    assert "Traceback" not in printed
