"""What the driver's process does with signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

DRIVER = """
import subprocess, time
from orchestrator.sweep.signals import Interruption, signals_set

interruption = Interruption()
with signals_set(interruption):
    shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE)
    print(shell.pid, int(shell.stdout.readline()), flush=True)
    for told in (interruption.wanted, interruption.urgent):
        told.wait()
        print("told", flush=True)
    time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_third_signal_ends_the_driver_and_all_that_it_started():
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    started = [int(word) for word in driver.stdout.readline().split()]
    assert [is_alive(pid) for pid in started] == [True, True]
    for _ in range(2):
        driver.send_signal(signal.SIGINT)
        assert driver.stdout.readline() == "told\n"
    assert [is_alive(pid) for pid in started] == [True, True]
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=20) == 130
    end_s = time.monotonic() + 10
    while any(map(is_alive, started)) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert [is_alive(pid) for pid in started] == [False, False]
    driver.stdout.close()


COMMAND = """
import atexit, sys
from orchestrator.command import exit_fast

class Kept:
    def __del__(self):
        sys.__stdout__.write("taken apart")

def main():
    global kept
    kept = Kept()
    print("half a line", end="")
    atexit.register(print, ", the end")
    {end}

exit_fast(main)
"""


@pytest.mark.parametrize(
    ("end", "status", "is_taken_apart", "error"),
    [
        ("return 0", 0, False, ""),
        ("return 3", 3, False, ""),
        ("sys.exit(2)", 2, True, ""),  # as argparse has it
        ("raise ValueError('why')", 1, True, "ValueError: why\n"),
    ],
)
def test_a_command_leaves_with_its_status_all_it_printed_and_no_teardown(
    end, status, is_taken_apart, error
):
    command = [sys.executable, "-c", COMMAND.format(end=end)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert ended.stdout == "half a line, the end\n" + "taken apart" * is_taken_apart
    assert ended.stderr.endswith(error)
    assert bool(ended.stderr) == bool(error)


def test_a_command_whose_output_could_not_be_written_does_not_end_well():
    script = "from orchestrator.command import exit_fast; exit_fast(lambda: print(1) or 0)"
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", script], stdout=full, env=env, check=False)
    assert ended.returncode == 120  # Python's own


def test_a_command_without_an_output_leaves_with_its_status():
    script = "from orchestrator.command import exit_fast; exit_fast(lambda: 3)"
    shell = ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, script]
    assert subprocess.run(shell, check=False).returncode == 3
