"""One driver per sweep: a lease that is taken, renewed, refused, broken when stale, and lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.clock import Clock
from orchestrator.errors import UsageError
from orchestrator.storage import lease
from orchestrator.storage.lease import LEASE, Lease, LeaseLostError, take
from orchestrator.storage.store import Storage, open_storage


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    monkeypatch.setattr(lease, "STALE_S", 2.0)
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path.as_uri())


def elsewhere(storage: Storage, token: str = "other") -> None:
    facts = {"host": "elsewhere", "pid": 4711, "boot": "b", "began": "1", "token": token}
    storage.put(LEASE, json.dumps(facts).encode())


def test_a_lease_is_renewed_while_it_is_held_and_gone_when_released(storage: Storage) -> None:
    held = take(storage, print)
    first = storage.get(LEASE)
    time.sleep(0.5)
    assert storage.get(LEASE) != first
    held.release()
    assert storage.files() == []


def test_a_held_lease_is_refused_and_its_holder_is_named(storage: Storage) -> None:
    held = take(storage, print)
    lines: list[str] = []
    with pytest.raises(UsageError, match=r"already being run by process \d+ on "):
        take(storage, lines.append)
    held.check()
    held.release()


def test_a_lease_without_renewals_is_taken_once_it_is_stale(storage: Storage) -> None:
    elsewhere(storage)
    lines: list[str] = []
    began_s = time.monotonic()
    held = take(storage, lines.append)
    assert 1 < time.monotonic() - began_s < 4
    assert "process 4711 on elsewhere" in lines[0]
    held.check()
    held.release()


def test_a_lease_of_an_ended_process_of_this_machine_is_taken_at_once(
    storage: Storage,
) -> None:
    code = (
        "import sys; from orchestrator.clock import Clock; from orchestrator.storage import lease;"
        "from orchestrator.storage.store import open_storage;"
        "open_storage(sys.argv[1]).put(lease.LEASE, lease._own('gone', Clock()))"
    )
    subprocess.run([sys.executable, "-c", code, storage.uri], check=True)
    began_s = time.monotonic()
    held = take(storage, print)
    assert time.monotonic() - began_s < 1
    held.release()


def test_a_reused_process_number_is_another_process(storage: Storage) -> None:
    facts = json.loads(lease._own("gone", Clock()))
    assert not lease._is_gone(facts)
    assert lease._is_gone({**facts, "began": "1"})
    assert not lease._is_gone({**facts, "began": "1", "host": "elsewhere"})
    assert not lease._is_gone({**facts, "began": "1", "boot": "another start"})


def test_of_two_that_write_at_once_the_later_one_holds_it(storage: Storage) -> None:
    with pytest.raises(UsageError, match="process 4711 on elsewhere"):
        take(storage, print, clock=Clock(sleep=lambda _: elsewhere(storage)))


def test_a_step_renews_the_lease_once(storage: Storage) -> None:
    now = [1000.0]
    held = Lease(storage, "mine", Clock(now_s=lambda: now[0]))
    for now[0] in (1000.0, 1005.0):
        assert held.step() == lease.RENEW_S
        assert json.loads(storage.get(LEASE) or b"")["renewed_s"] == now[0]
    elsewhere(storage)
    assert held.step() is None
    assert "taken over by process 4711 on elsewhere" in (held.lost or "")


def test_a_driver_notices_that_its_lease_was_taken_and_leaves_it(storage: Storage) -> None:
    held = take(storage, print)
    elsewhere(storage)
    time.sleep(0.5)
    assert "taken over by process 4711 on elsewhere" in (held.lost or "")
    with pytest.raises(LeaseLostError):
        held.check()
    held.release()
    assert json.loads(storage.get(LEASE) or b"")["token"] == "other"


def test_a_lease_that_was_deleted_is_written_again(storage: Storage) -> None:
    held = take(storage, print)
    storage.delete(LEASE)
    time.sleep(0.5)
    assert isinstance(held, Lease)
    assert storage.exists(LEASE)
    held.release()


def test_a_lease_that_is_not_json_becomes_stale_like_any_other(storage: Storage) -> None:
    storage.put(LEASE, b"\x00 torn")
    lines: list[str] = []
    take(storage, lines.append).release()
    assert "an unknown host" in lines[0]
