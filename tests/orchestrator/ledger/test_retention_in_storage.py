"""Which checkpoints stay in a storage that is elsewhere: what its copy of the ledger points to."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.ledger import retention
from orchestrator.ledger.ledger import Ledger
from orchestrator.storage import sweeps
from orchestrator.storage.paths import SweepPaths, sweep_paths
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepPaths:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return sweep_paths((tmp_path / "storage").as_uri(), "s")


@pytest.fixture
def ledger(paths: SweepPaths) -> Ledger:
    return new_ledger(paths.ledger, plan(space(keep_best=1)))


def begin(ledger: Ledger, key: str, number: int) -> None:
    config = {"select_by": "val_top1"}
    ledger.plan_trial(
        signature=key, variant="cnn2", number=number, config=config, params={}, seen_seq=0
    )
    ledger.start_attempt(key, resumed_from=None, micro_batch_size=0)


def add_epoch(ledger: Ledger, paths: SweepPaths, key: str, epoch: int, value: float) -> None:
    name = f"trials/{key}/attempt_1/epoch_{epoch:04d}"
    storage = sweeps.storage_of(paths)
    assert storage is not None
    storage.put(f"{name}/manifest.json", b"{}")
    ledger.record_epoch(key, 1, epoch, metrics(val_top1=value), name)


def end(ledger: Ledger, key: str, best: tuple[int, float], status: str = "complete") -> None:
    ledger.end_attempt(key, 1, outcome=status, trial_status=status, best=best)  # type: ignore[arg-type]


def stored(paths: SweepPaths) -> list[str]:
    storage = sweeps.storage_of(paths)
    assert storage is not None
    names = storage.files("trials", recursive=True)
    return [
        name.replace("/attempt_1/epoch_000", " ").removesuffix("/manifest.json") for name in names
    ]


def test_a_running_trial_keeps_its_best_and_last_two_copied_checkpoints(
    ledger: Ledger, paths: SweepPaths
) -> None:
    begin(ledger, "a", 0)
    for epoch, value in enumerate((0.1, 0.5, 0.2, 0.3)):
        add_epoch(ledger, paths, "a", epoch, value)
    known = ledger.seq
    for epoch, value in ((4, 0.4), (5, 0.9)):
        add_epoch(ledger, paths, "a", epoch, value)
    done: set[str] = set()
    retention.collect(ledger, paths, done, copied_seq=0)
    assert stored(paths) == ["a 0", "a 1", "a 2", "a 3", "a 4", "a 5"]
    retention.collect(ledger, paths, done, copied_seq=known)
    assert stored(paths) == ["a 1", "a 2", "a 3", "a 4", "a 5"]
    retention.collect(ledger, paths, done, copied_seq=ledger.seq)
    assert stored(paths) == ["a 4", "a 5"]


def test_an_ended_trial_keeps_its_checkpoints_until_its_end_is_copied(
    ledger: Ledger, paths: SweepPaths
) -> None:
    for number, key in enumerate("ab"):
        begin(ledger, key, number)
        for epoch in range(2):
            add_epoch(ledger, paths, key, epoch, 0.5 + number / 10)
    end(ledger, "a", (0, 0.5))
    known = ledger.seq
    end(ledger, "b", (1, 0.6))
    done: set[str] = set()
    retention.collect(ledger, paths, done, copied_seq=known)
    assert stored(paths) == ["a 0", "b 0", "b 1"]  # the copy's best trial is still a
    retention.collect(ledger, paths, done, copied_seq=ledger.seq)
    assert stored(paths) == ["b 1"]


def test_the_best_weights_are_fetched_if_this_machine_lacks_them(
    ledger: Ledger, paths: SweepPaths, tmp_path: Path
) -> None:
    import json

    import torch

    from trainables.training import checkpoint

    begin(ledger, "a", 0)
    made = tmp_path / "made"
    checkpoint.save(made, weights={"model": {"w": torch.ones(3)}}, optimizer={}, state={})
    storage, name = sweeps.storage_of(paths), "trials/a/attempt_1/epoch_0000"
    assert storage is not None
    storage.put_folder(made, name, last="manifest.json")
    ledger.record_epoch("a", 1, 0, metrics(), name)
    end(ledger, "a", (0, 0.5))
    found = retention.best_weights(ledger, paths, ledger.trial("a"))
    assert found == paths.root / name / "model.safetensors"
    assert found.read_bytes() == (made / "model.safetensors").read_bytes()
    assert sweeps.local_checkpoint(paths, name) == paths.root / name
    # A damaged one here is replaced; one that is damaged there is none.
    found.write_bytes(b"torn")
    assert sweeps.local_checkpoint(paths, name) == paths.root / name
    found.write_bytes(b"torn")
    storage.put(f"{name}/state.json", json.dumps({"flipped": 1}).encode())
    assert sweeps.local_checkpoint(paths, name) is None
