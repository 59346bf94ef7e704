"""The adapter between Ray and `loop.fit`: runs one attempt and reports.

The only module here that imports ray. A report is a flat dictionary (Tune flattens others), one of
    {"kind": "alive"}                        now and then between epochs
    {"kind": "start", "placement_group"}     only of a worker group, once it has its place
    {"kind": "epoch", "epoch", "checkpoint": path or None, and the fields of EpochMetrics}
    {"kind": "end", "outcome": "complete" | "diverged" | "failed", "failure_class", "failure_text"}
    {the same, with "failure_class" None and "death": what Ray says of a process that died}
with the trial's signature and attempt number, which fence reports of attempts that were replaced.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainables.redaction import RedactingFormatter

Report = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)

# A training process says at least so often that it is alive.
SIGN_EVERY_S = 30.0
LOG_EVERY_S = 30.0  # an attempt's log goes to the storage so often, and at its end
# Full, over a quota or limit, read-only, broken.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One attempt as it travels to a worker. Paths are absolute or relative to `sweep_dir`."""

    signature: str
    attempt: int
    config: dict[str, Any]
    dataset_dir: str
    sweep_dir: str
    log: str
    resume_from: str | None
    keep_all: bool  # every epoch's checkpoint, not just the last and the best
    cpus: float  # of one worker
    gpus: float  # of one worker
    storage: str | None = None  # address of the sweep's folder, where `sweep_dir` is not its place

    def to_json(self) -> str:
        """Return the job as one string; `from_json` is the inverse."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Rebuild a job."""
        return cls(**json.loads(text))


def checkpoint_path(signature: str, attempt: int, epoch: int) -> str:
    """Return where an attempt keeps an epoch's checkpoint, relative to the sweep's folder."""
    return f"trials/{signature}/attempt_{attempt}/epoch_{epoch:04d}"


# What Tune runs. These are here, not with the Tuner, so that a trial's process need not import the
# driver's side.


def run_trial(config: dict[str, Any]) -> None:
    """Run one attempt inside a reused Tune actor."""
    from ray import tune

    run_attempt(Job.from_json(config["job"]), tune.report)


def group_trial(workers: int, storage: str) -> Callable[[dict[str, Any]], None]:
    """Return the function of a Tune trial whose attempt runs on a worker group of its own.

    Args:
        workers: how many.
        storage: a folder for Ray Train's own state, which nothing here reads.
    """
    return functools.partial(_run_group_trial, workers=workers, storage=storage)


def _run_group_trial(config: dict[str, Any], *, workers: int, storage: str) -> None:
    from ray import tune

    run_attempt_on_group(
        Job.from_json(config["job"]), tune.report, workers=workers, storage=storage
    )


def resources(config: dict[str, Any]) -> Any:
    """Return the placement of a single-device trial."""
    from ray import tune

    job = Job.from_json(config["job"])
    bundle = {"CPU": job.cpus, **({"GPU": job.gpus} if job.gpus else {})}
    return tune.PlacementGroupFactory([bundle])


def group_resources(config: dict[str, Any]) -> Any:
    """Return the placement of the actor that waits for a worker group.

    The group has a placement group of its own. A share of a CPU here would leave one CPU too few
    for a group that wants them all.
    """
    from ray import tune

    return tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])


def run_attempt(job: Job, report: Report) -> None:
    """Run one attempt on one device, in this process, wrapped by Ray Train's local mode.

    Every end but the death of the process is reported, so that the warm process lives on.
    """
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        try:
            train(job, report, signs=True)
        except Exception as error:
            report(end_report(job, error))
            if _is_device_lost(error):
                raise  # the process is of no further use: Ray replaces it
        else:
            return
        _release_memory()  # here, because the block above still holds the error

    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit()


