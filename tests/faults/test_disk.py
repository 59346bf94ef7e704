"""Disks fill up and become read-only; the sweep waits, or stops and says so, and goes on later."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import open_ledger
from orchestrator.storage.paths import SweepPaths
from tests.faults.conftest import SMALL
from tests.integration.sweeps import (
    TRIAL,
    count_epochs,
    ledger_of,
    started,
    sweep,
    table,
    titled,
    wait_for,
)

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
]


@contextmanager
def small_disk(folder: Path, size_mib: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space there is."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            return filler


def address_space(pid: int) -> int:
    time.sleep(0.01)
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def failure_classes(paths: SweepPaths) -> list[Any]:
    return [attempt.failure_class for attempt in ledger_of(paths).attempts()]


def test_a_sweep_waits_for_a_full_disk_and_no_trial_fails(
    tmp_path: Path, digits_data_dir: Path, unbroken: list[Any]
) -> None:
    """Case 42: the disk of the checkpoints is full for ten seconds."""
    paths = SweepPaths(tmp_path / "results", "digits")
    trials = paths.root / "trials"
    with (
        small_disk(trials, 64),
        started(tmp_path, "digits", *SMALL, "--data-dir", digits_data_dir) as process,
    ):
        wait_for(lambda: count_epochs(paths) >= 1, "an epoch")
        filler = fill(trials)
        wait_for(lambda: "disk" in failure_classes(paths), "a failure of the disk")
        time.sleep(5)
        filler.unlink()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert table(paths) == unbroken
    assert "disk" in failure_classes(paths)


def test_a_disk_that_stays_read_only_stops_the_sweep_and_it_resumes_later(
    tmp_path: Path, digits_data_dir: Path, unbroken: list[Any]
) -> None:
    """Case 50."""
    paths = SweepPaths(tmp_path / "results", "digits")
    trials = paths.root / "trials"
    options = (*SMALL, "--data-dir", digits_data_dir)
    with small_disk(trials, 64):
        with started(tmp_path, "digits", *options) as process:
            wait_for(lambda: count_epochs(paths) >= 1, "an epoch")
            # Over it, since a disk with open files cannot be made read-only.
            subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(trials)], check=True)
            output, _ = process.communicate(timeout=200)
            subprocess.run(["umount", str(trials)], check=True)
        assert process.returncode == 1, output
        assert "Read-only file system" in output
        assert "--resume" in output
        assert {t.status for t in ledger_of(paths).trials()} == {"running"}
        again = sweep(tmp_path, "digits", *options, "--resume")
        assert again.returncode == 0, again.stdout + again.stderr
        assert table(paths) == unbroken


def test_a_full_disk_of_the_ledger_stops_the_sweep_and_it_resumes_later(
    tmp_path: Path, digits_data_dir: Path, unbroken: list[Any]
) -> None:
    """Case 43: ledger, log, MLflow and checkpoints are on one disk, and it is full."""
    paths = SweepPaths(tmp_path / "results", "digits")
    options = (*SMALL, "--data-dir", digits_data_dir)
    with small_disk(paths.local_root, 256):
        with started(tmp_path, "digits", *options) as process:
            wait_for(lambda: count_epochs(paths) >= 2, "two epochs")
            filler = fill(paths.local_root)
            output, _ = process.communicate(timeout=120)
        assert process.returncode == 1, output
        assert "--resume" in output
        assert "Traceback" not in output
        filler.unlink()
        open_ledger(paths.ledger).close()
        again = sweep(tmp_path, "digits", *options, "--resume")
        assert again.returncode == 0, again.stdout + again.stderr
        assert table(paths) == unbroken


@pytest.mark.quick
def test_a_sweep_that_does_not_fit_on_the_disk_is_refused(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    options = ("digits", "--data-dir", digits_data_dir, "--storage", tmp_path / "small" / "r")
    with small_disk(tmp_path / "small", 32):
        refused = sweep(tmp_path, *options)
        assert refused.returncode == 2
        assert "are free" in refused.stderr
        assert list((tmp_path / "small").iterdir()) == []


def test_a_trial_that_runs_out_of_memory_resumes_with_smaller_micro_batches(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    """Case 20: a real one: the address space of the training process is limited."""
    (tmp_path / "big.py").write_text(
        "from optuna.distributions import FloatDistribution\n"
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='big', dataset='digits', variants=('cnn3',), trials=1,\n"
        "    image_size=64, first_rung_epochs=0,\n"
        "    base={'epochs': 4, 'batch_size': 1024, 'optimizer': 'adamw',\n"
        "        'precision': 'float32'},\n"
        "    params={'lr': FloatDistribution(1e-4, 1e-3, log=True)})\n"
    )
    paths = SweepPaths(tmp_path / "results", "big")
    with started(tmp_path, "big.py", "--data-dir", digits_data_dir) as process:
        (pid,) = wait_for(lambda: titled(process.mark, *TRIAL), "the trial's process")
        wait_for(lambda: count_epochs(paths) >= 1, "an epoch")
        # Between steps it holds least; what a whole batch takes on top is several times as much.
        limit = min(address_space(pid) for _ in range(100)) + 128 * 2**20
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    attempts = ledger_of(paths).attempts()
    assert {a.failure_class for a in attempts[:-1]} == {"out_of_memory"}
    assert attempts[-1].outcome == "complete"
    assert 2 < attempts[-1].micro_batch_size < 1024


@pytest.mark.alone
def test_a_trial_that_ray_kills_to_free_memory_resumes_with_smaller_micro_batches(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    """Case 20: Ray's memory monitor kills a trial's process; neither Tune nor the sweep ends.

    The monitor looks at the whole host's memory, so nothing else may run beside it.
    """
    (tmp_path / "big.py").write_text(
        "from optuna.distributions import FloatDistribution\n"
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='big', dataset='digits', variants=('cnn3',), trials=1,\n"
        "    image_size=128, first_rung_epochs=0,\n"
        "    base={'epochs': 1, 'batch_size': 1024, 'optimizer': 'sgd', 'steps_per_epoch': 2,\n"
        "        'precision': 'float32'},\n"
        "    params={'lr': FloatDistribution(1e-4, 1e-3, log=True)})\n"
    )
    paths = SweepPaths(tmp_path / "results", "big")
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    used = kib["MemTotal"] - kib["MemAvailable"] + 3 * 2**20  # 3 GiB for the sweep
    env = {"RAY_memory_usage_threshold": f"{used / kib['MemTotal']:.3f}"}
    done = sweep(tmp_path, "big.py", "--data-dir", digits_data_dir, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    attempts = ledger_of(paths).attempts()
    assert {a.failure_class for a in attempts[:-1]} == {"out_of_memory"}
    assert "low on memory" in str(attempts[0].failure_text)
    assert attempts[-1].outcome == "complete"
    assert 2 < attempts[-1].micro_batch_size < 1024
