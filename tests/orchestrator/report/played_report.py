"""Builds the ledger of a sweep of any size in seconds, without training."""

from __future__ import annotations

import base64
import io
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as scores

from orchestrator import clock as real
from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.plan import Plan
from tests.orchestrator import sweeps
from trainables.metrics import METRIC_NAMES

SECOND_S = 1_700_000_000.0
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/app/trainables/training/loop.py", line 91, in fit\n'
    "    loss.backward()\n"
    "RuntimeError: shapes (3, <b>4</b>) do not fit"
)


class Clock:
    """The ledger's time, which a test sets; the sweep's trials run one after another."""

    def __init__(self) -> None:
        self.now = SECOND_S

    def __call__(self) -> float:
        return self.now


@contextmanager
def clock(ledger: Ledger) -> Iterator[Clock]:
    patch, own = pytest.MonkeyPatch(), Clock()
    patch.setattr(ledger, "_clock", real.Clock(now_s=own))
    try:
        yield own
    finally:
        patch.undo()


def evaluation(  # as trainables.evaluation.held_out.Evaluation.to_dict() returns it
    top1: float, *, classes: int, seed: int, image_size_px: int = 32, examples: int = 12
) -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    images = classes * 20
    labels = np.repeat(np.arange(classes), 20)
    wrong = dice.random(images) > top1
    near = (labels + dice.choice([1, 1, 1, 2, 5], images)) % classes
    predicted = np.where(wrong, near, labels)
    precision, recall, f1, support = scores.precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=0
    )

    def averages(values: Any) -> dict[str, Any]:
        return {
            "per_class": values.tolist(),
            "macro": float(values.mean()),
            "weighted": float(np.average(values, weights=support)),
        }

    confidence = np.linspace(1 / 30, 29 / 30, 15)
    return {
        "split": "test",
        "images": images,
        "epoch": 4,
        "correct": base64.b64encode(np.packbits(labels == predicted).tobytes()).decode(),
        "top1": float((labels == predicted).mean()),
        "top5": min(1.0, top1 + 0.2),
        "loss": 2 - top1,
        "ece": 0.05,
        "superclass_top1": None,
        "precision": averages(precision),
        "recall": averages(recall),
        "f1": averages(f1),
        "support": support.tolist(),
        "confusion": scores.confusion_matrix(labels, predicted).tolist(),
        "calibration": {
            "count": [10 * n for n in range(15)],
            "confidence": confidence.tolist(),
            "accuracy": (confidence * 0.9).tolist(),
        },
        "parameters": 1_000_000,
        "parameters_with_statistics": 1_002_000,
        "multiply_accumulates": 20_000_000,
        "flops": 40_000_000,
        "inference_ms": 3.5,
        "inference_images_per_s": 900.0,
        "inference_batch_size": 64,
        "device": "Test CPU, 2 threads",
        "examples": [
            _example(dice, row, classes=classes, image_size_px=image_size_px)
            for row in range(examples)
        ],
        "mistakes": [
            _example(dice, row, classes=classes, image_size_px=image_size_px, right_share=0)
            for row in range(examples, examples + 3)
        ],
    }


