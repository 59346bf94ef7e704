"""Uses `torch.compile` in trainings that are long enough to save time by it.

The part of a network before its head is compiled. Of the usual hyperparameters only `drop_path` is
in that part, so a process compiles once for all its trials of one network and batch size, and
torch keeps the result on disk for the next process.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainables.config import TrainConfig

# EfficientNet-B0 at 64 px, batch 128, on an H200: its first step came after 81 s, 27 s from the
# cache on disk and 22 s uncompiled; a step, replayed as a CUDA graph, took 4.0 ms instead of
# 5.9 ms. So compiling saves time after 31,000 steps, or 2,600 with the cache. Larger networks take
# longer to compile and save more per step.
COMPILE_FROM_STEPS = 30_000

# Graphs that one process may compile: one per network, batch size, and frozen or unfrozen backbone.
_MOST_GRAPHS = 64

log = logging.getLogger(__name__)


def should_compile(config: TrainConfig, steps: int, can_replay: bool) -> bool:
    """Return whether to compile a training of `steps` steps per epoch.

    "auto" compiles long trainings whose steps are replayed as CUDA graphs, except deterministic
    ones (compiled sums are split by timing), those with `drop_path` (every rate is another graph)
    and those with mixup or CutMix (their images have another memory format, which is another
    graph).
    """
    if config.compile == "auto":
        is_long = config.epochs * steps >= COMPILE_FROM_STEPS
        has_one_graph = not (config.drop_path or config.mixup_alpha or config.cutmix_alpha)
        return can_replay and is_long and has_one_graph and not config.deterministic
    return config.compile


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model's forward pass, compiled at its first call with each shape of images."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not cache.startswith("~"):  # without a home directory torch has a folder of its own
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{cache}/sweep-orchestrator/compiled")
    import torch._dynamo

    # A warm process compiles many models of fixed shapes. By default torch would make shapes
    # dynamic and then stop compiling, so results would depend on earlier trials.
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    forward_features: Callable[[Tensor], Tensor] | None = getattr(model, "forward_features", None)
    head: Callable[[Tensor], Tensor] | None = getattr(model, "forward_head", None)
    if forward_features is None or head is None:
        return torch.compile(model, dynamic=False)
    features = torch.compile(forward_features, dynamic=False)
    return lambda images: head(features(images))


def compiled_if_possible(
    model: nn.Module, forward: Callable[[Callable[[Tensor], Tensor]], Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return the model's forward pass, compiled, or uncompiled where that fails.

    `forward` runs a forward pass on a batch as in training and returns a loss; it may draw random
    numbers. The model is not changed, nor are its gradients.

    Raises:
        torch.OutOfMemoryError: a batch is too large.
    """
    began_s = time.perf_counter()
    try:
        forward(compiled(copy.deepcopy(model))).backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, a network that torch cannot compile, and others
        log.warning("This training continues uncompiled: %s", error)
        return model
    log.info("Compiled in %.0f s.", time.perf_counter() - began_s)
    return compiled(model)
