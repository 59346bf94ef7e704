"""The ledger: changes are whole and permanent, and its file survives kills and full disks."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from orchestrator.ledger import database
from orchestrator.ledger.database import LedgerError
from orchestrator.ledger.ledger import Ledger, check_belongs, create_ledger, open_ledger
from orchestrator.ledger.snapshot import newest_copy
from orchestrator.storage.paths import SweepPaths
from tests.orchestrator.sweeps import metrics, new_ledger, space
from tests.orchestrator.sweeps import plan as sweep_plan
from trainables.metrics import METRIC_NAMES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "it's a sweep" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return create_ledger(path, {"sweep_id": "s"})


def plan(ledger: Ledger, signature: str, number: int = 0, variant: str = "cnn2") -> None:
    ledger.plan_trial(
        signature=signature,
        variant=variant,
        number=number,
        config={"epochs": 3},
        params={"lr": 0.1},
        seen_seq=ledger.seq,
    )


def start(ledger: Ledger, signature: str) -> int:
    return ledger.start_attempt(signature, resumed_from=None, micro_batch_size=0)


def test_what_is_written_is_read_back(ledger: Ledger) -> None:
    plan(ledger, "a")
    assert start(ledger, "a") == 1
    assert ledger.record_epoch("a", 1, 0, metrics(val_top1=0.25), "trials/a/attempt_1/epoch_0000")
    ledger.end_attempt("a", 1, outcome="complete", trial_status="complete", best=(0, 0.25))
    trial = ledger.trial("a")
    assert (trial.variant, trial.number, trial.config, trial.params) == (
        *("cnn2", 0),
        {"epochs": 3},
        {"lr": 0.1},
    )
    assert (trial.seen_seq, trial.planned_seq, trial.ended_seq, trial.changed_seq) == (0, 1, 4, 4)
    assert (trial.status, trial.best_epoch, trial.best_value) == ("complete", 0, 0.25)
    [row] = ledger.epochs("a")
    assert (row.seq, row.epoch, row.attempt) == (3, 0, 1)
    assert row.checkpoint == "trials/a/attempt_1/epoch_0000"
    assert row.metrics == metrics(val_top1=0.25)
    [attempt] = ledger.attempts("a")
    assert (attempt.outcome, attempt.log) == ("complete", "trials/a/attempt_1.log")


def test_an_open_ledger_returns_the_same_rows_as_a_newly_opened_one(
    ledger: Ledger, path: Path
) -> None:
    """After any order of changes, by this process or another, failed ones included."""
    reader, draw = open_ledger(path, read_only=True), random.Random(0)
    running: dict[str, int] = {}
    epochs = dict.fromkeys("abcdefgh", 0)
    [pages] = ledger.database.connection.execute("PRAGMA page_count").fetchone()
    for step in range(200):
        signature = draw.choice("abcdefgh")
        is_full = draw.random() < 0.1
        ledger.database.connection.execute(f"PRAGMA max_page_count = {pages if is_full else 10**6}")
        with contextlib.suppress(LedgerError):
            if signature not in {trial.signature for trial in ledger.trials()}:
                plan(ledger, signature, number=ord(signature))
            elif signature not in running:
                running[signature] = start(ledger, signature)
            elif draw.random() < 0.7:
                value = metrics(val_top1=step / 200)
                ledger.record_epoch(signature, running[signature], epochs[signature], value, None)
                epochs[signature] += 1
            else:
                status = draw.choice(["running", "complete", "failed"])
                attempt = running.pop(signature)
                ledger.end_attempt(signature, attempt, outcome="failed", trial_status=status)
        if draw.random() < 0.5:
            new = open_ledger(path, read_only=True)
            for one in (ledger, reader):
                assert one.trials() == new.trials()
                assert one.trials("final") == []
                assert one.latest_epochs() == new.latest_epochs()
                half = ledger.seq // 2
                assert one.trials(changed_after=half) == new.trials(changed_after=half)
            assert [t.signature for t in new.trials()] == [
                trial.signature for trial in sorted(new.trials(), key=lambda t: t.planned_seq)
            ]
            new.close()
    latest = {signature: row.epoch + 1 for signature, row in ledger.latest_epochs().items()}
    assert latest == {signature: len(ledger.epochs(signature)) for signature in "abcdefgh"}
    assert sum(latest.values()) > 50
    reader.close()


def test_an_epoch_trained_again_keeps_its_first_values(ledger: Ledger) -> None:
    plan(ledger, "a")
    start(ledger, "a")
    assert ledger.record_epoch("a", 1, 0, metrics(val_top1=0.1), "first")
    before = ledger.seq
    assert not ledger.record_epoch("a", 1, 0, metrics(val_top1=0.9), "again")
    start(ledger, "a")
    assert not ledger.record_epoch("a", 2, 0, metrics(val_top1=0.9), "again")
    [row] = ledger.epochs("a")
    assert (row.metrics["val_top1"], row.checkpoint, row.attempt) == (0.1, "first", 1)
    assert ledger.seq == before + 1  # the second attempt's start, and nothing else


def test_rows_of_a_replaced_attempt_are_refused(ledger: Ledger) -> None:
    plan(ledger, "a")
    assert [start(ledger, "a"), start(ledger, "a")] == [1, 2]
    assert not ledger.record_epoch("a", 1, 0, metrics(), None)
    assert ledger.record_epoch("a", 2, 0, metrics(), None)
    assert [row.attempt for row in ledger.epochs("a")] == [2]


def test_rows_of_an_attempt_that_ended_are_refused(ledger: Ledger) -> None:
    plan(ledger, "a")
    start(ledger, "a")
    ledger.end_attempt("a", 1, outcome="stopped", trial_status="stopped")
    assert not ledger.record_epoch("a", 1, 0, metrics(), None)
    assert not ledger.record_epoch("unknown", 1, 0, metrics(), None)
    assert ledger.epochs("a") == []


def test_attempts_stay_in_their_order_when_the_clock_goes_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((900.0, 500.0, 100.0, 50.0))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    plan(ledger, "a")
    for _ in range(4):
        start(ledger, "a")
    assert [attempt.attempt for attempt in ledger.attempts("a")] == [1, 2, 3, 4]
    assert [attempt.attempt for attempt in ledger.attempts()] == [1, 2, 3, 4]


def test_sequence_numbers_only_grow_and_survive_a_reopening(ledger: Ledger, path: Path) -> None:
    seen = [ledger.seq]
    plan(ledger, "a")
    seen.append(ledger.seq)
    start(ledger, "a")
    seen.append(ledger.seq)
    ledger.record_epoch("a", 1, 0, metrics(), None)
    seen.append(ledger.seq)
    ledger.close()
    again = open_ledger(path)
    assert again.seq == seen[-1]
    again.record_epoch("a", 1, 1, metrics(), None)
    seen.append(again.seq)
    again.end_attempt("a", 1, outcome="failed", trial_status="running")
    seen.append(again.seq)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert [row.seq for row in again.epochs("a")] == [3, 4]


def test_a_change_that_fails_leaves_nothing_not_even_a_number(ledger: Ledger) -> None:
    plan(ledger, "a")
    start(ledger, "a")
    before = (ledger.seq, ledger.trials(), ledger.attempts())
    with pytest.raises(sqlite3.IntegrityError):
        plan(ledger, "b", number=0)  # the number is taken
    incomplete = {name: 0.0 for name in METRIC_NAMES if name != "val_top5"}
    with pytest.raises(KeyError):
        ledger.record_epoch("a", 1, 0, incomplete, None)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.start_attempt("a", resumed_from=None, micro_batch_size=None)  # type: ignore[arg-type]
    assert (ledger.seq, ledger.trials(), ledger.attempts()) == before
    assert ledger.epochs("a") == []
    assert ledger.record_epoch("a", 1, 0, metrics(), None)
    assert ledger.seq == before[0] + 1


def test_values_that_are_not_finite_are_read_as_nan(ledger: Ledger) -> None:
    plan(ledger, "a")
    plan(ledger, "b", number=1)
    start(ledger, "a")
    start(ledger, "b")
    ledger.record_epoch("a", 1, 0, metrics(val_loss=math.nan, train_loss=math.inf), None)
    ledger.record_epoch("b", 1, 0, metrics(val_loss=0.5), None)
    [row] = ledger.epochs("a")
    assert math.isnan(row.metrics["val_loss"])
    assert math.isnan(row.metrics["train_loss"])
    assert row.metrics["val_top1"] == metrics()["val_top1"]
    values = ledger.values_at("cnn2", 0, "val_loss", up_to=ledger.seq)
    assert math.isnan(values[0])
    assert values[1:] == [0.5]


def test_values_come_in_order_of_arrival_and_up_to_a_moment(ledger: Ledger) -> None:
    for number, signature in enumerate("abc"):
        plan(ledger, signature, number)
        start(ledger, signature)
    plan(ledger, "z", 0, variant="cnn3")
    start(ledger, "z")
    for signature, value in (("c", 0.3), ("a", 0.1), ("z", 0.9), ("b", 0.2)):
        ledger.record_epoch(signature, 1, 0, metrics(val_top1=value), None)
    assert ledger.values_at("cnn2", 0, "val_top1", up_to=ledger.seq) == [0.3, 0.1, 0.2]
    assert ledger.values_at("cnn2", 0, "val_top1", up_to=ledger.seq - 1) == [0.3, 0.1]
    assert ledger.values_at("cnn2", 1, "val_top1", up_to=ledger.seq) == []
    with pytest.raises(KeyError):
        ledger.values_at("cnn2", 0, "val_top1; DROP TABLE trials", up_to=0)


def test_changes_after_a_number_are_selected(ledger: Ledger) -> None:
    plan(ledger, "a")
    plan(ledger, "b", number=1)
    position = ledger.seq
    start(ledger, "a")
    ledger.record_epoch("a", 1, 0, metrics(), None)
    middle = ledger.seq
    ledger.record_epoch("a", 1, 1, metrics(), None)
    assert [trial.signature for trial in ledger.trials(changed_after=position)] == ["a"]
    assert [row.epoch for row in ledger.epochs("a", after=middle)] == [1]
    assert {key: row.epoch for key, row in ledger.latest_epochs().items()} == {"a": 1}


def test_facts_are_stored_and_replaced(ledger: Ledger, path: Path) -> None:
    ledger.put("options", {"trials": 3})
    ledger.put("options", {"trials": 5, "variants": ["a"]})
    ledger.close()
    again = open_ledger(path)
    assert again.facts()["options"] == {"trials": 5, "variants": ["a"]}
    assert (again.facts()["sweep_id"], again.facts().get("none"), again.facts().get("none", 7)) == (
        "s",
        None,
        7,
    )


def test_an_unknown_trial_is_a_key_error(ledger: Ledger) -> None:
    with pytest.raises(KeyError, match="nobody"):
        ledger.trial("nobody")


_WRITER = """
import sys
from pathlib import Path
from orchestrator.ledger.ledger import open_ledger
from tests.orchestrator.sweeps import metrics
ledger = open_ledger(Path(sys.argv[1]))
print("ready", flush=True)
number = len(ledger.trials())
while True:
    key = f"t{number}"
    ledger.plan_trial(signature=key, variant="v", number=number, config={"n": number}, params={},
                      seen_seq=ledger.seq)
    attempt = ledger.start_attempt(key, resumed_from=None, micro_batch_size=0)
    for epoch in range(2):
        ledger.record_epoch(key, attempt, epoch, metrics(val_top1=number + epoch), None)
    ledger.end_attempt(key, attempt, outcome="complete", trial_status="complete", best=(1, 1.0))
    print(key, flush=True)
    number += 1
