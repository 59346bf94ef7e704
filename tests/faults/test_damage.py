"""Checkpoints and ledgers damaged between a kill and a resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.ledger.database import LedgerError
from orchestrator.ledger.ledger import Ledger, open_ledger
from orchestrator.storage.paths import SweepPaths
from tests.faults.test_bad_input import Malice
from tests.integration.sweeps import (
    TRIAL,
    count_epochs,
    environment,
    ledger_of,
    started,
    sweep,
    titled,
    wait_for,
)
from trainables import files
from trainables.training import checkpoint

pytestmark = pytest.mark.faults

EPOCHS = 12
OPTIONS = ("--variants", "cnn3", "--trials", 2, "--epochs", EPOCHS)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, digits_data_dir: Path) -> Path:
    """A storage folder whose driver was killed with two trials under way, three epochs in each.

    On a busy machine the first may have ended before the second is so far; then once more.
    """
    for _ in range(3):
        paths = _kill_one(tmp_path_factory.mktemp("killed"), digits_data_dir)
        ledger = ledger_of(paths)
        both_run = {trial.status for trial in ledger.trials()} == {"running"}
        ledger.close()
        if both_run:
            return paths.local_root
    raise AssertionError("One trial ended before the other had three epochs, three times.")


def _kill_one(folder: Path, data_dir: Path) -> SweepPaths:
    paths = SweepPaths(folder / "results", "digits")
    with started(folder, "digits", *OPTIONS, "--data-dir", data_dir) as process:
        wait_for(lambda: _fewest_epochs(paths) >= 3, "three epochs of each trial")
        process.send_signal(signal.SIGKILL)
        process.wait()
    # Those that train; Ray's own helpers may take longer and write nothing here.
    wait_for(lambda: not titled(process.mark, *TRIAL), "the end of its workers", 60)
    return paths


def _fewest_epochs(paths: SweepPaths) -> int:
    if count_epochs(paths) < 6:
        return 0
    ledger = ledger_of(paths)
    fewest = [len(ledger.epochs(trial.signature)) for trial in ledger.trials()]
    ledger.close()
    return min(fewest) if len(fewest) == 2 else 0


@pytest.fixture
def paths(killed: Path, tmp_path: Path) -> SweepPaths:
    """A copy of it to damage."""
    shutil.copytree(killed, tmp_path / "results")
    return SweepPaths(tmp_path / "results", "digits")


def _resume(paths: SweepPaths, data_dir: Path) -> Any:
    store = f"sqlite:///{paths.local_root / 'mlflow.db'}"
    options = (*OPTIONS, "--data-dir", data_dir, "--storage", paths.local_root, "--resume")
    return sweep(paths.local_root.parent, "digits", *options, "--tracking-uri", store)


def _ended_well(paths: SweepPaths, data_dir: Path) -> str:
    """Resume to the end and assert that every trial is whole; returns what was said."""
    ended = _resume(paths, data_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ledger = ledger_of(paths)
    trials = ledger.trials()
    assert [trial.number for trial in trials] == [0, 1]
    assert {trial.status for trial in trials} == {"complete"}
    for trial in trials:
        assert [row.epoch for row in ledger.epochs(trial.signature)] == list(range(EPOCHS))
    ledger.close()
    return ended.stdout


# --- checkpoints ----------------------------------------------------------------------------------


def _halve(file: Path, mark: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _flip(file: Path, mark: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _empty(file: Path, mark: Path) -> None:
    os.truncate(file, 0)


def _vouched(write: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """Change a file together with its digest, as whoever can write the one can."""

    def change(file: Path, mark: Path) -> None:
        write(file, mark)
        manifest = file.with_name(checkpoint.MANIFEST)
        content = json.loads(manifest.read_text())
        content["sha256"][file.name] = files.sha256(file)
        manifest.write_text(json.dumps(content))

    return change


def _poison(file: Path, mark: Path) -> None:
    torch.save({"state": Malice(mark)}, file)


@pytest.mark.parametrize(
    "damages",
    [
        pytest.param(
            {"model.safetensors": _halve, "optimizer.pt": _flip}, id="46 truncated, bit flipped"
        ),
        pytest.param({"manifest.json": _halve, "state.json": _empty}, id="48 manifest torn"),
        pytest.param(
            {"optimizer.pt": _vouched(_poison), "model.safetensors": _vouched(_halve)},
            id="76 a pickle that runs code",
        ),
    ],
)
def test_a_trial_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(
    paths: SweepPaths, digits_data_dir: Path, damages: dict[str, Callable[[Path, Path], None]]
) -> None:
    """Cases 46, 48 and 76: one kind of damage to each of the two trials; the log says so, no code
    is run, and at most one epoch more is trained again."""
    mark = paths.local_root.parent / "executed"
    ledger = ledger_of(paths)
    expected = {}
    for trial, (name, damage) in zip(ledger.trials(), damages.items(), strict=True):
        newest, before = [row.checkpoint for row in ledger.epochs(trial.signature)][:-3:-1]
        damage(paths.root / newest / name, mark)
        expected[trial.signature] = (newest, before)
    ledger.close()
    _ended_well(paths, digits_data_dir)
    assert not mark.exists()
    said = paths.log.read_text()
    ledger = ledger_of(paths)
    for signature, (newest, before) in expected.items():
        assert ledger.attempts(signature)[-1].resumed_from == before
        assert f"A checkpoint is passed over: {paths.root / newest}" in said


def test_a_manifest_truncated_anywhere_is_never_valid(killed: Path, tmp_path: Path) -> None:
    """Case 48: at every tenth length."""
    whole = next(killed.glob("digits/trials/*/attempt_1/epoch_*"))
    torn = tmp_path / whole.name
    shutil.copytree(whole, torn)
    content = (whole / checkpoint.MANIFEST).read_bytes()
    checkpoint.verify(torn)
    for length in range(0, len(content), 10):
        (torn / checkpoint.MANIFEST).write_bytes(content[:length])
        assert checkpoint.newest_valid([torn]) is None
    (torn / checkpoint.MANIFEST).write_bytes(content.replace(b"model.s", b"../model.s"))
    assert checkpoint.newest_valid([torn]) is None


# --- the ledger -----------------------------------------------------------------------------------


def _facts(ledger: Ledger) -> list[tuple[Any, ...]]:
    rows = [
        (row.seq, row.signature, row.epoch)
        for trial in ledger.trials()
        for row in ledger.epochs(trial.signature)
    ]
    return sorted(rows)


def test_a_truncated_journal_loses_its_end_and_nothing_else(paths: SweepPaths) -> None:
    """Case 53: cut at many lengths, scribbled over, grown by garbage."""
    journal = paths.ledger.with_name(paths.ledger.name + "-wal")
    shared = paths.ledger.with_name(paths.ledger.name + "-shm")
    files = {file: file.read_bytes() for file in (paths.ledger, journal)}
    tail = files[journal]
    assert len(tail) > 20_000
    lengths = [0, 1, 31, 32, 100, 4152, *range(5000, len(tail), len(tail) // 20), len(tail) - 1]
    torn = {length: tail[:length] for length in lengths}
    torn[-1] = tail + os.urandom(9000)
    torn[-2] = tail[:-2000] + os.urandom(2000)
    torn[-3] = tail[: len(tail) // 2] + bytes(len(tail) // 2)

    def opened(content: bytes) -> tuple[list[tuple[Any, ...]], int]:
        shared.unlink(missing_ok=True)
        paths.ledger.write_bytes(files[paths.ledger])
        journal.write_bytes(content)
        ledger = open_ledger(paths.ledger)
        ledger.put("opened", True)  # and can be written
        found = _facts(ledger), ledger.seq
        ledger.close()
        with sqlite3.connect(paths.ledger) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
        return found

    whole, last = opened(tail)
    known, refused = [], []
    for length, content in torn.items():
        try:
            rows, seq = opened(content)
        except LedgerError:  # so much is gone that no table was ever written
            refused.append(length)
            continue
        assert rows == whole[: len(rows)]
        known.append(len(rows))
        if length in (-1, -2, len(tail) - 1):
            assert seq >= last - 1
    assert max(refused, default=0) < 5000
    assert len(set(known)) > 3  # cuts at different places were really different


def test_a_sweep_resumes_from_a_truncated_journal(paths: SweepPaths, digits_data_dir: Path) -> None:
    """Cases 53 and 3: checkpoints are ahead of the ledger then."""
    journal = paths.ledger.with_name(paths.ledger.name + "-wal")
    os.truncate(journal, journal.stat().st_size - 10_000)
    _ended_well(paths, digits_data_dir)


def _scribble(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = os.urandom(200)
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: os.truncate(file, 0), id="empty"),
        pytest.param(lambda file: os.truncate(file, 4096), id="first page only"),
        pytest.param(lambda file: os.truncate(file, file.stat().st_size // 2), id="half"),
        pytest.param(lambda file: file.write_bytes(os.urandom(40_000)), id="garbage"),
        pytest.param(_scribble, id="pages overwritten"),
    ],
)
def test_a_damaged_ledger_is_refused_in_one_sentence_and_left_as_it_is(
    paths: SweepPaths, digits_data_dir: Path, damage: Callable[[Path], None]
) -> None:
    """Case 3: torn or empty after a kill, with no journal to mend it."""
    open_ledger(paths.ledger).close()  # folds the journal in
    damage(paths.ledger)
    content = paths.ledger.read_bytes()
    refused = _resume(paths, digits_data_dir)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr
    assert f"{paths.ledger} is not a readable ledger" in refused.stderr
    assert "Restore it from a copy" in refused.stderr
    assert paths.ledger.read_bytes() == content


def test_a_ledger_of_another_schema_is_refused(paths: SweepPaths, digits_data_dir: Path) -> None:
    """Case 40: written by a later version."""
    with sqlite3.connect(paths.ledger) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    refused = _resume(paths, digits_data_dir)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "has schema 99" in refused.stderr
    assert "Use the version of the orchestrator that wrote it" in refused.stderr


def test_a_sweep_resumes_with_other_package_versions_and_prints_them(
    paths: SweepPaths, digits_data_dir: Path
) -> None:
    """Case 40: an upgrade between two runs."""
    ledger = open_ledger(paths.ledger)
    ledger.put("versions", {**ledger.facts()["versions"], "torch": "2.0.0", "optuna": "4.9.9"})
    ledger.close()
    said = _ended_well(paths, digits_data_dir)
    assert "This sweep was started with torch 2.0.0, optuna 4.9.9; it resumes with torch" in said


_HOLD = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""


def test_a_sweep_waits_for_a_locked_ledger(tmp_path: Path, digits_data_dir: Path) -> None:
    """Case 54: another process holds it for 30 s in the middle of a sweep."""
    paths = SweepPaths(tmp_path / "results", "digits")
    with started(tmp_path, "digits", *OPTIONS, "--data-dir", digits_data_dir) as process:
        wait_for(lambda: count_epochs(paths) >= 2, "two epochs")
        with subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(paths.ledger), "30"], stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout.readline() == b"held\n"
            begun, before = time.monotonic(), count_epochs(paths)
            holder.wait()
            assert time.monotonic() - begun > 29
            assert before < 2 * EPOCHS
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    ledger = ledger_of(paths)
    assert [len(ledger.attempts(trial.signature)) for trial in ledger.trials()] == [1, 1]
    for trial in ledger.trials():
        assert trial.status == "complete"
        assert [row.epoch for row in ledger.epochs(trial.signature)] == list(range(EPOCHS))


_DIE_INSIDE = """
import contextlib, itertools, os, signal, sys
from orchestrator.ledger.database import Database
from orchestrator.sweep.__main__ import main
change, count = Database.change, itertools.count(1)

@contextlib.contextmanager
def dying(self):
    with change(self) as connection:
        yield connection
        if next(count) == int(os.environ["DIE_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)

Database.change = dying
sys.exit(main(sys.argv[1:]))
"""


def test_a_driver_killed_inside_a_transaction_leaves_a_sound_ledger(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    """Case 54: between a change and its commit; the next open knows nothing of it."""
    paths = SweepPaths(tmp_path / "results", "digits")
    options = [*map(str, OPTIONS), "--final-seeds", "0", "--data-dir", str(digits_data_dir)]
    ended = subprocess.run(
        [sys.executable, "-c", _DIE_INSIDE, "digits", *options],
        cwd=tmp_path,
        env={**environment(), "DIE_AT": "11"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr
    with sqlite3.connect(paths.ledger) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    _ended_well(paths, digits_data_dir)
