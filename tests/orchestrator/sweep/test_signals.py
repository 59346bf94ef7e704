"""The driver's reaction to signals."""

import os
import signal
import subprocess
import sys
import time

DRIVER = """
import subprocess, time
from orchestrator.sweep.signals import Interruption, signals_set

interruption = Interruption()
interruption.last_line = "To resume, run: this\\n"
with signals_set(interruption):
    shell = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE)
    print(shell.pid, int(shell.stdout.readline()), flush=True)
    for event in (interruption.wanted, interruption.urgent):
        event.wait()
        print("set", flush=True)
    time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_third_signal_ends_the_driver_and_its_child_processes():
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    started = [int(word) for word in driver.stdout.readline().split()]
    assert [is_alive(pid) for pid in started] == [True, True]
    for _ in range(2):
        driver.send_signal(signal.SIGINT)
        assert driver.stdout.readline() == "set\n"
    assert [is_alive(pid) for pid in started] == [True, True]
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=20) == 130
    assert driver.stdout.read() == "To resume, run: this\n"
    end_s = time.monotonic() + 10
    while any(map(is_alive, started)) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert [is_alive(pid) for pid in started] == [False, False]
    driver.stdout.close()
