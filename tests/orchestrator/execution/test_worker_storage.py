"""An attempt of a sweep in remote storage reports only what is durable there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution import uploads, worker
from orchestrator.execution.job import failure_report
from orchestrator.storage import retry
from orchestrator.storage.store import StorageError, open_storage
from tests.orchestrator.execution.test_worker_train import job
from trainables.training import checkpoint


def test_an_epoch_is_reported_after_its_checkpoint_and_the_log_are_stored(
    digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "LOG_EVERY_S", 0.0)
    place = open_storage((tmp_path / "storage").as_uri())
    made = job(digits_dir, tmp_path / "one", storage=place.uri)
    reports: list[dict[str, Any]] = []

    def report(values: dict[str, Any]) -> None:
        reports.append(values)
        if values["kind"] == "epoch":
            checkpoint.verify(tmp_path / "storage" / values["checkpoint"])
            assert f"epoch {values['epoch'] + 1}/2" in (place.get(made.log) or b"").decode()

    worker.train(made, report)
    assert [values["kind"] for values in reports] == ["epoch", "epoch", "end"]
    assert not list((tmp_path / "one").rglob("epoch_*"))  # no driver cleans up here

    # The log is stored after the last epoch, so a report follows that epoch's.
    signed: list[dict[str, Any]] = []
    worker.train(
        job(digits_dir, tmp_path / "one", storage=place.uri),
        signed.append,
        reports_between_epochs=True,
    )
    others = [one for one in signed if one["kind"] != "alive"]
    assert [one.get("outcome") for one in others] == [None, None, "complete"]

    # Another machine resumes from there and ends with the same values.
    first, second, _ = reports
    shutil.rmtree(tmp_path / "one")
    again = job(
        digits_dir, tmp_path / "two", storage=place.uri, resume_from=first["checkpoint"], attempt=2
    )
    reports.clear()
    worker.train(again, reports.append)
    assert [values["kind"] for values in reports] == ["epoch", "end"]
    for name in ("epoch", "train_loss", "val_loss", "val_top1", "lr"):
        assert reports[0][name] == second[name]

    # A damaged checkpoint is not loaded.
    (tmp_path / "storage" / first["checkpoint"] / "model.safetensors").write_bytes(b"torn")
    third = job(
        digits_dir,
        tmp_path / "three",
        storage=place.uri,
        resume_from=first["checkpoint"],
        attempt=3,
    )
    with pytest.raises(checkpoint.CheckpointError):
        worker.train(third, reports.append)


def test_an_epoch_that_cannot_be_stored_is_not_reported_and_fails_as_disk(
    digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "KEEP_TRYING_S", 0.1)
    (tmp_path / "storage").write_text("no folder")
    made = job(digits_dir, tmp_path / "one", storage=(tmp_path / "storage").as_uri())
    reports: list[dict[str, Any]] = []
    with pytest.raises(StorageError) as caught:
        worker.train(made, reports.append)
    assert reports == []
    assert failure_report(made, caught.value)["failure_class"] == "disk"
