"""The adapter between Ray and `loop.fit`: runs one attempt and reports.

Only it and `group.py`, for several devices, import ray. A report is a flat dictionary (Tune
flattens others), one of
    {"kind": "alive"}                        now and then between epochs
    {"kind": "start", "placement_group"}     only of a worker group, once it has its place
    {"kind": "epoch", "epoch", "checkpoint": path or None, and the fields of EpochMetrics;
     "outcome": "complete" where it is the last word}
    {"kind": "evaluation", "result": JSON}   of a trial that is evaluated on the test split
    {"kind": "end", "outcome": "complete" | "diverged" | "failed", "failure_class", "failure_text"}
    {the same, with "failure_class" None and "death": what Ray says of a process that died}
with the trial's signature and attempt number, which fence reports of attempts that were replaced,
and the id of the node that it runs on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.execution.failure_class import is_process_unusable
from orchestrator.execution.job import Job, address, end_report
from orchestrator.execution.uploads import Uploads
from orchestrator.redaction import RedactingFormatter
from orchestrator.storage.checkpoints import fetch_checkpoint
from orchestrator.storage.paths import checkpoint_path
from orchestrator.storage.store import open_storage

if TYPE_CHECKING:
    import torch

    from orchestrator.execution.job import Report
    from trainables.config import TrainConfig
    from trainables.training.loop import EpochEnd

log = logging.getLogger(__name__)

# A training process says at least so often that it is alive.
SIGN_EVERY_S = 30.0
_WARM_SIGN_S = 5.0  # when the first sign of a trial is due that need not wait for its process
_is_warm = False  # whether a trial has run in this process before

# What a process takes of a GPU beside what torch allocates, for its context and the libraries'
# kernels: 0.74 GiB on an H200 with torch 2.11.
_CONTEXT_BYTES = 3 * 2**28


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
            if is_process_unusable(error):
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
    upload = Uploads(job, folder) if job.storage else None
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
                is_last_word = end.is_last and signs and not (job.is_evaluated or upload)
                epoch_report = _epoch_report(job, config, end, checkpoint, is_last_word)
                if upload and checkpoint and is_first:
                    upload.checkpoint(checkpoint, on_step)
                report(epoch_report)
            if job.is_evaluated:
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
    not where something follows: the test split, storing the log, the end of a group's workers.
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
    """Return the checkpoint to resume from, fetched from the storage if this machine lacks it."""
    if job.resume_from is None:
        return None
    # A damaged one is returned too: loading it raises an error that names the damage.
    return _fetched(job, job.resume_from) or Path(job.sweep_dir) / job.resume_from


def _fetched(job: Job, name: str) -> Path | None:
    return fetch_checkpoint(
        Path(job.sweep_dir), open_storage(job.storage) if job.storage else None, name
    )


def _judge(
    job: Job,
    config: TrainConfig,
    best_epoch: int | None,
    device: torch.device | None,
    on_step: Callable[[], None] | None,
) -> dict[str, Any]:
    """Return what the test split says of the best epoch, which an earlier attempt may have trained.

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
        folder = _fetched(job, name)
        if folder is not None:
            evaluated = held_out.evaluate_test(
                config, Path(job.dataset_dir), folder, device=device, on_step=on_step
            )
            return evaluated.to_dict()
    raise RuntimeError(
        f"The checkpoint of the best epoch, {best_epoch + 1}, is gone or damaged, so it cannot "
        "be evaluated on the test split. Train the trial anew with --resume --from-scratch."
    )


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


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Copy the log lines of the trial's own packages to a file while the block runs."""
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
