"""Runs one attempt in a trial's process and reports it; `job` documents the reports."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.execution.failure_class import is_process_unusable
from orchestrator.execution.job import Job, Report, Send, failure_report, make_report
from orchestrator.execution.uploads import Uploads
from orchestrator.redaction import RedactingFormatter
from orchestrator.storage.paths import attempt_path, checkpoint_path
from orchestrator.storage.store import open_storage
from orchestrator.storage.sweeps import fetch_checkpoint
from trainables.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from trainables.training.loop import EpochEnd

log = logging.getLogger(__name__)

ALIVE_EVERY_S = 30.0  # longest time between two reports while a trial trains
_FIRST_ALIVE_S = 5.0  # until the first report of a trial in a process that has run another
_is_warm = False  # whether this process has run a trial before

# GPU memory that a process takes besides what torch allocates, for its context and the libraries'
# kernels: 0.74 GiB on an H200 with torch 2.11.
_CONTEXT_BYTES = 3 * 2**28


# The functions that Tune runs. They are here and not in `tune_adapter` so that a trial's process
# does not import the driver's modules.


def resources(config: dict[str, Any]) -> Any:
    """Return the resources of a single-device trial."""
    from ray import tune

    job = Job.from_json(config["job"])
    bundle = {"CPU": job.cpus, **({"GPU": job.gpus} if job.gpus else {})}
    return tune.PlacementGroupFactory([bundle])


def run_trial(config: dict[str, Any]) -> None:
    """Run one attempt on one device, inside a reused Tune actor, in Ray Train's local mode.

    Failures are reported rather than raised, so that the warm process can run the next attempt.
    """
    from ray import tune
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    job = Job.from_json(config["job"])

    def loop() -> None:
        try:
            train(job, tune.report, reports_between_epochs=True)
        except Exception as error:
            tune.report(failure_report(job, error))
            if is_process_unusable(error):
                raise  # so that Ray replaces the process
        else:
            return
        _release_memory()  # here, because the block above still holds the error

    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0)).fit()


def train(
    job: Job,
    send: Send,
    *,
    reports_between_epochs: bool = False,
    is_first: bool = True,
    device: torch.device | None = None,
) -> None:
    """Train one attempt to its end and report every epoch once its checkpoint is durable.

    With `reports_between_epochs` it also reports now and then that training continues. The workers
    of a group must not: they must report together or wait for each other forever. `is_first` is
    True for the worker of a group whose checkpoints count. Without `device` it uses the process's.

    Raises:
        Exception: any error that ended the training, except divergence, which is reported.
    """
    from trainables.training.loop import DivergedError

    config = TrainConfig.from_dict(job.config)
    on_step = _alive_reports(job, send) if reports_between_epochs else None
    if job.data_address:
        from orchestrator.data.share import ensure

        ensure(job.data_address, Path(job.dataset_dir), config.dataset_fingerprint, on_step)
    _limit_memory(job.gpus)
    uploads = Uploads(job) if job.storage else None
    attempt = _Attempt(job, config, is_first, device, on_step, uploads)
    with uploads or nullcontext(), _log_file(Path(job.sweep_dir) / job.log):
        what = job.signature, job.attempt, config.variant, config.dataset
        log.info("%s attempt %d: %s, %s", *what)
        try:
            best_epoch = attempt.train(send)
            if job.is_evaluated:
                result = attempt.evaluate(best_epoch) if is_first else {}
                send(make_report(job, "evaluation", result=json.dumps(result)))
        except DivergedError as error:
            log.info("diverged: %s", error)
            send(make_report(job, "end", outcome="diverged"))
            return
        except Exception:
            log.exception("failed")
            raise
    send(make_report(job, "end", outcome="complete"))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One worker's part of an attempt; the fields are those of `train`."""

    job: Job
    config: TrainConfig
    is_first: bool
    device: torch.device | None
    on_step: Callable[[], None] | None
    uploads: Uploads | None

    def train(self, send: Send) -> int | None:
        """Train the remaining epochs; return the best epoch, None if no epoch remained."""
        from trainables.training import loop

        job, best_epoch = self.job, None
        for end in loop.fit(
            self.config,
            Path(job.dataset_dir),
            checkpoints=Path(job.sweep_dir, attempt_path(job.signature, job.attempt)),
            resume_from=_resume_point(job),
            device=self.device,
            keep_all=job.keep_all,
            on_step=self.on_step,
        ):
            best_epoch = end.best_epoch
            report = self._epoch_report(end)  # logs the epoch before the log is stored
            if self.uploads and end.checkpoint and self.is_first:
                self.uploads.checkpoint(report["checkpoint"], self.on_step)
            send(report)
        return best_epoch

    def _epoch_report(self, end: EpochEnd) -> Report:
        """Log an epoch and return its report.

        Where nothing follows the last epoch, its report also ends the attempt: that saves a round
        trip before the next trial may use this process. Something follows if the trial is
        evaluated on the test split, if its log is uploaded, or if it has a group of workers.
        """
        job = self.job
        values = end.metrics.to_dict()
        shown = "  ".join(f"{name} {value:.5g}" for name, value in values.items())
        log.info("epoch %d/%d  %s", end.epoch + 1, self.config.epochs, shown)
        is_end = end.is_last and self.on_step and not (job.is_evaluated or self.uploads)
        outcome = {"outcome": "complete"} if is_end else {}
        path = checkpoint_path(job.signature, job.attempt, end.epoch) if end.checkpoint else None
        return make_report(job, "epoch", epoch=end.epoch, checkpoint=path, **values, **outcome)

    def evaluate(self, best_epoch: int | None) -> dict[str, Any]:
        """Evaluate the best epoch on the test split; an earlier attempt may have trained it.

        Raises:
            RuntimeError: no intact checkpoint of that epoch is left.
        """
        from trainables.evaluation import held_out
        from trainables.training import checkpoint

        job = self.job
        if best_epoch is None:  # no epoch remained to train
            resumed = _resume_point(job)
            assert resumed is not None
            best_epoch = int(checkpoint.load(resumed)[2]["best_epoch"])
        for number in range(job.attempt, 0, -1):
            folder = _fetched(job, checkpoint_path(job.signature, number, best_epoch))
            if folder is not None:
                place = self.config, Path(job.dataset_dir), folder
                result = held_out.evaluate_test(*place, device=self.device, on_step=self.on_step)
                return result.to_dict()
        raise RuntimeError(
            f"The checkpoint of the best epoch, {best_epoch + 1}, is missing or damaged, so it "
            "cannot be evaluated on the test split. Train the trial again with "
            "--resume --from-scratch."
        )


