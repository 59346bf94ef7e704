"""The adapter between Ray and `loop.fit`: runs one attempt and reports.

Only it and `group.py`, for several devices, import ray. A report is a flat dictionary (Tune
flattens others), one of
    {"kind": "alive"}                        now and then between epochs
    {"kind": "start", "placement_group"}     only of a worker group, once it has its place
    {"kind": "epoch", "epoch", "checkpoint": path or None, and the fields of EpochMetrics;
     "outcome": "complete" where it is the last word}
    {"kind": "evaluation", "result": JSON}   of a trial that is judged by the test part
    {"kind": "end", "outcome": "complete" | "diverged" | "failed", "failure_class", "failure_text"}
    {the same, with "failure_class" None and "death": what Ray says of a process that died}
with the trial's signature and attempt number, which fence reports of attempts that were replaced,
and the id of the node that it runs on.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.redaction import RedactingFormatter
from orchestrator.storage.checkpoints import _local
from orchestrator.storage.paths import checkpoint_path

if TYPE_CHECKING:
    import torch

    from trainables.config import TrainConfig
    from trainables.training.loop import EpochEnd

Report = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)

# A training process says at least so often that it is alive.
SIGN_EVERY_S = 30.0
_WARM_SIGN_S = 5.0  # when the first sign of a trial is due that need not wait for its process
_is_warm = False  # whether a trial has run in this process before
LOG_EVERY_S = 30.0  # an attempt's log goes to the storage so often, and at its end
# Full, over a quota or limit, read-only, broken.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

# What a process takes of a GPU beside what torch allocates, for its context and the libraries'
# kernels: 0.74 GiB on an H200 with torch 2.11.
_CONTEXT_BYTES = 3 * 2**28


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
    is_judged: bool  # by the test part, after the last epoch
    cpus: float  # of one worker
    gpus: float  # of one worker
    says_where: bool = False  # at its first step: a node is about to go, and it may be this one's
    data_address: str | None = None  # where to fetch the dataset from, should this host lack it
    storage: str | None = None  # address of the sweep's folder, where `sweep_dir` is not its place

    def to_json(self) -> str:
        """Return the job as one string; `from_json` is the inverse."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Rebuild a job."""
        return cls(**json.loads(text))


# What Tune runs. These are here, not with the Tuner, so that a trial's process need not import the
# driver's side.


def run_trial(config: dict[str, Any]) -> None:
    """Run one attempt inside a reused Tune actor."""
    from ray import tune

    run_attempt(Job.from_json(config["job"]), tune.report)


def resources(config: dict[str, Any]) -> Any:
    """Return the placement of a single-device trial."""
    from ray import tune

    job = Job.from_json(config["job"])
    bundle = {"CPU": job.cpus, **({"GPU": job.gpus} if job.gpus else {})}
    return tune.PlacementGroupFactory([bundle])


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
            if _is_spent(error):
                raise  # the process is of no further use: Ray replaces it
        else:
            return
        _release_memory()  # here, because the block above still holds the error

    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit()


def train(
    job: Job,
    report: Report,
    *,
    signs: bool = False,
    is_first: bool = True,
    device: torch.device | None = None,
) -> None:
    """Train one attempt to its end, reporting every epoch once its checkpoint is durable.

    Args:
        job: the attempt.
        report: takes the reports.
        signs: whether to report between epochs that training is alive. Not in a worker group:
            its workers report together or wait for each other for ever.
        is_first: whether this is the worker whose checkpoints count, of several.
        device: this worker's; None: the process's own.

    Raises:
        Exception: whatever ended the training; divergence is reported, not raised.
    """
    from trainables.config import TrainConfig
    from trainables.training import loop

    config = TrainConfig.from_dict(job.config)
    on_step = _signs_of_life(job, report) if signs else None
    if job.data_address:
        from orchestrator.data.share import ensure

        ensure(job.data_address, Path(job.dataset_dir), config.dataset_fingerprint, on_step)
    _cap_memory(job.gpus)
    folder = Path(job.sweep_dir) / "trials" / job.signature / f"attempt_{job.attempt}"
    upload = _Uploads(job, folder) if job.storage else None
    epochs = loop.fit(
        config,
        Path(job.dataset_dir),
        checkpoints=folder,
        resume_from=_resume_point(job),
        device=device,
        keep_all=job.keep_all,
        on_step=on_step,
    )
    with upload or nullcontext(), _log_file(Path(job.sweep_dir) / job.log):
        log.info(
            "%s attempt %d: %s, %s", job.signature, job.attempt, config.variant, config.dataset
        )
        try:
            best_epoch = None
            for end in epochs:
                best_epoch = end.best_epoch
                here = checkpoint_path(job.signature, job.attempt, end.epoch)
                checkpoint = here if end.checkpoint else None
                is_last_word = end.is_last and signs and not (job.is_judged or upload)
                epoch_report = _epoch_report(job, config, end, checkpoint, is_last_word)
                if upload and checkpoint and is_first:
                    upload.checkpoint(checkpoint, on_step)
                report(epoch_report)
            if job.is_judged:
                result = _judge(job, config, best_epoch, device, on_step) if is_first else {}
                report({**address(job), "kind": "evaluation", "result": json.dumps(result)})
        except loop.DivergedError as error:
            log.info("diverged: %s", error)
            report({**address(job), "kind": "end", "outcome": "diverged"})
            return
        except Exception:
            log.exception("failed")
            raise
    report({**address(job), "kind": "end", "outcome": "complete"})


