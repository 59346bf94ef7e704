"""The ledger's backup: made after every change, whole, never over another driver's."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.ledger import backup
from orchestrator.ledger.backup import LedgerBackup, open_backup
from orchestrator.ledger.ledger import Ledger, open_ledger
from orchestrator.storage import lease, paths
from orchestrator.storage.paths import LEDGER, SweepPaths, sweep_paths
from orchestrator.storage.store import open_storage
from orchestrator.storage.sweeps import storage_of
from tests.orchestrator import sweeps


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    monkeypatch.setattr(backup, "EVERY_S", 0.05)
    monkeypatch.setattr(backup, "AT_LATEST_S", 0.2)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return the paths of one sweep as seen from a machine of that name."""

    def on(name: str) -> SweepPaths:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        found = sweep_paths((tmp_path / "storage").as_uri(), "test")
        found.root.mkdir(parents=True, exist_ok=True)
        return found

    return on


def new(where: SweepPaths, **facts) -> Ledger:
    return sweeps.new_ledger(where.ledger, sweeps.plan(sweeps.space()), **facts)


def add(ledger: Ledger, number: int) -> None:
    ledger.plan_trial(
        signature=f"s{number}", variant="cnn2", number=number, config={}, params={}, seen_seq=0
    )


def copied(where: SweepPaths, folder: Path) -> list[str]:
    """Return the signatures in the copy."""
    file = folder / "copy.sqlite"
    storage = storage_of(where)
    assert storage is not None
    file.write_bytes(storage.get(LEDGER) or b"")
    with closing(open_ledger(file, read_only=True)) as ledger:
        return [trial.signature for trial in ledger.trials()]


def run_on(where: SweepPaths, numbers: Iterator[int] | range, lines: list[str]) -> None:
    """Run a driver that resumes from the ledger it finds, plans trials and ends."""
    with open_backup(where, lines.append) as ledger_backup:
        assert ledger_backup is not None
        ledger_backup.fetch()
        ledger = open_ledger(where.ledger) if where.ledger.exists() else new(where)
        with closing(ledger):
            ledger_backup.start(ledger)
            for number in numbers:
                add(ledger, number)
            assert ledger_backup.flush(lambda: 5)
            ledger_backup.stop()


def known(where: SweepPaths) -> list[str]:
    with closing(open_ledger(where.ledger, read_only=True)) as ledger:
        return [trial.signature for trial in ledger.trials()]


def test_every_change_is_copied_and_copied_seq_is_its_number(machine, tmp_path: Path) -> None:
    where = machine("one")
    with open_backup(where, print) as ledger_backup:
        assert ledger_backup is not None
        with closing(new(where)) as ledger:
            ledger_backup.start(ledger)
            assert copied(where, tmp_path) == []
            add(ledger, 0)
            assert ledger_backup.flush(lambda: 5)
            assert (ledger_backup.copied_seq, copied(where, tmp_path)) == (ledger.seq, ["s0"])
            ledger.put("fact", 1)  # no number of its own, but a change
            assert ledger_backup.flush(lambda: 5)
            add(ledger, 1)
            end_s = time.monotonic() + 5
            while ledger_backup.copied_seq < ledger.seq and time.monotonic() < end_s:
                time.sleep(0.01)
            assert copied(where, tmp_path) == ["s0", "s1"]


def test_a_step_copies_what_has_changed_without_a_thread(machine, tmp_path: Path) -> None:
    where = machine("one")
    with open_backup(where, print) as ledger_backup, closing(new(where)) as ledger:
        assert ledger_backup is not None
        ledger_backup.start(ledger, in_thread=False)
        add(ledger, 0)
        assert copied(where, tmp_path) == []
        pause_s = ledger_backup.step()
        assert pause_s is not None
        assert backup.EVERY_S <= pause_s <= backup.AT_LATEST_S
        assert (ledger_backup.copied_seq, copied(where, tmp_path)) == (ledger.seq, ["s0"])
        add(ledger, 1)
        assert ledger_backup.flush(lambda: 5)
        assert copied(where, tmp_path) == ["s0", "s1"]
        ledger_backup.storage.put(lease.LEASE, json.dumps({"token": "other"}).encode())
        add(ledger, 2)
        assert ledger_backup.step() is None
        assert copied(where, tmp_path) == ["s0", "s1"]