def _resume_point(job: Job) -> Path | None:
    """Return the checkpoint to resume from, fetched from the storage if this machine lacks it."""
    if job.resume_from is None:
        return None
    # A damaged checkpoint is returned too: loading it raises an error that names the damage.
    return _fetched(job, job.resume_from) or Path(job.sweep_dir) / job.resume_from


def _fetched(job: Job, name: str) -> Path | None:
    storage = open_storage(job.storage) if job.storage else None
    return fetch_checkpoint(Path(job.sweep_dir), storage, name)


def _limit_memory(gpus: float) -> None:
    """Limit a trial that has a share of a GPU to that share of the GPU's memory.

    A trial that needs more runs out of memory alone, and is retried with a smaller micro-batch.
    """
    import torch

    if 0 < gpus < 1 and torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        share = gpus * whole
        own = max(share - _CONTEXT_BYTES, share / 2)
        torch.cuda.set_per_process_memory_fraction(own / whole)


def _alive_reports(job: Job, send: Send) -> Callable[[], None]:
    """Return a function to call at every step, which reports now and then that training continues.

    It reports the first step of a new process, whose start may take long, and the first step of a
    trial whose node the driver must know at once. Not every trial's: a report is a round trip.
    """
    global _is_warm  # noqa: PLW0603 - it describes the process
    last_s = time.monotonic() - ALIVE_EVERY_S
    if _is_warm and not job.reports_first_step:
        last_s += _FIRST_ALIVE_S
    _is_warm = True

    def on_step() -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= ALIVE_EVERY_S:
            last_s = now_s
            send(make_report(job, "alive"))

    return on_step


def _release_memory() -> None:
    """Free the memory of a failed attempt, because the next one may need all of it.

    A cycle of frames and traceback keeps the model, and torch's own cache keeps CUDA's memory.
    """
    import torch

    from trainables.training.device import give_back_memory

    gc.collect()
    give_back_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Copy the log lines of the packages that run a trial to a file while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
    packages = [logging.getLogger(name) for name in ("trainables", "orchestrator.execution")]
    for package in packages:
        package.setLevel(logging.INFO)
        package.addHandler(handler)
    try:
        yield
    finally:
        for package in packages:
            package.removeHandler(handler)
        handler.close()