def _example(
    dice: Any, row: int, *, classes: int, image_size_px: int, right_share: float = 0.6
) -> dict[str, Any]:
    y, x = np.mgrid[0:image_size_px, 0:image_size_px]
    # The image depends on its row only: all trials are evaluated on the same images.
    pixels = np.stack([(x * (row + 2)) % 256, (y * (row + 5)) % 256, (x * y * (row + 1)) % 256], -1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    label = row % classes
    first = label if dice.random() < right_share else (label + 1) % classes
    bump = np.exp(-((np.mgrid[0:4, 0:4] - dice.uniform(0, 4, (2, 1, 1))) ** 2).sum(0) / 2)
    return {
        "row": row,
        "label": label,
        "top5": [[(first + n) % classes, 0.6 / (n + 1)] for n in range(min(5, classes))],
        "image_png": base64.b64encode(file.getvalue()).decode(),
        "map": {
            "height": 4,
            "width": 4,
            "values": base64.b64encode((255 * bump / bump.max()).astype(np.uint8)).decode(),
        },
    }


def build(  # one sweep, a function of the arguments only
    path: Path,
    *,
    variants: tuple[str, ...] = ("cnn2", "cnn3", "resnet50"),
    trials: int = 12,
    epochs: int = 6,
    final_seeds: int = 3,
    classes: int = 10,
    searched: bool = True,
    examples: int = 12,
    **facts: Any,
) -> Ledger:
    space = sweeps.space(
        variants=variants,
        trials=trials,
        base={"epochs": 20},
        params=sweeps.PARAMS if searched else {},
        by_variant={"resnet50": {"weights": "imagenet"}} if "resnet50" in variants else {},
    )
    plan = replace(sweeps.plan(space), overrides={"epochs": epochs})
    costs = {
        name: {
            "image_size_px": 32,
            "parameters": 10**6 * 2**n,
            "multiply_accumulates": 10**7 * 3**n,
        }
        for n, name in enumerate(variants)
    }
    manifest = {
        "class_names": [f"class {n}" for n in range(classes)],
        "images": {"train": 1438, "test": 20 * classes},
    }
    options = {"epochs": epochs, "trials": trials}
    ledger = sweeps.new_ledger(
        path, plan, options=options, variants=costs, manifest=manifest, **facts
    )
    dice = random.Random(classes)
    ledger.database.connection.execute("PRAGMA synchronous = OFF")  # a test needs no durability
    evaluated = (classes, examples)
    with clock(ledger) as now:
        for size, variant in enumerate(variants):
            level = 0.5 + 0.4 * size / max(len(variants) - 1, 2)
            if not searched:
                for number in range(trials):
                    _draw(dice)  # as a search does, so that later random numbers stay the same
                    shown = _Trial(variant, number, {}, "complete", level - 0.1 * dice.random())
                    _play(ledger, now, plan, shown, epochs, evaluated=evaluated)
                continue
            best, params = _search(ledger, now, plan, dice, (variant, level, trials, epochs))
            for number in range(final_seeds):
                final = _Trial(variant, number, params, "complete", level + 0.01 * dice.random())
                _play(ledger, now, plan, final, epochs, origin=best, evaluated=evaluated)
    return ledger


@dataclass(frozen=True)
class _Trial:
    variant: str
    number: int
    params: dict[str, Any]
    ending: str
    ceiling: float  # the limit of its accuracy


def _draw(dice: random.Random) -> dict[str, Any]:
    return {
        "lr": 10 ** dice.uniform(-4, -1),
        "dropout": dice.uniform(0, 0.5),
        "batch_size": dice.choice([32, 64, 128]),
        "optimizer": dice.choice(["sgd", "adamw"]),
    }


def _search(
    ledger: Ledger, now: Clock, plan: Plan, dice: random.Random, what: tuple[str, float, int, int]
) -> tuple[str, dict[str, Any]]:
    """Record a variant's search; returns signature and parameters of the best complete trial."""
    variant, level, trials, epochs = what
    best: tuple[str, float, dict[str, Any]] = ("", -1.0, {})
    endings = ("complete", "stopped", "complete", "stopped", "diverged", "failed")
    for number in range(trials):
        params = _draw(dice)
        ending = endings[number % len(endings)]
        trial = _Trial(variant, number, params, ending, level - 0.1 * dice.random())
        signature, value = _play(ledger, now, plan, trial, epochs)
        if ending == "complete" and value > best[1]:
            best = (signature, value, params)
    return best[0], best[2]


def _play(
    ledger: Ledger,
    now: Clock,
    plan: Plan,
    trial: _Trial,
    epochs: int,
    *,
    origin: str | None = None,
    evaluated: tuple[int, int] | None = None,
) -> tuple[str, float]:
    """Record one whole trial; returns its signature and last accuracy.

    `evaluated`: classes and examples of its evaluation, None for a trial without one.
    """
    signature = f"{trial.variant}-{'f' if origin else 's'}{trial.number:04d}"
    number = 10_000 + trial.number if origin else trial.number
    ledger.plan_trial(
        signature=signature,
        variant=trial.variant,
        number=trial.number,
        config=plan.train_config(trial.variant, number, trial.params).to_dict(),
        params=trial.params,
        seen_seq=ledger.seq,
        stage="final" if origin else "search",
        origin=origin,
    )
    attempt = ledger.start_attempt(signature, resumed_from=None, micro_batch_size=0)
    now.now += 1.0  # seconds of start
    lasts = {"complete": epochs, "stopped": max(1, epochs // 3), "diverged": 1, "failed": 2}
    value = 0.0
    for epoch in range(lasts[trial.ending]):
        now.now += 2.5  # an epoch takes 2 s, its checkpoint 0.25 s, its report 0.25 s
        value = trial.ceiling * (1 - 0.6 ** (epoch + 1))
        ledger.record_epoch(signature, attempt, epoch, _metrics(trial, value), None)
    if evaluated:
        now.now += 0.5  # seconds of the test evaluation
        result = _evaluated(trial, value, ledger.facts()["variants"][trial.variant], *evaluated)
        ledger.record_evaluation(signature, attempt, result | {"epoch": epochs - 1})
    ledger.end_attempt(
        signature,
        attempt,
        outcome=trial.ending,
        trial_status=trial.ending,  # type: ignore[arg-type]
        failure_class={"failed": "bug", "diverged": "diverged"}.get(trial.ending),
        failure_text=TRACEBACK if trial.ending == "failed" else None,
        best=(epoch, value) if trial.ending in ("complete", "stopped") else None,
    )
    return signature, value


def _metrics(trial: _Trial, value: float) -> dict[str, float]:
    """Return the metrics of an epoch with this validation accuracy."""
    row = {
        "train_loss": float("nan") if trial.ending == "diverged" else 2.5 - 1.2 * value,
        "train_top1": min(1.0, value * 1.2),
        "val_loss": 2.5 - value,
        "val_top1": value,
        "val_top5": min(1.0, value + 0.2),
        "lr": trial.params.get("lr", 0.1),
        "epoch_s": 2.0,
        "images_per_s": 700.0,
        "device_peak_gib": 0.5,
        "val_s": 0.5,
        "data_s": 0.5,
        "checkpoint_s": 0.25,
    }
    return {name: row[name] for name in METRIC_NAMES}


def _evaluated(
    trial: _Trial, value: float, cost: dict[str, int], classes: int, examples: int
) -> dict[str, Any]:
    """Return a trial's evaluation, with its variant's cost."""
    seed = zlib.crc32(trial.variant.encode()) + trial.number
    result = evaluation(min(0.95, value + 0.02), classes=classes, seed=seed, examples=examples)
    macs = cost["multiply_accumulates"]
    return result | {
        "parameters": cost["parameters"],
        "parameters_with_statistics": cost["parameters"] + 2000,
        "multiply_accumulates": macs,
        "flops": 2 * macs,
        "inference_ms": macs / 1e7,
    }
