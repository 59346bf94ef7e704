"""Device, precision and process settings, the same in training, evaluation and prediction."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from trainables import limits
from trainables.config import TrainConfig
from trainables.models import build

# From glibc's malloc.h, with its largest threshold for blocks that are returned at once.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MAX_MMAP_BYTES = -1, -3, 32 * 2**20
_KEPT_BYTES = 512 * 2**20


def default_device() -> torch.device:
    """Return the CUDA device Ray (or the user) gave this process, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def num_gpus() -> int:
    """Return the number of CUDA devices of this machine."""
    return torch.cuda.device_count()


def limit_threads() -> None:
    """Let torch use no more threads than this process has CPUs; it does not know of quotas."""
    torch.set_num_threads(min(torch.get_num_threads(), limits.num_cpus()))


def set_up_numerics(config: TrainConfig, device: torch.device) -> None:
    """Set this process's threads and determinism from the configuration."""
    _keep_freed_memory()
    torch.set_num_threads(config.threads)
    # A reused process must not keep the previous trial's choice. Set only when it changes: setting
    # it imports torch's compiler, which takes 2 s and 180 MB where timm has not done so already.
    wanted = config.deterministic and device.type == "cuda"
    if torch.are_deterministic_algorithms_enabled() != wanted:
        torch.use_deterministic_algorithms(wanted)
    # cuBLAS is reproducible only with a workspace of fixed size, chosen before its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = device.type == "cuda" and not config.deterministic


@functools.cache
def _keep_freed_memory() -> None:
    """Let the C library keep up to half a GiB of freed memory for the next step.

    Otherwise every step returns most of its memory to the system, which clears each page again.
    Measured on 1 core of an AMD EPYC at 64 px: 1.2 to 1.3 times as fast for EfficientNet-B0
    (batch 64), 1.1 to 1.4 for `cnn3` (batch 256).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back_memory() -> None:
    """Return freed memory to the system."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of a forward pass in the configuration's precision."""
    use = config.precision == "bfloat16" or (
        config.precision == "auto" and is_faster_in_bfloat16(config.variant, device)
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use)


@functools.cache  # asked at every step
def is_faster_in_bfloat16(variant: str, device: torch.device) -> bool:
    """Return whether a network trains faster in bfloat16 than in float32 on a device.

    On a CUDA device every one does. On a CPU whose instructions multiply bfloat16 faster, networks
    of plain convolutions do: 1.4 to 2.3 times for `cnn2`, `cnn3`, `cnn3_bn` and `cnn6`, 1.3 to 1.8
    for ResNet-50, batches of 32 and 64 at 64 px on 1 and 2 cores of an AMD EPYC with AVX-512 BF16.
    With the same instructions, but without AMX, an Intel Xeon (model 207, 2 cores, batches of 128)
    took 1.2 times as long for `cnn2` and `cnn3`. Depthwise convolutions are slower everywhere:
    EfficientNet-B0 took 1.7 times as long on the EPYC, and longer too on a Xeon with AMX.
    """
    if device.type == "cuda":
        return True
    able = torch.cpu.get_capabilities()
    is_faster = able.get("amx_bf16", False) or (
        able.get("avx512_bf16", False) and "AuthenticAMD" in cpu_info()
    )
    return bool(is_faster) and build.has_plain_convolutions(variant)


def cpu_info() -> str:
    """Return Linux' description of the processors; empty on another system."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