def _cap_memory(gpus: float) -> None:
    """Let a trial that has a share of a GPU take that share of its memory and no more.

    What goes beyond is out of memory for this trial alone, which then goes on in smaller parts.
    """
    import torch

    if 0 < gpus < 1 and torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        share = gpus * whole
        own = max(share - _CONTEXT_BYTES, share / 2)
        torch.cuda.set_per_process_memory_fraction(own / whole)


def _epoch_report(
    job: Job, config: TrainConfig, end: EpochEnd, checkpoint: str | None, is_last_word: bool
) -> dict[str, Any]:
    """Return the report of an epoch, and log it: what is stored of the log then has it too.

    That it is the last word spares a round trip until the next trial may have this process. It is
    not where something follows: the test part, storing the log, the end of a group's workers.
    """
    values = end.metrics.to_dict()
    log.info(
        "epoch %d/%d  %s",
        end.epoch + 1,
        config.epochs,
        "  ".join(f"{name} {value:.5g}" for name, value in values.items()),
    )
    where = {"epoch": end.epoch, "checkpoint": checkpoint}
    last = {"outcome": "complete"} if is_last_word else {}
    return {**address(job), "kind": "epoch", **where, **values, **last}


def _resume_point(job: Job) -> Path | None:
    """Return the checkpoint to go on from, fetched from the storage if this machine lacks it.

    Loading verifies it.
    """
    if job.resume_from is None:
        return None
    return _local(job, job.resume_from)


def _judge(
    job: Job,
    config: TrainConfig,
    best_epoch: int | None,
    device: torch.device | None,
    on_step: Callable[[], None] | None,
) -> dict[str, Any]:
    """Return what the test part says of the best epoch, which an earlier attempt may have trained.

    Raises:
        RuntimeError: no whole checkpoint of that epoch is left.
    """
    from trainables.evaluation import held_out
    from trainables.training import checkpoint

    resumed = _resume_point(job)
    if best_epoch is None:  # nothing was left to train
        assert resumed is not None
        best_epoch = int(checkpoint.load(resumed)[2]["best_epoch"])
    names = [checkpoint_path(job.signature, n, best_epoch) for n in range(job.attempt, 0, -1)]
    for name in names:
        folder = checkpoint.newest_valid([_local(job, name)])
        if folder is not None:
            judged = held_out.evaluate_test(
                config, Path(job.dataset_dir), folder, device=device, on_step=on_step
            )
            return judged.to_dict()
    raise RuntimeError(
        f"The checkpoint of the best epoch, {best_epoch + 1}, is gone or damaged, so the test part "
        "cannot judge it. Train the trial anew with --resume --from-scratch."
    )


class _Uploads:
    """Brings one attempt's checkpoints and log to the sweep's storage; a context manager.

    Its local files are then copies: where the driver does not clean them up, the attempt does.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        from orchestrator.storage.store import open_storage

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

    def checkpoint(self, name: str, alive: Callable[[], None] | None) -> None:
        """Store a checkpoint; when this returns, any machine can go on from it.

        Args:
            name: its folder, relative to the sweep's.
            alive: called now and then meanwhile; a slow upload is no hanging trial.

        Raises:
            StorageError: it could not be stored.
        """
        from trainables.training.checkpoint import MANIFEST

        self.storage.put_folder(Path(self.job.sweep_dir) / name, name, last=MANIFEST, alive=alive)
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
    """Return a function to call at every step, which now and then reports that training lives.

    The first time at the first step of a new process, whose start may take long, and wherever the
    driver has to know at once which node this is; each report is a round trip.
    """
    global _is_warm  # noqa: PLW0603 - it is this process that is
    now_s = time.monotonic()
    last_s = now_s - SIGN_EVERY_S
    if _is_warm and not job.says_where:
        last_s += _WARM_SIGN_S
    _is_warm = True

    def on_step() -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= SIGN_EVERY_S:
            last_s = now_s
            report({**address(job), "kind": "alive"})

    return on_step


def end_report(job: Job, error: BaseException) -> dict[str, Any]:
    """Return the report of a failed attempt: its class and traceback."""
    return {
        **address(job),
        "kind": "end",
        "outcome": "failed",
        "failure_class": classify(error),
        "failure_text": "".join(traceback.format_exception(error)),
    }


def classify(error: BaseException) -> str:
    """Return the class of a failure that was raised: what kind of thing to do about it."""
    import torch

    from orchestrator.storage.store import StorageError
    from trainables.data.dataset import DatasetError
    from trainables.training.checkpoint import CheckpointError

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


def address(job: Job) -> dict[str, Any]:
    """Return what says whose report it is, and where it comes from: the id of Ray's node."""
    return {"signature": job.signature, "attempt": job.attempt, "node": _node()}


@functools.cache
def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _release_memory() -> None:
    """Give back what a failed attempt held: the next one in this process may need all of it.

    Its model lives on in a cycle of frames and traceback, and CUDA's in torch's own cache.
    """
    import gc

    import torch

    from trainables.training.device import give_back_memory

    gc.collect()
    give_back_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_spent(error: BaseException) -> bool:
    """Return whether an error leaves a process that no other attempt should run in.

    After a CUDA error other than running out of memory the whole context is unusable. Of the host's
    memory the C library keeps what was freed, in pieces: what did not fit may not fit again.
    """
    text = str(error)
    if "CUDA error" in text and "out of memory" not in text:
        return True
    is_of_device = "CUDA" in text or "HIP" in text
    return classify(error) == "out_of_memory" and not is_of_device


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
