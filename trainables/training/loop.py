"""The training loop: plain PyTorch, readable top to bottom, without Ray, Optuna or MLflow.

`fit` trains one configuration and yields once per epoch, after the epoch's checkpoint is durable.
All randomness is a function of (trial seed, epoch, rank), so a restarted training continues exactly
as an uninterrupted one.
"""

from __future__ import annotations

import copy
import math
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.config import TrainConfig
from trainables.data import batches, mixing, preprocess
from trainables.data.dataset import check_fingerprint, load_manifest, training_and_validation_rows
from trainables.metrics import EpochMetrics
from trainables.models import build
from trainables.training import checkpoint, compiling, cuda_graph, freezing, optim
from trainables.training.device import autocast, default_device, set_up_numerics
from trainables.training.ema import make_updater
from trainables.training.meter import EpochMeter


class DivergedError(ArithmeticError):
    """The loss is not finite, which ends the trial. `epoch` is counted from 0."""

    def __init__(self, epoch: int, part: str, lr: float) -> None:
        super().__init__(epoch, part, lr)  # the arguments, so that it can be pickled
        self.epoch, self.part, self.lr = epoch, part, lr

    def __str__(self) -> str:
        return (
            f"The {self.part} loss of epoch {self.epoch + 1} is not finite (learning rate "
            f"{self.lr:.3g}). A smaller learning rate, a warm-up or `clip_grad_norm` may help."
        )


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """The end of an epoch, counted from 0: its metrics and the name of its checkpoint's folder.

    `best_epoch` is the best so far by `config.select_by`; after `is_last` the training has ended.
    """

    epoch: int
    metrics: EpochMetrics
    checkpoint: str | None
    best_epoch: int
    is_last: bool


