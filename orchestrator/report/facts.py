"""`SweepData`: the data of a sweep for the report's sections, read once from the ledger."""

from __future__ import annotations

import base64
import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.ledger import ranking
from orchestrator.ledger.header import RecordedPlan, SweepHeader
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Attempt, EpochRow, Trial
from orchestrator.report.statistics import Estimate, estimate
from trainables.data.dataset import validation_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One trial with its epochs, its attempts and its evaluation on the test split."""

    trial: Trial
    rows: tuple[EpochRow, ...]
    attempts: tuple[Attempt, ...]
    evaluation: Mapping[str, Any]  # empty if it was not evaluated

    @property
    def name(self) -> str:
        """The trial's printed name: "cnn2 #3", that of a final trial "cnn2 final 0"."""
        mark = "#" if self.trial.stage == "search" else "final "
        return f"{self.trial.variant} {mark}{self.trial.number}"

    @property
    def is_pretrained(self) -> bool:
        """Whether training started from pretrained weights."""
        return str(self.trial.config.get("weights", "none")) != "none"

    @property
    def device_s(self) -> float:
        """Duration of its attempts times its workers; a shared device counts as a whole one."""
        workers = int(self.trial.config.get("workers", 1))
        return workers * sum(end - start for start, end in self.spans_s)

    @property
    def spans_s(self) -> list[tuple[float, float]]:
        """When each attempt started and ended, as Unix times."""
        return [attempt.span_s(self.rows) for attempt in self.attempts]

    @property
    def has_validation(self) -> bool:
        """Whether it had a validation split; without one its `val_` metrics have no meaning."""
        return float(self.trial.config.get("validation_fraction", 1)) > 0

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose weights were kept, counted from 0; None while the trial runs."""
        return int(self.evaluation["epoch"]) if self.evaluation else self.trial.best_epoch

    @property
    def correct(self) -> np.ndarray | None:
        """For each test image whether top-1 is right, (n,); None if older versions evaluated it."""
        if "correct" not in self.evaluation:
            return None
        packed = np.frombuffer(base64.b64decode(self.evaluation["correct"]), np.uint8)
        return np.unpackbits(packed, count=int(self.evaluation["images"])).astype(bool)

    def at(self, epoch: int | None, metric: str) -> float:
        """Return a metric at an epoch, NaN if there is none."""
        if metric.startswith("val_") and not self.has_validation:
            return math.nan
        return next((row.metrics[metric] for row in self.rows if row.epoch == epoch), math.nan)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepData:
    """A whole sweep, or one of its `groups`. `variants` are ordered by their operations."""

    name: str
    header: SweepHeader
    variants: tuple[str, ...]
    records: tuple[Record, ...]
    storage: str = ""  # as `--storage` takes it; empty: not known
    is_pretrained: bool | None = None  # methods return only records like this; None: all

    @property
    def plan(self) -> RecordedPlan:
        """The plan in force."""
        return self.header.plan

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the dataset's classes, none if the ledger has no manifest."""
        return tuple((self.header.manifest or {}).get("class_names", ()))

    @property
    def images(self) -> Mapping[str, int]:
        """The dataset's number of images by split."""
        found: Mapping[str, int] = (self.header.manifest or {}).get("images", {})
        return found

    @property
    def validation_images(self) -> int | None:
        """The number of images of the trials' validation split, None if it differs or is unknown.

        Trials without a validation split do not count. A class with a single image counts like the
        others, although that image is always a training image.
        """
        shares = {float(r.trial.config.get("validation_fraction", 0)) for r in self.records} - {0}
        if len(shares) != 1 or not self.images.get("train"):
            return None
        return validation_size(self.images["train"], len(self.class_names), *shares)

    @property
    def metric(self) -> str:
        """The metric that the search optimized."""
        return self.plan.space.metric

    def is_searched(self, variant: str) -> bool:
        """Return whether a variant has hyperparameters to search."""
        return bool(self.plan.space.params.get(variant))

    def of(self, variant: str, stage: str | None = None) -> list[Record]:
        """Return a variant's records in the order they were planned, of one stage or of both."""
        own = [record for record in self.records if record.trial.variant == variant]
        own = [record for record in own if self.is_pretrained in (None, record.is_pretrained)]
        return [record for record in own if stage in (None, record.trial.stage)]

    def groups(self) -> list[SweepData]:
        """Return the variants trained from scratch and the pretrained ones, never compared."""
        found: dict[bool, list[str]] = {False: [], True: []}
        for variant in self.variants:
            # A variant without a trial is listed among those trained from scratch.
            for is_pretrained in {r.is_pretrained for r in self.of(variant)} or {False}:
                found[is_pretrained].append(variant)
        kinds = [(is_pretrained, tuple(names)) for is_pretrained, names in found.items() if names]
        return [replace(self, variants=names, is_pretrained=which) for which, names in kinds]

    @property
    def kind(self) -> str:
        """How the variants of one of the `groups` were trained."""
        return "pretrained" if self.is_pretrained else "from scratch"

    @property
    def suffix(self) -> str:
        """The end of the names of a group's tables."""
        return "_pretrained" if self.is_pretrained else ""

    def seeds(self, variant: str) -> list[Record]:
        """Return the complete trials that train a variant's best configuration, one per seed.

        These are its final trials; for a variant with nothing to search, its search trials.
        """
        trials = [record.trial for record in self.records]
        current = ranking.final_trials_of(trials, variant, self.plan.space.mode)
        signatures = {trial.signature for trial in current if trial.status == "complete"}
        return [r for r in self.of(variant) if r.trial.signature in signatures]

    def evaluated(self, variant: str) -> list[Record]:
        """Return those of `seeds` that were evaluated on the test split."""
        return [record for record in self.seeds(variant) if record.evaluation]

    def best(self, records: Iterable[Record]) -> Record | None:
        """Return the best complete record by the search's metric, None if none is complete."""
        by_signature = {record.trial.signature: record for record in records}
        trials = [record.trial for record in by_signature.values()]
        best = ranking.best_of(trials, self.plan.space.mode)
        return by_signature[best.signature] if best else None

    def class_name(self, label: int) -> str:
        """Return the name of a class, its number if the ledger has no names."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


def read_sweep(ledger: Ledger, name: str = "", storage: str = "") -> SweepData:
    """Return a ledger's whole sweep; its name is by default that of its space."""
    trials = ledger.trials()
    attempts: dict[str, list[Attempt]] = collections.defaultdict(list)
    for attempt in ledger.attempts():
        attempts[attempt.signature].append(attempt)
    evaluations, header = ledger.evaluations(), ledger.header()
    return SweepData(
        name=name or header.plan.space.name,
        storage=storage,
        header=header,
        variants=_ordered(header, trials),
        records=tuple(
            Record(
                trial=trial,
                rows=tuple(ledger.epochs(trial.signature)),
                attempts=tuple(attempts[trial.signature]),
                evaluation=evaluations.get(trial.signature, {}),
            )
            for trial in trials
        ),
    )


def _ordered(header: SweepHeader, trials: Sequence[Trial]) -> tuple[str, ...]:
    """Return all planned variants, the one with the fewest operations first."""
    names = {*header.plan.image_size_px, *(trial.variant for trial in trials)}
    macs = {n: header.variants.get(n, {}).get("multiply_accumulates", math.inf) for n in names}
    return tuple(sorted(names, key=lambda name: (macs[name], name)))


def figures_of(records: Iterable[Record], *path: str) -> list[float]:
    """Return one figure of each evaluation: `figures_of(records, "f1", "macro")`."""
    found: list[Any] = [record.evaluation for record in records if record.evaluation]
    for key in path:
        found = [value[key] for value in found if value[key] is not None]
    return [float(value) for value in found]


def estimated(records: Iterable[Record], *path: str) -> Estimate:
    """Return mean and interval of one figure of the evaluations."""
    return estimate(figures_of(records, *path))


def mean(values: Sequence[float]) -> float | None:
    """Return the mean of the values that are not NaN, None if there are none."""
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else None