def run_attempt_on_group(job: Job, report: Report, *, workers: int, storage: str) -> None:
    """Run one attempt on several devices: a Ray Train worker group reporting through Tune.

    Args:
        job: the attempt.
        report: for what the group itself cannot say, its failure.
        workers: how many, with `job.cpus` and `job.gpus` each.
        storage: a folder for Ray Train's own state, which nothing here reads.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal import constants
    from ray.tune.integration.ray_train import TuneReportCallback

    # Ray's own cleaner of placement groups looks for "the" Ray of this host; of several it takes
    # any (seen: it then dies of another one's end, and the place of a killed group is never free).
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    trainer = TorchTrainer(
        functools.partial(_train_as_rank, job.to_json()),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.gpus > 0,
            resources_per_worker={"CPU": job.cpus, **({"GPU": job.gpus} if job.gpus else {})},
        ),
        run_config=RunConfig(
            name=f"{job.signature}-{job.attempt}",
            storage_path=storage,
            failure_config=FailureConfig(max_failures=0),
            # A Train callback, which Ray annotates as Tune's.
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        causes = _causes(error)
        died = [cause for cause in causes if isinstance(cause, ray.exceptions.RayActorError)]
        if died:  # what the other workers say follows from that
            report({**end_report(job, error), "failure_class": None, "death": str(died[0])})
            return
        # Where one of them fails, the others only lose the connection to it.
        classes = [kind for kind in map(classify, causes) if kind != "bug"]
        report({**end_report(job, error), "failure_class": next(iter(classes), "bug")})


def train(job: Job, report: Report, *, signs: bool = False, is_first: bool = True) -> None:
    """Train one attempt to its end, reporting every epoch once its checkpoint is durable.

    Args:
        job: the attempt.
        report: takes the reports.
        signs: whether to report between epochs that training is alive. Not in a worker group:
            its workers report together or wait for each other for ever.
        is_first: whether this is the worker whose checkpoints count, of several.

    Raises:
        Exception: whatever ended the training; divergence is reported, not raised.
    """
    from trainables import loop
    from trainables.config import TrainConfig

    config = TrainConfig.from_dict(job.config)
    folder = Path(job.sweep_dir) / "trials" / job.signature / f"attempt_{job.attempt}"
    upload = _Uploads(job, folder) if job.storage else None
    epochs = loop.fit(
        config,
        Path(job.dataset_dir),
        checkpoints=folder,
        resume_from=_resume_point(job),
        keep_all=job.keep_all,
        on_step=_signs_of_life(job, report) if signs else None,
    )
    with upload or nullcontext(), _log_file(Path(job.sweep_dir) / job.log):
        log.info(
            "%s attempt %d: %s, %s", job.signature, job.attempt, config.variant, config.dataset
        )
        try:
            for end in epochs:
                values = end.metrics.to_dict()
                log.info(
                    "epoch %d/%d  %s",
                    end.epoch + 1,
                    config.epochs,
                    "  ".join(f"{name} {value:.5g}" for name, value in values.items()),
                )
                checkpoint = None
                if end.checkpoint:
                    checkpoint = str((folder / end.checkpoint).relative_to(job.sweep_dir))
                    if upload and is_first:
                        upload.checkpoint(checkpoint)
                report(
                    {
                        **_address(job),
                        "kind": "epoch",
                        "epoch": end.epoch,
                        **values,
                        "checkpoint": checkpoint,
                    }
                )
        except loop.DivergedError as error:
            log.info("diverged: %s", error)
            report({**_address(job), "kind": "end", "outcome": "diverged"})
            return
        except Exception:
            log.exception("failed")
            raise
    report({**_address(job), "kind": "end", "outcome": "complete"})


def _resume_point(job: Job) -> Path | None:
    """Return the checkpoint to go on from, fetched from the storage if this machine lacks it.

    Loading verifies it.
    """
    if job.resume_from is None:
        return None
    folder = Path(job.sweep_dir) / job.resume_from
    if job.storage:
        from trainables import checkpoint
        from trainables.storage import open_storage

        if checkpoint.newest_valid([folder]) is None:
            open_storage(job.storage).get_folder(job.resume_from, folder, mark=checkpoint.MANIFEST)
    return folder


class _Uploads:
    """Brings one attempt's checkpoints and log to the sweep's storage; a context manager.

    Its local files are then copies: where the driver does not clean them up, the attempt does.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        from trainables.storage import open_storage

        assert job.storage is not None
        self.job, self.folder, self.storage = job, folder, open_storage(job.storage)
        self._log_s = time.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Store the log, whatever the end was."""
        self._log()
        is_drivers = (Path(self.job.sweep_dir) / "ledger.sqlite").exists()
        if not is_drivers and (kind is None or not issubclass(kind, Exception)):
            shutil.rmtree(self.folder, ignore_errors=True)

    def checkpoint(self, name: str) -> None:
        """Store a checkpoint; when this returns, any machine can go on from it.

        Raises:
            StorageError: it could not be stored.
        """
        from trainables.checkpoint import MANIFEST

        self.storage.put_folder(Path(self.job.sweep_dir) / name, name, last=MANIFEST)
        if time.monotonic() - self._log_s > LOG_EVERY_S:
            self._log()

    def _log(self) -> None:
        self._log_s = time.monotonic()
        path = Path(self.job.sweep_dir) / self.job.log
        try:
            if path.exists():
                self.storage.put(self.job.log, path, keep_trying_s=0)
        except OSError as error:  # no trial ends for its log
            log.warning("The log could not be stored: %s", error)


def _signs_of_life(job: Job, report: Report) -> Callable[[], None]:
    """Return a function to call at every step, which now and then reports that training lives."""
    last_s = 0.0

    def on_step() -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= SIGN_EVERY_S:
            last_s = now_s
            report({**_address(job), "kind": "alive"})

    return on_step


def end_report(job: Job, error: BaseException) -> dict[str, Any]:
    """Return the report of a failed attempt: its class and traceback."""
    return {
        **_address(job),
        "kind": "end",
        "outcome": "failed",
        "failure_class": classify(error),
        "failure_text": "".join(traceback.format_exception(error)),
    }


def _causes(error: BaseException) -> list[BaseException]:
    """Return what lies at the bottom of the error of a worker group, one cause for each worker."""
    return [_innermost(e) for e in list(getattr(error, "worker_failures", {}).values()) or [error]]


def _innermost(error: BaseException) -> BaseException:
    """Return what Ray wrapped, however often."""
    for name in ("controller_failure", "health_check_failure", "_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _innermost(inner)
    return error


def classify(error: BaseException) -> str:
    """Return the class of a failure that was raised: what kind of thing to do about it."""
    import torch

    from trainables.checkpoint import CheckpointError
    from trainables.data import DatasetError
    from trainables.storage import StorageError

    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text
        for words in ("out of memory", "not enough memory", "can't allocate memory", "OutOfMemory")
    ):
        return "out_of_memory"
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return "disk"
    if isinstance(error, DatasetError):
        return "data"
    if isinstance(error, CheckpointError | StorageError):
        return "disk"
    return "bug"


def _train_as_rank(job_text: str) -> None:
    """Train as one rank of a worker group; every rank reports, the first one's counts."""
    import ray
    import ray.train

    def report(values: dict[str, Any]) -> None:
        ray.train.report(values)

    job = Job.from_json(job_text)
    # So that the driver can free the group's place itself, at once and in any case.
    place = ray.util.get_current_placement_group()
    report({**_address(job), "kind": "start", "placement_group": place.id.hex() if place else ""})
    rank = ray.train.get_context().get_world_rank()
    if rank:
        job = replace(job, log=f"{job.log}.rank{rank}")
    train(job, report, is_first=not rank)


def _address(job: Job) -> dict[str, Any]:
    return {"signature": job.signature, "attempt": job.attempt}


def _release_memory() -> None:
    """Give back what a failed attempt held: the next one in this process may need all of it.

    Its model lives on in a cycle of frames and traceback, and CUDA's in torch's own cache.
    """
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_device_lost(error: BaseException) -> bool:
    """After a CUDA error other than running out of memory the whole context is unusable."""
    text = str(error)
    return "CUDA error" in text and "out of memory" not in text


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Send this package's log lines to a file as well, while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("trainables")
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
