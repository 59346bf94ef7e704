"""Measures a model's inference time."""

from __future__ import annotations

import platform
import re
import statistics
import time

import torch
from torch import Tensor, nn

from trainables.config import TrainConfig
from trainables.training.device import autocast, cpu_info

_BUDGET_S = 1.0  # of each of the two measurements
_LEAST_RUNS, _MOST_RUNS, _WARM_UP_RUNS = 3, 100, 3
_LONGEST_BATCH_S = 0.3


def inference_time(
    config: TrainConfig, model: nn.Module, image: Tensor, largest_batch: int
) -> tuple[float, float, int]:
    """Return milliseconds for one image alone, images/s in batches, and the batch size.

    Medians of the network's forward pass, from a prepared image on the device to its logits, in
    the precision of the training.

    `model` is in evaluation mode, `image` (1, c, h, w) prepared and on the device. `largest_batch`
    images fit into the memory; on a CPU it is halved until a batch should take 0.3 s at most.
    """
    with torch.inference_mode(), autocast(config, image.device):
        single_s = _median_s(model, image)
        size = largest_batch
        while image.device.type == "cpu" and size > 1 and size * single_s > _LONGEST_BATCH_S:
            size //= 2
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        batch = image.repeat(size, 1, 1, 1).contiguous(memory_format=layout)
        batch_s = single_s if size == 1 else _median_s(model, batch)
    return 1000 * single_s, size / batch_s, size


def device_name(device: torch.device) -> str:
    """Return the accelerator's name, or the processor's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = re.search(r"^model name.*?: *(.*?) *$", cpu_info(), re.MULTILINE)
    processor = name[1] if name else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{processor}, {threads} thread{'s' if threads > 1 else ''}"


def _median_s(model: nn.Module, images: Tensor) -> float:
    """Return the median time of a forward pass, after a warm-up, within about a second."""

    def timed_s() -> float:
        started = time.perf_counter()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - started

    ends = time.perf_counter() + _BUDGET_S
    for _ in range(_WARM_UP_RUNS):
        # A slow network is warm after one run.
        if timed_s() > _BUDGET_S / 4:
            break
    taken_s: list[float] = []
    while len(taken_s) < _LEAST_RUNS or (len(taken_s) < _MOST_RUNS and time.perf_counter() < ends):
        taken_s.append(timed_s())
    return statistics.median(taken_s)
