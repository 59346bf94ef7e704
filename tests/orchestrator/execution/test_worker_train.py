"""A worker's reports, the classes of its failures, and its log."""

import dataclasses
import errno
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.execution import worker
from orchestrator.execution.failure_class import classify, is_process_unusable
from orchestrator.execution.job import Job, failure_report
from orchestrator.execution.worker import train
from tests.trainables.digits_trials import digits_config
from trainables.data.dataset import DatasetError
from trainables.metrics import METRIC_NAMES
from trainables.training import checkpoint
from trainables.training.checkpoint import CheckpointError


def job(digits_dir: Path, sweep_dir: Path, **values: Any) -> Job:
    """An attempt of a small trial; `values` are the job's own fields or the configuration's."""
    own = {f.name for f in dataclasses.fields(Job)}
    config = digits_config(digits_dir, **{k: v for k, v in values.items() if k not in own})
    return Job(
        **{
            "signature": config.signature(),
            "attempt": 1,
            "config": config.to_dict(),
            "dataset_dir": str(digits_dir),
            "sweep_dir": str(sweep_dir),
            "log": f"logs/{config.signature()}/1.log",
            "resume_from": None,
            "keep_all": False,
            "is_evaluated": False,
            "cpus": 1.0,
            "gpus": 0.0,
            **{k: v for k, v in values.items() if k in own},
        }
    )


def reports_of(made: Job) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = []
    train(made, reports.append)
    return reports


def test_an_attempt_reports_every_epoch_and_its_end(digits_dir, tmp_path):
    made = job(digits_dir, tmp_path)
    first, second, end = reports_of(made)
    address = {"signature": made.signature, "attempt": 1, "node": ""}
    assert set(first) == {*address, "kind", "epoch", "checkpoint", *METRIC_NAMES}
    for epoch, report in enumerate((first, second)):
        assert address.items() <= report.items()
        assert (report["kind"], report["epoch"]) == ("epoch", epoch)
        assert all(type(report[name]) is float for name in METRIC_NAMES)
        # Relative, so that a sweep's folder can be moved.
        assert report["checkpoint"] == f"trials/{made.signature}/attempt_1/epoch_{epoch:04d}"
        checkpoint.verify(tmp_path / report["checkpoint"])
    assert end == {**address, "kind": "end", "outcome": "complete"}
    assert json.loads(json.dumps([first, second, end])) == [first, second, end]


def test_the_last_epoch_s_report_ends_a_trial_on_one_device(digits_dir, tmp_path):
    def outcomes(**values: Any) -> list[str | None]:
        reports: list[dict[str, Any]] = []
        train(job(digits_dir, tmp_path, **values), reports.append, reports_between_epochs=True)
        return [one.get("outcome") for one in reports if one["kind"] == "epoch"]

    assert outcomes() == [None, "complete"]
    assert outcomes(epochs=1) == ["complete"]
    assert outcomes(is_evaluated=True) == [None, None]  # the evaluation on the test split follows
    # Ended early: nothing improves at learning rate 0.
    assert outcomes(lr=0.0, epochs=9, early_stop_patience_epochs=1) == [None, "complete"]


def test_a_new_process_and_one_on_a_draining_cluster_report_their_first_step(
    digits_dir, tmp_path, monkeypatch
):
    def first(**values: Any) -> str:
        reports: list[dict[str, Any]] = []
        train(job(digits_dir, tmp_path, **values), reports.append, reports_between_epochs=True)
        return str(reports[0]["kind"])

    monkeypatch.setattr(worker, "_is_warm", False)
    assert first() == "alive"
    assert first() == "epoch"
    assert first(reports_first_step=True) == "alive"
    assert first() == "epoch"
    monkeypatch.setattr(worker, "_FIRST_ALIVE_S", 0.0)
    assert first() == "alive"


def test_the_log_has_a_line_for_each_epoch(digits_dir, tmp_path):
    made = job(digits_dir, tmp_path)
    first, _, _ = reports_of(made)
    lines = (tmp_path / made.log).read_text().splitlines()
    assert len(lines) == 3
    assert f"{made.signature} attempt 1: cnn3, digits" in lines[0]
    assert "epoch 1/2" in lines[1]
    assert f"train_loss {first['train_loss']:.5g}" in lines[1]
    assert "epoch 2/2" in lines[2]
    assert all(name in lines[2] for name in METRIC_NAMES)
    assert logging.getLogger("trainables").handlers == []  # the next trial has its own file


def test_a_retry_resumes_under_its_own_number(digits_dir, tmp_path):
    first, _, _ = reports_of(job(digits_dir, tmp_path))
    made = job(digits_dir, tmp_path, attempt=2, resume_from=first["checkpoint"])
    again, end = reports_of(made)
    assert (again["epoch"], again["attempt"]) == (1, 2)
    assert again["checkpoint"] == f"trials/{made.signature}/attempt_2/epoch_0001"
    assert end["outcome"] == "complete"


def test_an_evaluated_trial_reports_its_best_epoch_on_the_test_split(digits_dir, tmp_path):
    # Nothing is learned at learning rate 0, so the first epoch is the best.
    values = {"is_evaluated": True, "lr": 0.0, "epochs": 3}
    made = job(digits_dir, tmp_path, **values)
    first, _, last, evaluated, end = reports_of(made)
    assert (evaluated["kind"], evaluated["attempt"], end["kind"]) == ("evaluation", 1, "end")
    result = json.loads(evaluated["result"])
    assert (result["split"], result["images"], result["epoch"]) == ("test", 359, 0)
    # An attempt with no epoch left to train finds the best epoch of an earlier attempt.
    again, end = reports_of(
        job(digits_dir, tmp_path, attempt=2, resume_from=last["checkpoint"], **values)
    )
    assert (again["kind"], again["attempt"], end["outcome"]) == ("evaluation", 2, "complete")
    other = json.loads(again["result"])
    speed = {"inference_ms", "inference_images_per_s", "inference_batch_size"}
    assert {name for name in result if other[name] != result[name]} <= speed
    # Without that epoch's checkpoint there is nothing to evaluate.
    shutil.rmtree(tmp_path / first["checkpoint"])
    made = job(digits_dir, tmp_path, attempt=3, resume_from=last["checkpoint"], **values)
    _, end = failure_of(made)
    assert "The checkpoint of the best epoch, 1, is missing or damaged" in end["failure_text"]