def test_a_plain_folder_on_a_local_disk_needs_no_copy(tmp_path: Path) -> None:
    where = sweep_paths(str(tmp_path / "results"), "test")
    assert where == SweepPaths(tmp_path / "results", "test")
    with open_backup(where, print) as ledger_backup:
        assert ledger_backup is None


def test_a_new_machine_resumes_from_the_copy(machine) -> None:
    lines: list[str] = []
    run_on(machine("one"), range(2), lines)
    shutil.rmtree(machine("one").local_root)
    run_on(machine("two"), range(2, 3), lines)
    assert known(machine("two")) == ["s0", "s1", "s2"]
    assert lines == [
        line for line in lines if line.startswith("Resuming from the copy of the ledger in file:")
    ]


def test_a_machine_with_an_outdated_ledger_takes_the_copy_and_drops_uncopied_changes(
    machine,
) -> None:
    """It planned more than it copied, then another machine resumed with other trials."""
    lines: list[str] = []
    run_on(machine("one"), range(2), lines)
    with closing(open_ledger(machine("one").ledger)) as ledger:
        for number in (7, 8, 9):
            add(ledger, number)
    run_on(machine("two"), range(2, 3), lines)
    run_on(machine("one"), range(3, 4), lines)
    assert known(machine("one")) == ["s0", "s1", "s2", "s3"]
    assert any("ledger.sqlite.before" in line for line in lines)
    assert known(SweepPaths(machine("one").local_root, "test"))  # still a whole ledger
    assert (machine("one").root / "ledger.sqlite.before").exists()


def test_a_ledger_with_more_changes_than_its_copy_stays(machine, tmp_path: Path) -> None:
    """Case 4: an older copy is put back, or the last copies could not be written."""
    lines: list[str] = []
    where = machine("one")
    run_on(where, range(1), lines)
    storage = storage_of(where)
    assert storage is not None
    older = storage.get(LEDGER) or b""
    run_on(where, range(1, 3), lines)
    storage.put(LEDGER, older)
    run_on(where, range(3, 4), lines)
    assert known(where) == ["s0", "s1", "s2", "s3"]
    assert copied(where, tmp_path) == ["s0", "s1", "s2", "s3"]
    assert lines == []


def test_another_sweep_under_the_same_name_replaces_the_local_one(machine) -> None:
    lines: list[str] = []
    run_on(machine("one"), range(2), lines)
    shutil.rmtree(open_storage(machine("one").remote).prefix)
    with open_backup(machine("two"), lines.append) as ledger_backup:
        assert ledger_backup is not None
        with closing(new(machine("two"), sweep_id="another")) as ledger:
            ledger_backup.start(ledger)
    (machine("one").root / "trials" / "s0").mkdir(parents=True)
    run_on(machine("one"), range(5, 6), lines)
    assert known(machine("one")) == ["s5"]
    assert not (machine("one").root / "trials").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "plain"])
def test_a_damaged_copy_is_refused_and_the_error_names_the_way_out(machine, damage: str) -> None:
    """Case 3: torn, flipped, or no copy of ours at all."""
    where = machine("one")
    run_on(where, range(2), [])
    storage = storage_of(where)
    assert storage is not None
    whole = storage.get(LEDGER) or b""
    flipped = bytearray(whole)
    flipped[5000] ^= 4
    contents = {"cut": whole[:-200], "flipped": bytes(flipped), "empty": b"", "plain": b"x" * 500}
    storage.put(LEDGER, contents[damage])
    with pytest.raises(UsageError, match=r"damaged: .* Delete it to resume from this machine's"):
        run_on(where, range(2), [])
    with pytest.raises(UsageError, match=r"damaged: .* Put an earlier version"):
        run_on(machine("two"), range(2), [])
    assert not machine("two").ledger.exists()