def fit(  # noqa: C901, PLR0912, PLR0915 - the one long function: training from top to bottom
    config: TrainConfig,
    dataset: Path,
    *,
    checkpoints: Path | None = None,
    resume_from: Path | None = None,
    device: torch.device | None = None,
    resident_share: float = batches.RESIDENT_SHARE,
    keep_all: bool = False,
    on_step: Callable[[], None] | None = None,
) -> Iterator[EpochEnd]:
    """Train one configuration, yielding after every epoch.

    Args:
        config: what to train.
        dataset: folder of the prepared dataset.
        checkpoints: folder for this attempt's checkpoints; None writes none. The last and the best
            epoch's are kept.
        resume_from: a checkpoint of the same signature.
        device: None chooses.
        resident_share: of a device's memory that images may take before they are streamed.
        keep_all: keep every epoch's checkpoint.
        on_step: called after every step of training and evaluation.

    Raises:
        DivergedError: a loss is not finite.
        data.DatasetError: the dataset is unusable, or not the one that `config` was made for.
        ValueError: `config.workers` is not the number of processes that train.
        checkpoint.CheckpointError: `resume_from` is damaged or of another signature.
    """
    device = device or default_device()
    rank, workers = 0, 1
    if torch.distributed.is_initialized():
        rank, workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if workers != config.workers:
        raise ValueError(f"`workers` is {config.workers}, but {workers} processes train together.")
    set_up_numerics(config, device)
    torch.manual_seed(batches.derived_seed(config.seed, "model"))

    # Data: resident on the device, split once, the same for every trial of a sweep.
    manifest = load_manifest(dataset)
    check_fingerprint(manifest, dataset, config.dataset_fingerprint)
    store = batches.open_store(dataset, "train", device, resident_share)
    train_rows, val_rows = (
        torch.from_numpy(rows).to(store.images.device)
        for rows in training_and_validation_rows(
            dataset, manifest.fingerprint, config.validation_fraction, config.split_seed
        )
    )
    num_classes = len(manifest.class_names)
    prepare = preprocess.preparation(config, manifest, device)

    # Model, optimizer, average.
    model = build.build_model(
        config,
        num_classes=num_classes,
        in_channels=manifest.channels,
        read_weights=resume_from is None,
    ).to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    # Over all weights, frozen or not, so that its state has one form at every restart.
    optimizer = optim.build_optimizer(model, config)
    backbone = freezing.backbone(model) if config.freeze_epochs else []
    average = copy.deepcopy(model).requires_grad_(False).eval() if config.ema_decay else None
    plateau = optim.Plateau()
    best_epoch, best_value, first_epoch = 0, -math.inf, 0
    if resume_from is not None:
        weights, optimizer_state, state = checkpoint.load(resume_from)
        if state["signature"] != config.signature():
            raise checkpoint.CheckpointError(
                f"{resume_from} belongs to trial {state['signature']}, not {config.signature()}."
            )
        model.load_state_dict(weights["model"])
        if average is not None:
            average.load_state_dict(weights["average"])
        optim.restore(optimizer, optimizer_state)
        plateau = optim.Plateau(**state["plateau"])
        best_epoch, best_value = state["best_epoch"], state["best_value"]
        # A training that early stopping has ended is not continued.
        first_epoch = config.epochs if plateau.is_exhausted(config) else state["epoch"] + 1
    evaluated = model
    if average is not None:
        evaluated, update_average = average, make_updater(average, model, config.ema_decay)

    # A step's inputs and outputs stay in the same memory, as a CUDA graph of it needs.
    draws, meter, data_s = torch.Generator(device), EpochMeter(device), 0.0
    stepped: Callable[[Tensor], Tensor] = model

    def step(rows: Tensor) -> None:
        nonlocal data_s
        data_started = time.perf_counter()
        pixels, labels = store.gather(rows)
        images = prepare(pixels, draws)  # (n, c, h, w), normalised
        images, targets = mixing.mix(images, labels, num_classes, config, draws)
        data_s += time.perf_counter() - data_started
        _optimize(config, model, stepped, optimizer, meter, images, targets)

    steps = batches.steps_in_epoch(len(train_rows), config.batch_size)
    steps = min(steps, config.steps_per_epoch or steps)
    take_step: Callable[[Tensor], None] = step
    for epoch in range(first_epoch, config.epochs):
        started = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        is_frozen = epoch < config.freeze_epochs
        model.train()
        if is_frozen:
            freezing.hold_statistics(model)
        if epoch in (first_epoch, config.freeze_epochs):
            for weight in backbone:
                weight.requires_grad_(not is_frozen)
            if epoch == config.freeze_epochs:
                optim.forget_idle_steps(optimizer)
            can_replay = cuda_graph.can_replay(config, device, store.is_resident)
            take_step = step  # a graph of the frozen network would keep its memory
            is_compiled = compiling.should_compile(config, steps, can_replay)
            stepped = _ready(config, model, device, is_compiled, manifest.channels)
            if can_replay:
                take_step = cuda_graph.Replayed(step, draws)

        # Train.
        torch.manual_seed(batches.derived_seed(config.seed, "layers", epoch, rank))
        draws.manual_seed(batches.derived_seed(config.seed, "augment", epoch, rank))
        meter.reset()
        lr, data_s = config.lr, 0.0
        rows_of_steps = batches.train_batches(
            train_rows, config.batch_size, config.seed, epoch, rank, workers
        )
        for number, rows in zip(range(steps), rows_of_steps, strict=False):
            lr = optim.learning_rate(config, epoch + (number + 0.5) / steps) * plateau.scale
            optim.set_learning_rate(optimizer, lr)
            take_step(rows)
            if average is not None:
                update_average(epoch * steps + number)
            if on_step is not None:
                on_step()
        train_loss, train_top1, _, seen = meter.read()
        train_s = time.perf_counter() - started
        if not math.isfinite(train_loss):
            raise DivergedError(epoch, "training", lr)

        # Validate.
        val_started = time.perf_counter()
        if workers > 1:  # all workers evaluate what rank 0 saves
            for buffer in (*model.buffers(), *evaluated.buffers()):
                torch.distributed.broadcast(buffer, src=0)
        val_loss, val_top1, val_top5 = evaluate(
            config, evaluated, store, val_rows[rank::workers], prepare, on_step
        )
        val_s = time.perf_counter() - val_started
        if len(val_rows) and not math.isfinite(val_loss):
            raise DivergedError(epoch, "validation", lr)
        plateau.update(config, val_loss)
        value = val_top1 if config.select_by == "val_top1" else -val_loss
        if value > best_value or not len(val_rows):  # without a validation split the last is best
            best_epoch, best_value = epoch, value
        metrics = EpochMetrics(
            train_loss=train_loss,
            train_top1=train_top1,
            val_loss=val_loss,
            val_top1=val_top1,
            val_top5=val_top5,
            lr=lr,
            epoch_s=time.perf_counter() - started,
            images_per_s=seen / train_s,
            device_peak_gib=_peak_gib(device),
            data_s=data_s,
            val_s=val_s,
            checkpoint_s=0.0,  # not known yet, and not part of the checkpoint
        )

        # Keep.
        name = None
        if checkpoints is not None:
            name = f"epoch_{epoch:04d}"
            if rank == 0:
                save_started = time.perf_counter()
                kept = {k: v for k, v in metrics.to_dict().items() if k != "checkpoint_s"}
                parts = {"model": model, "average": average}
                checkpoint.save(
                    checkpoints / name,
                    weights={k: part.state_dict() for k, part in parts.items() if part is not None},
                    optimizer=optim.state(optimizer),
                    state={
                        "signature": config.signature(),
                        "config": config.to_dict(),
                        "epoch": epoch,
                        "metrics": kept,
                        "plateau": asdict(plateau),
                        "best_epoch": best_epoch,
                        "best_value": best_value,
                    },
                )
                metrics = replace(metrics, checkpoint_s=time.perf_counter() - save_started)
        is_last = epoch + 1 == config.epochs or plateau.is_exhausted(config)
        yield EpochEnd(epoch, metrics, name, best_epoch, is_last)
        if checkpoints is not None and rank == 0 and not keep_all:
            # The previous one stays until the caller has recorded this one.
            _keep_only(checkpoints, {epoch, epoch - 1, best_epoch})
        if is_last:
            return