"""


def _kill_while_writing(path: Path, delay_s: float) -> list[str]:
    """Kill a writing process after `delay_s` of writing; return the trials it printed as done."""
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(delay_s)
    os.kill(child.pid, signal.SIGKILL)
    said = child.stdout.read().splitlines()
    child.wait()
    return said


def test_a_killed_writer_leaves_a_sound_file_and_no_half_trial(ledger: Ledger, path: Path) -> None:
    ledger.close()
    draws = random.Random(0)
    done: list[str] = []
    rounds = 0
    while rounds < 10 or (len(done) <= 10 and rounds < 100):  # a busy machine needs more rounds
        rounds += 1
        # The last line may lack its newline, never its trial: it is printed after the commit.
        done += _kill_while_writing(path, draws.uniform(0.0, 0.05))
        with contextlib.closing(sqlite3.connect(path)) as check:
            assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert check.execute("PRAGMA foreign_key_check").fetchall() == []
        again = open_ledger(path)
        trials = again.trials()
        assert [trial.number for trial in trials] == list(range(len(trials)))
        seqs = [trial.planned_seq for trial in trials]
        for trial in trials:
            rows, attempts = again.epochs(trial.signature), again.attempts(trial.signature)
            seqs += [row.seq for row in rows]
            assert trial.config == {"n": trial.number}
            assert [row.epoch for row in rows] == list(range(len(rows)))
            assert all(row.metrics["val_top1"] == trial.number + row.epoch for row in rows)
            if trial.status == "complete":
                assert (len(rows), trial.best_epoch, len(attempts)) == (2, 1, 1)
                assert attempts[0].outcome == "complete"
            elif trial.status == "running":
                assert [attempt.outcome for attempt in attempts] == [None]
            else:
                assert (trial.status, attempts, rows) == ("planned", [], [])
        assert len(set(seqs)) == len(seqs)
        assert again.seq == max((trial.changed_seq for trial in trials), default=0)
        assert all(again.trial(key).status == "complete" for key in done)
        again.close()
    assert len(done) > 10


def test_a_reader_sees_whole_changes_while_they_are_written(ledger: Ledger, path: Path) -> None:
    stop, torn, reads = threading.Event(), [], []

    def read() -> None:
        reader = open_ledger(path, read_only=True)
        while not stop.is_set():
            for trial in reader.trials():
                # An end is one transaction: status and attempt change together.
                if trial.status == "complete" and reader.attempts(trial.signature)[-1].outcome != (
                    "complete"
                ):
                    torn.append(trial.signature)
            reads.append(len(reader.latest_epochs()))
        reader.close()

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(40):
        key = f"t{number}"
        plan(ledger, key, number)
        start(ledger, key)
        ledger.record_epoch(key, 1, 0, metrics(), None)
        ledger.end_attempt(key, 1, outcome="complete", trial_status="complete", best=(0, 0.5))
    stop.set()
    thread.join()
    assert torn == []
    assert reads == sorted(reads)
    assert len(ledger.trials()) == 40


def test_several_threads_share_one_ledger(ledger: Ledger) -> None:
    for number in range(4):
        plan(ledger, f"t{number}", number)
        start(ledger, f"t{number}")

    def write(key: str) -> None:
        for epoch in range(25):
            assert ledger.record_epoch(key, 1, epoch, metrics(val_top1=epoch), None)

    threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seqs = [row.seq for number in range(4) for row in ledger.epochs(f"t{number}")]
    assert sorted(seqs) == list(range(9, 109))


def test_a_read_only_ledger_refuses_to_write(ledger: Ledger, path: Path) -> None:
    plan(ledger, "a")
    reader = open_ledger(path, read_only=True)
    assert [trial.signature for trial in reader.trials()] == ["a"]
    with pytest.raises(LedgerError, match="readonly"):
        reader.put("x", 1)
    assert ledger.facts().get("x") is None


def test_a_full_disk_is_an_error_and_leaves_the_ledger_unchanged(ledger: Ledger) -> None:
    plan(ledger, "a")
    before, seq = ledger.trials(), ledger.seq
    [pages] = ledger.database.connection.execute("PRAGMA page_count").fetchone()
    ledger.database.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match="full"):
        ledger.put("long", "x" * 100_000)
    assert (ledger.trials(), ledger.seq, ledger.facts().get("long")) == (before, seq, None)
    ledger.database.connection.execute("PRAGMA max_page_count = 1000000")
    ledger.put("long", "x" * 100_000)


def test_a_copy_is_consistent_while_writing_continues(ledger: Ledger, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    copy.with_name(".copy.sqlite.tmp").write_bytes(b"half a copy of a driver that was killed")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            key = f"t{number}"
            plan(ledger, key, number)
            start(ledger, key)
            ledger.end_attempt(key, 1, outcome="complete", trial_status="complete", best=(0, 1.0))
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    sizes = []
    try:
        for _ in range(8):
            ledger.database.copy_to(copy)
            taken = open_ledger(copy)
            trials = taken.trials()
            sizes.append(len(trials))
            assert taken.seq == max((trial.changed_seq for trial in trials), default=0)
            for trial in trials:
                expected = {"complete": ["complete"], "running": [None], "planned": []}
                outcomes = [attempt.outcome for attempt in taken.attempts(trial.signature)]
                assert outcomes == expected[trial.status]
            taken.close()
            time.sleep(0.01)
    finally:
        stop.set()
        thread.join()
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    assert list(tmp_path.glob(".copy*")) == []


def test_another_schema_is_a_ledger_error(ledger: Ledger, path: Path) -> None:
    ledger.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match=r"schema 99; this version reads 5 to 6.*--name"):
        open_ledger(path)


@pytest.mark.parametrize("content", [b"not a database at all, " * 100, b"", b"SQLite format 3\0"])
def test_a_file_that_is_no_ledger_is_a_ledger_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
        open_ledger(path)
    assert path.read_bytes() == content


def test_a_database_of_others_with_our_number_is_a_ledger_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute(f"PRAGMA user_version = {database.SCHEMA}")
    with pytest.raises(LedgerError, match="no such table"):
        open_ledger(path)


def test_a_missing_ledger_is_a_ledger_error_and_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="There is no ledger at"):
        open_ledger(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_ledger_is_never_created_over(ledger: Ledger, path: Path) -> None:
    plan(ledger, "a")
    with pytest.raises(FileExistsError):
        create_ledger(path, {"sweep_id": "other"})
    assert ledger.facts()["sweep_id"] == "s"
    assert len(ledger.trials()) == 1


def test_a_creation_that_fails_leaves_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(TypeError):
        create_ledger(path, {"good": 1, "bad": object()})
    assert not path.exists()
    (tmp_path / ".ledger.sqlite.new").write_bytes(b"what a killed driver left")
    create_ledger(path, {"good": 1}).close()
    assert [item.name for item in tmp_path.iterdir()] == ["ledger.sqlite"]


_LIMITED = """
import resource, sys
from pathlib import Path
from orchestrator.ledger.ledger import LedgerError, create_ledger
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    create_ledger(Path(sys.argv[1]), {"sweep_id": "s"})
except LedgerError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 512, 8192, 30_000])  # as `ulimit -f` sets it
def test_a_ledger_that_cannot_be_written_is_one_sentence_and_leaves_nothing(
    limit: int, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    command = [sys.executable, "-c", _LIMITED, str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(path) in done.stdout
    assert "the space on the disk" in done.stdout
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "no space"), sqlite3.DatabaseError("damaged")])
def test_every_error_of_the_system_and_of_sqlite_at_the_creation_is_a_ledger_error(
    error: Exception, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "connect", Mock(side_effect=error))
    with pytest.raises(LedgerError, match=f"cannot be created: .*{error.args[-1]}"):
        create_ledger(path, {"sweep_id": "s"})