def test_divergence_is_reported_and_not_raised(digits_dir, tmp_path):
    made = job(digits_dir, tmp_path, lr=1e9, schedule="constant", steps_per_epoch=4)
    assert reports_of(made) == [
        {
            "signature": made.signature,
            "attempt": 1,
            "node": "",
            "kind": "end",
            "outcome": "diverged",
        }
    ]
    assert "diverged: The training loss of epoch 1" in (tmp_path / made.log).read_text()


def failure_of(made: Job) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the reports before the failure, and the failure's own report."""
    reports: list[dict[str, Any]] = []
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any failure is reported
        train(made, reports.append)
    return reports, failure_report(made, caught.value)


def test_a_missing_dataset_is_a_data_failure_and_logged(digits_dir, tmp_path):
    made = job(digits_dir, tmp_path, dataset_dir=str(tmp_path / "digits"))
    reports, end = failure_of(made)
    assert reports == []
    assert (end["kind"], end["outcome"], end["failure_class"]) == ("end", "failed", "data")
    assert "DatasetError" in end["failure_text"]
    assert "manifest.json is missing" in end["failure_text"]
    assert (end["signature"], end["attempt"]) == (made.signature, 1)
    log = (tmp_path / made.log).read_text()
    assert "failed" in log
    assert "DatasetError" in log


def test_a_damaged_checkpoint_is_a_disk_failure(digits_dir, tmp_path):
    first, _, _ = reports_of(job(digits_dir, tmp_path))
    (tmp_path / first["checkpoint"] / "model.safetensors").write_bytes(b"")
    _, end = failure_of(job(digits_dir, tmp_path, attempt=2, resume_from=first["checkpoint"]))
    assert end["failure_class"] == "disk"
    assert "is damaged" in end["failure_text"]


def test_a_full_disk_is_a_disk_failure(digits_dir, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, bytes(content)[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    reports, end = failure_of(job(digits_dir, tmp_path))
    assert reports == []
    assert end["failure_class"] == "disk"
    assert list((tmp_path / "trials").rglob("*.safetensors")) == []


def test_a_full_disk_that_the_kernel_reports_is_a_disk_failure():
    # safetensors and torch would raise other errors if they wrote the files themselves.
    with pytest.raises(OSError, match="No space left") as caught:
        Path("/dev/full").write_bytes(b"1" * 10)
    assert classify(caught.value) == "disk"


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: can't "
                         "allocate memory: you tried to allocate 4398046511104 bytes."),
            "out_of_memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
        (OSError(errno.EROFS, "Read-only file system"), "disk"),
        (OSError(errno.ENOENT, "No such file or directory"), "bug"),
        (DatasetError("broken"), "data"),
        (CheckpointError("broken"), "disk"),
        (ValueError("wrong"), "bug"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "bug"),
    ],
)  # fmt: skip
def test_a_failure_has_its_class(error, failure_class):
    assert classify(error) == failure_class


def test_an_allocation_that_really_fails_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert classify(caught.value) == "out_of_memory"


def test_the_report_of_a_failure_has_the_whole_chain_of_causes(digits_dir, tmp_path):
    made = job(digits_dir, tmp_path)
    try:
        try:
            raise OSError("the cause")
        except OSError as cause:
            raise DatasetError("what follows") from cause
    except DatasetError as error:
        end = failure_report(made, error)
    assert end["failure_class"] == "data"
    assert "OSError: the cause" in end["failure_text"]
    assert end["failure_text"].rstrip().endswith("DatasetError: what follows")
    assert json.loads(json.dumps(end)) == end


def test_a_job_survives_json(digits_dir, tmp_path):
    made = job(digits_dir, tmp_path, resume_from="trials/x/attempt_1/epoch_0000")
    assert Job.from_json(made.to_json()) == made


def test_a_moved_sweep_resumes(digits_dir, tmp_path):
    first, _, _ = reports_of(job(digits_dir, tmp_path / "one"))
    shutil.move(tmp_path / "one", tmp_path / "two")
    made = job(digits_dir, tmp_path / "two", attempt=2, resume_from=first["checkpoint"])
    assert [report.get("epoch") for report in reports_of(made)] == [1, None]


@pytest.mark.parametrize(
    ("error", "is_unusable"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (ValueError("no"), False),
    ],
)
def test_a_process_is_unusable_after_a_cuda_error_or_without_host_memory(error, is_unusable):
    assert is_process_unusable(error) is is_unusable


@pytest.mark.parametrize(
    ("gpus", "gib", "shares"),
    [
        (0.25, 24, [5.25 / 24]),  # its share, less the process's CUDA context
        (0.5, 2, [0.5 / 2]),  # half of a share that is little more than the context
        (1.0, 24, []),
        (2.0, 24, []),
        (0.0, 24, []),
    ],
)
def test_a_trial_with_a_share_of_a_gpu_has_that_share_of_its_memory(
    monkeypatch: pytest.MonkeyPatch, gpus: float, gib: int, shares: list[float]
) -> None:
    asked: list[float] = []
    properties = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    worker._limit_memory(gpus)
    assert asked == shares
