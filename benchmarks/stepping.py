"""One optimizer step at 64 px: ours against the loop that most scripts have.

Same network, batch of 128, AdamW. Ours is the first epoch of a long `loop.fit` on real images,
timed between the ends of its steps, so gathering and preparing its batches counts. The opponents
train one batch that lies ready. "stock" is float32, channels first, eager; "compiled" is
channels-last with `torch.compile`, on CUDA with bfloat16 autocast and CUDA graphs.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from benchmarks import documented, images
from benchmarks.harness import Benchmark, Measure
from trainables import limits

BATCH = 128
EPOCHS = 400  # of which one is begun: a training that is long enough to be compiled on a GPU
_WARM_UP_STEPS = 5


def ours(variant: str, full: bool) -> Measure:
    from trainables.config import TrainConfig
    from trainables.data import dataset
    from trainables.training import loop
    from trainables.training.device import default_device

    folder = images.prepared()
    device = default_device()
    steps = _steps(variant, full)
    config = TrainConfig(
        variant=variant,
        dataset="tinyimagenet",
        dataset_fingerprint=dataset.load_manifest(folder).fingerprint,
        epochs=EPOCHS,
        seed=0,
        image_size_px=images.SIZE_PX,
        batch_size=BATCH,
        optimizer="adamw",
        lr=1e-3,
        threads=limits.num_cpus(),
        steps_per_epoch=steps,
    )
    ends: list[float] = []

    def on_step() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    began_s = time.perf_counter()
    for _ in loop.fit(config, folder, device=device, on_step=on_step):
        break
    return _measure(ends[:steps], began_s)


def stock(variant: str, full: bool, *, compiled: bool = False) -> Measure:
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(limits.num_cpus())
    torch.manual_seed(0)
    model = documented.build(variant, classes=200, channels=3, image_size_px=images.SIZE_PX)
    model = model.to(device).train()
    batch = torch.randn(BATCH, 3, images.SIZE_PX, images.SIZE_PX, device=device)
    labels = torch.randint(0, 200, (BATCH,), device=device)
    stepped = model
    if compiled:
        model = model.to(memory_format=torch.channels_last)
        batch = batch.contiguous(memory_format=torch.channels_last)
        stepped = torch.compile(model, mode="reduce-overhead" if device.type == "cuda" else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    amp = torch.autocast("cuda", torch.bfloat16, enabled=compiled and device.type == "cuda")
    ends = []
    began_s = time.perf_counter()
    for _ in range(_steps(variant, full)):
        optimizer.zero_grad()
        with amp:
            loss = F.cross_entropy(stepped(batch).float(), labels)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    return _measure(ends, began_s)


def _steps(variant: str, full: bool) -> int:
    quick = 25 if variant == "cnn3" else 10
    if torch.cuda.is_available():
        return 200
    return 4 * quick if full else quick


def _measure(ends: list[float], began_s: float) -> Measure:
    """Return the seconds between ends, without the first ones, which compile and warm up."""
    settled = [after - before for before, after in itertools.pairwise(ends)][_WARM_UP_STEPS:]
    return Measure(
        values=settled,
        facts={
            "images_per_s": BATCH / statistics.median(settled),
            "warm_up_s": ends[_WARM_UP_STEPS] - began_s,
        },
    )


def _least_s(variant: str, probes: Mapping[str, float]) -> float:
    """Return a step's time, were it nothing but multiplying matrices as fast as the probe did.

    The backward pass multiplies twice as much as the forward pass.
    """
    from trainables.models import cost

    model = documented.build(variant, classes=200, channels=3, image_size_px=images.SIZE_PX)
    forward = 2 * cost.count_multiply_accumulates(
        model, image_size_px=images.SIZE_PX, in_channels=3
    )
    gflop_s = probes.get("cuda_matmul_gflop_s", probes["matmul_gflop_s"])
    return 3 * forward * BATCH / 1e9 / gflop_s


def benchmark(variant: str) -> Benchmark:
    """Return the row of one network."""
    return Benchmark(
        name="stepping",
        title=f"training step, {variant} at 64 px",
        unit="step",
        contenders={
            "ours": lambda full: ours(variant, full),
            "stock": lambda full: stock(variant, full),
            "compiled": lambda full: stock(variant, full, compiled=True),
        },
        goals={"stock": 3, "compiled": 1.2},
        goals_cuda={"stock": 8, "compiled": 2.5},
        limit=lambda probes: _least_s(variant, probes),
    )


BENCHMARK = benchmark("efficientnet_b0")