def test_a_journal_left_behind_is_not_played_into_a_new_ledger(ledger: Ledger, path: Path) -> None:
    ledger.close()
    for delay_s in (0.03, 0.06, 0.1):
        _kill_while_writing(path, delay_s)
        if path.with_name("ledger.sqlite-wal").exists():
            break
    assert path.with_name("ledger.sqlite-wal").stat().st_size > 0
    path.unlink()  # and nothing else, as a hurried user does
    fresh = create_ledger(path, {"sweep_id": "fresh"})
    assert fresh.trials() == []
    assert fresh.facts()["sweep_id"] == "fresh"


@pytest.mark.parametrize("script", ["", "PRAGMA user_version = 6", database._TABLES])
def test_a_file_without_a_sweep_is_a_ledger_error(path: Path, script: str) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.executescript(f"{script}; PRAGMA user_version = {database.SCHEMA if script else 0}")
    with pytest.raises(LedgerError, match="is not a readable ledger"):
        open_ledger(path)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_missing_permission_is_not_called_damage(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    """Permissions do not bind root, who may run the tests."""
    ledger.close()
    denied = os.R_OK if read_only else os.W_OK
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda file, mode: file != path or (not mode & denied and real(file, mode))
    )
    with pytest.raises(LedgerError) as error:
        open_ledger(path, read_only=read_only)
    use = "read" if read_only else "read and written"
    assert f"must be {use} by this user, who has no permission" in str(error.value)
    assert "chmod u+r" in str(error.value)


def test_a_locked_ledger_is_not_called_damaged(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "timeout": 0.1}))
    ledger.database.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    ledger.put("key", 1)
    with pytest.raises(LedgerError, match=r"cannot be opened: .*locked.* says nothing about"):
        open_ledger(path)


def test_a_ledger_of_another_sweep_is_refused(tmp_path: Path) -> None:
    """One without a name is of an earlier version."""
    mine = SweepPaths(tmp_path, "mine")
    for name in ("other", "mine", ""):
        facts = {"name": name} if name else {}
        with contextlib.closing(new_ledger(mine.ledger, sweep_plan(space()), **facts)) as ledger:
            if name == "other":
                with pytest.raises(LedgerError, match=r"of the sweep 'mine', but .* 'other'"):
                    check_belongs(ledger, mine)
                with pytest.raises(LedgerError, match="'other'"), newest_copy(mine):
                    pass
            else:
                check_belongs(ledger, mine)
        mine.ledger.unlink()