def evaluate(
    config: TrainConfig,
    model: nn.Module,
    store: batches.ImageStore,
    rows: Tensor,
    prepare: Callable[[Tensor, torch.Generator | None], Tensor],
    on_step: Callable[[], None] | None = None,
) -> tuple[float, float, float]:
    """Return mean cross-entropy, top-1 and top-5 over the given rows, without augmentation."""
    meter = EpochMeter(store.device)
    model.eval()
    usual = max(config.batch_size, 256)
    rows = rows[: usual * config.steps_per_epoch] if config.steps_per_epoch else rows
    # Where a whole batch exceeds the memory, a larger one without gradients may exceed it too.
    chunks = rows.split(config.micro_batch_size or usual) if len(rows) else ()
    with torch.inference_mode(), autocast(config, store.device):
        for chunk in chunks:
            pixels, labels = store.gather(chunk)
            logits = model(prepare(pixels, None)).float()
            meter.add(F.cross_entropy(logits, labels, reduction="sum"), logits, labels)
            if on_step is not None:
                on_step()
    loss, top1, top5, _ = meter.read()
    return loss, top1, top5


def _optimize(
    config: TrainConfig,
    model: nn.Module,
    stepped: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    meter: EpochMeter,
    images: Tensor,
    targets: Tensor,
) -> None:
    """Do one optimizer step on the whole batch, in micro-batches if the configuration has them."""
    optimizer.zero_grad(set_to_none=True)
    # Parts of nearly equal size: batch norm cannot train on a single remaining image.
    num_parts = _num_parts(config, len(images))
    parts = zip(images.tensor_split(num_parts), targets.tensor_split(num_parts), strict=True)
    for number, (part, wanted) in enumerate(parts, start=1):
        # Data-parallel workers exchange their gradients once, with the last part.
        quiet = getattr(stepped, "no_sync", nullcontext) if number < num_parts else nullcontext
        with quiet():
            with autocast(config, images.device):
                logits = stepped(part)
            logits = logits.float()
            loss_sum = F.cross_entropy(
                logits, wanted, reduction="sum", label_smoothing=config.label_smoothing
            )
            loss = loss_sum / len(images)
            if config.l2:
                penalty = sum(w.square().sum() for w in model.parameters() if w.ndim > 1)
                loss = loss + config.l2 * penalty * (len(part) / len(images))
            loss.backward()
        meter.add(loss_sum, logits, wanted)
    if config.clip_grad_norm:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
    optimizer.step()


def _num_parts(config: TrainConfig, num_images: int) -> int:
    return math.ceil(num_images / (config.micro_batch_size or num_images))


def _keep_only(folder: Path, epochs: set[int]) -> None:
    wanted = {f"epoch_{epoch:04d}" for epoch in epochs}
    for path in folder.glob("epoch_*"):
        if path.name not in wanted:
            shutil.rmtree(path, ignore_errors=True)


def _ready(
    config: TrainConfig, model: nn.Module, device: torch.device, is_compiled: bool, channels: int
) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of a training step: data-parallel and compiled where configured.

    Made again when the backbone is unfrozen: `DistributedDataParallel` exchanges the gradients only
    of weights that were trainable when it was made.
    """
    if config.workers > 1:
        devices = [device] if device.type == "cuda" else None
        joined = nn.parallel.DistributedDataParallel(model, device_ids=devices)
        return compiling.compiled(joined) if is_compiled else joined
    if not is_compiled:
        return model
    if config.compile is True:
        return compiling.compiled(model)
    size = math.ceil(config.batch_size / _num_parts(config, config.batch_size))
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    images = torch.zeros(size, channels, config.image_size_px, config.image_size_px, device=device)
    images = images.contiguous(memory_format=layout)

    def loss_of(stepped: Callable[[Tensor], Tensor]) -> Tensor:
        with autocast(config, device):
            return stepped(images).float().sum()

    return compiling.compiled_if_possible(model, loss_of)


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
