"""Captures a training step as a CUDA graph, which is then launched with a single call.

A small network's step at 64 px is hundreds of short kernels, and the host takes longer to launch
them than the GPU to run them. Kernels, order and random numbers are the same without a graph.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from trainables.config import TrainConfig

# Steps before the capture: they choose cuDNN's kernels, compile, and create the optimizer's state.
# torch's notes on CUDA graphs require three.
_WARM_UP_STEPS = 3

log = logging.getLogger(__name__)


def can_replay(config: TrainConfig, device: torch.device, is_resident: bool) -> bool:
    """Return whether a step runs on the device alone.

    timm's LAMB counts its steps on the host, data-parallel workers communicate, and images that do
    not fit into the device's memory come from the host.
    """
    is_on_device = device.type == "cuda" and is_resident
    return is_on_device and config.workers == 1 and config.optimizer != "lamb"


class Replayed:
    """Calls `work(rows)`: the first times directly, then as a CUDA graph.

    All calls must have the same number of rows. Everything else that `work` reads must stay in the
    same memory, and its random numbers come from `draws` and the device's default generator.
    """

    def __init__(self, work: Callable[[Tensor], None], draws: torch.Generator) -> None:
        self._work, self._draws = work, draws
        self._stream = _stream(draws.device)
        self._left = _WARM_UP_STEPS  # until the capture; below 0 it failed
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rows: Tensor | None = None

    def __call__(self, rows: Tensor) -> None:
        """Do the work for these rows."""
        if self._graph is None and self._left == 0:
            self._capture(rows)
        if self._graph is not None and self._rows is not None:
            self._rows.copy_(rows)
            self._graph.replay()
            return
        self._left -= 1
        # On the capturing stream, to which autograd's state between steps belongs.
        current = torch.cuda.current_stream(rows.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._work(rows)
        current.wait_stream(self._stream)

    def _capture(self, rows: Tensor) -> None:
        graph, kept = torch.cuda.CUDAGraph(), rows.clone()
        graph.register_generator_state(self._draws)
        try:
            # thread_local: another thread of this process may use the device.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._work(kept)
        except RuntimeError as error:
            log.warning("This training continues without a CUDA graph: %s", error)
            # torch leaves them in the state of a capture, in which nothing can be drawn.
            for generator in (self._draws, torch.cuda.default_generators[self._draws.device.index]):
                generator.graphsafe_set_state(generator.clone_state())
            return
        self._graph, self._rows = graph, kept


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the process's only capturing stream: cuBLAS keeps memory for every stream."""
    return torch.cuda.Stream(device)
