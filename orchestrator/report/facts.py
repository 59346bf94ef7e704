"""A sweep as the report sees it: everything from its ledger, read once, nothing from elsewhere."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger import ranking
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ranking import is_better
from orchestrator.ledger.records import ENDED, Attempt, EpochRow, Trial
from orchestrator.report.statistics import Estimate, estimate
from trainables.metrics import METRIC_NAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One trial with its epochs, attempts and, where it was evaluated, what the test split said."""

    trial: Trial
    rows: tuple[EpochRow, ...]
    attempts: tuple[Attempt, ...]
    evaluation: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The trial's name for people: "cnn2 #3", a final one "cnn2 final 0"."""
        mark = "#" if self.trial.stage == "search" else "final "
        return f"{self.trial.variant} {mark}{self.trial.number}"

    @property
    def is_pretrained(self) -> bool:
        """Whether training began from weights."""
        return str(self.trial.config.get("weights", "none")) != "none"

    @property
    def device_s(self) -> float:
        """Seconds of its attempts times its workers; a share of a device counts as a whole one."""
        workers = int(self.trial.config.get("workers", 1))
        return workers * sum(end - start for start, end in map(self.span_s, self.attempts))

    def span_s(self, attempt: Attempt) -> tuple[float, float]:
        """Return when an attempt began and ended, in seconds since 1970."""
        return attempt.span_s(self.rows)

    @property
    def has_validation(self) -> bool:
        """Whether it had a validation split; without one its `val_` metrics mean nothing."""
        return float(self.trial.config.get("validation_fraction", 1)) > 0

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose weights were kept, counted from 0; None before the end."""
        return int(self.evaluation["epoch"]) if self.evaluation else self.trial.best_epoch

    def at(self, epoch: int | None, metric: str) -> float:
        """Return a metric at an epoch, NaN where there is none."""
        if metric.startswith("val_") and not self.has_validation:
            return math.nan
        for row in self.rows:
            if row.epoch == epoch:
                return row.metrics[metric]
        return math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepData:
    """The whole sweep. `variants` in order of size."""

    name: str
    said: Mapping[str, Any]  # the ledger's facts, by key
    plan: Mapping[str, Any]
    variants: tuple[str, ...]
    records: tuple[Record, ...]
    class_names: tuple[str, ...]

    @property
    def metric(self) -> str:
        """What the search optimised."""
        return str(self.plan["space"]["metric"])

    @property
    def mode(self) -> str:
        """Which way the metric gets better: "max" or "min"."""
        return str(self.plan["space"]["mode"])

    def is_searched(self, variant: str) -> bool:
        """Return whether a variant had anything to search."""
        return bool(self.plan["space"]["params"].get(variant))

    def of(self, variant: str, stage: str | None = None) -> list[Record]:
        """Return a variant's records in the order they were planned, of one stage or of all."""
        return [
            record
            for record in self.records
            if record.trial.variant == variant and stage in (None, record.trial.stage)
        ]

    def groups(self) -> list[tuple[bool, list[str]]]:
        """Return the variants from scratch and the pretrained ones; those are never compared."""
        found: list[tuple[bool, list[str]]] = []
        for is_pretrained in (False, True):
            names = [
                variant
                for variant in self.variants
                if any(r.is_pretrained == is_pretrained for r in self.of(variant))
                or (not self.of(variant) and not is_pretrained)
            ]
            if names:
                found.append((is_pretrained, names))
        return found

    def seeds(self, variant: str, is_pretrained: bool | None = None) -> list[Record]:
        """Return the complete trials that train one configuration with different seeds.

        The final ones of the best configuration; of a variant with nothing to search its search
        trials are.
        """
        current = ranking.final_trials_of(
            [record.trial for record in self.records], variant, self.mode
        )
        signatures = {trial.signature for trial in current}
        return [
            record
            for record in self.of(variant)
            if record.trial.signature in signatures
            and record.trial.status == "complete"
            and is_pretrained in (None, record.is_pretrained)
        ]

    def evaluated(self, variant: str, is_pretrained: bool | None = None) -> list[Record]:
        """Return those seeds that the test split has evaluated."""
        return [r for r in self.seeds(variant, is_pretrained) if r.evaluation is not None]

    def best(self, records: Iterable[Record]) -> Record | None:
        """Return the best complete one by the search's metric, None where none is complete."""
        best: Record | None = None
        for record in records:
            value = record.trial.best_value
            if record.trial.status != "complete" or value is None:
                continue
            if best is None or is_better(value, best.trial.best_value or 0.0, self.mode):
                best = record
        return best

    def class_name(self, label: int) -> str:
        """Return the name of a class, its number where the ledger has no names."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def has_ended(self) -> bool:
        """Return whether any trial ended well."""
        return any(record.trial.status in ("complete", "stopped") for record in self.records)


def read_facts(ledger: Ledger, name: str = "") -> SweepData:
    """Read a ledger whole.

    Args:
        ledger: the sweep's.
        name: the sweep's, by default its space's.
    """
    trials = ledger.trials()
    attempts: dict[str, list[Attempt]] = collections.defaultdict(list)
    for attempt in ledger.attempts():
        attempts[attempt.signature].append(attempt)
    evaluations = ledger.evaluations()
    keys = (
        *("space", "sweep_id", "created_s", "options", "versions", "variants"),
        *("manifest", "published", "former_plans", "space_own", "forecast"),
        *("forecast_whole", "disk_used_bytes"),
    )
    said = {key: value for key in keys if (value := ledger.get(key)) is not None}
    plan = ledger.get("plan")
    return SweepData(
        name=name or str(plan["space"]["name"]),
        said=said,
        plan=plan,
        variants=_ordered(said.get("variants", {}), plan, trials),
        records=tuple(
            Record(
                trial=trial,
                rows=tuple(ledger.epochs(trial.signature)),
                attempts=tuple(attempts[trial.signature]),
                evaluation=evaluations.get(trial.signature),
            )
            for trial in trials
        ),
        class_names=tuple(said.get("manifest", {}).get("class_names", ())),
    )


def _ordered(
    costs: Mapping[str, Mapping[str, Any]], plan: Mapping[str, Any], trials: Sequence[Trial]
) -> tuple[str, ...]:
    """Return all variants that were planned, the smallest first."""
    names = {*plan["image_size_px"], *(trial.variant for trial in trials)}
    size = {name: costs.get(name, {}).get("multiply_accumulates", math.inf) for name in names}
    return tuple(sorted(names, key=lambda name: (size[name], name)))


def figures_of(records: Iterable[Record], *path: str) -> list[float]:
    """Return one figure of each evaluation, as `figures_of(records, "f1", "macro")`."""
    found = []
    for record in records:
        value: Any = record.evaluation
        for key in path:
            value = None if value is None else value[key]
        if value is not None:
            found.append(float(value))
    return found


def estimated(records: Iterable[Record], *path: str) -> Estimate:
    """Return mean and interval of one figure of the evaluations."""
    return estimate(figures_of(records, *path))


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing; NaN are left out."""
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else None


def ended(records: Iterable[Record]) -> list[Record]:
    """Return those that have ended, in the order they did."""
    done = [record for record in records if record.trial.status in ENDED]
    return sorted(done, key=lambda record: record.trial.ended_seq or 0)


def is_fraction(metric: str) -> bool:
    """Return whether a metric is a fraction, printed as percent."""
    assert metric in METRIC_NAMES
    return metric.endswith(("top1", "top5"))