def test_a_damaged_local_ledger_is_replaced_by_the_copy(machine) -> None:
    where = machine("one")
    run_on(where, range(2), [])
    where.ledger.write_bytes(b"garbage" * 1000)
    run_on(where, range(2, 3), [])
    assert known(where) == ["s0", "s1", "s2"]


def test_no_copy_is_written_over_that_of_a_driver_that_took_over(machine) -> None:
    where = machine("one")
    with open_backup(where, print) as ledger_backup:
        assert ledger_backup is not None
        with closing(new(where)) as ledger:
            ledger_backup.start(ledger)
            ledger_backup.storage.put(lease.LEASE, json.dumps({"token": "other"}).encode())
            ledger_backup.storage.put(LEDGER, b"theirs")
            add(ledger, 0)
            assert not ledger_backup.flush(lambda: 5)
            assert ledger_backup.lease.lost
            assert ledger_backup.storage.get(LEDGER) == b"theirs"
    assert storage_of(where).get(LEDGER) == b"theirs"


def test_a_full_storage_costs_a_warning_and_the_copy_follows_when_there_is_space(
    machine, tmp_path: Path
) -> None:
    """Cases 43 and 50: a small file system that fills up, and becomes read-only."""
    folder = tmp_path / "storage"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        where, lines = machine("one"), []
        with open_backup(where, lines.append) as ledger_backup:
            assert ledger_backup is not None
            with closing(new(where)) as ledger:
                ledger_backup.start(ledger)
                before = copied(where, tmp_path)
                (folder / "filler").write_bytes(b"x" * 900 * 1024)
                ledger.put("big", "x" * 300_000)
                assert not ledger_backup.flush(lambda: 1)
                assert copied(where, tmp_path) == before  # the one before is unharmed
                ledger_backup.tell(lines.append)
                assert len(lines) == 1
                assert "cannot be updated now" in lines[0]
                (folder / "filler").unlink()
                assert ledger_backup.flush(lambda: 5)
                subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
                add(ledger, 0)
                assert not ledger_backup.flush(lambda: 1)
                ledger_backup.tell(lines.append)
                assert len(lines) == 3
                subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
                assert ledger_backup.flush(lambda: 5)
                assert copied(where, tmp_path) == ["s0"]
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def test_a_storage_that_cannot_be_used_is_refused_at_the_start(machine, tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("a file, no folder")
    with pytest.raises(UsageError, match="must be reachable and writable"):
        run_on(machine("one"), range(1), [])


def test_paths_on_network_file_systems_are_known() -> None:
    mounts = (
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "30 22 0:50 / /mnt/nas rw - nfs4 host:/x rw\n"
        "31 22 0:51 / /mnt/a\\040b rw shared:1 - cifs //host/x rw\n"
        "32 30 0:52 / /mnt/nas/local rw - tmpfs tmpfs rw\n"
        "33 22 0:53 / /mnt/s3 rw - fuse.s3fs s3fs rw\n"
    )
    network = [
        name
        for name in ("/home", "/mnt/nas", "/mnt/nas/x", "/mnt/nas/local", "/mnt/a b/c", "/mnt/s3/x")
        if paths._is_on_network(Path(name), mounts)
    ]
    assert network == ["/mnt/nas", "/mnt/nas/x", "/mnt/a b/c", "/mnt/s3/x"]


def test_one_store_has_one_working_folder_for_all_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = (
        sweep_paths("s3://me:first@bucket/x", "n"),
        sweep_paths("s3://you:second@bucket/x", "n"),
    )
    assert first.local_root == second.local_root
    assert first.local_root.parent == tmp_path / "sweep-orchestrator"
    assert sweep_paths("s3://bucket/y", "n").local_root != first.local_root
    assert isinstance(LedgerBackup, type)
