"""`SweepHeader`: the facts of a sweep that its ledger keeps once, not per trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from orchestrator.ledger.records import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedSpace:
    """A search space as the ledger stores it, with every value resolved per variant.

    Attributes:
        name: the space's name.
        variants: the models that the space lists, without those that the command line added.
        fixed: fixed training parameters, by variant.
        params: Optuna's JSON of each searched parameter, by variant and name.
        enqueued: parameters of the first trials of every searched variant.
        metric: a field of `EpochMetrics`; `mode` says which direction is better.
        first_rung_epochs: epochs before the first rung of early stopping; 0: no early stopping.
        rung_factor: each rung is this many times as long as the one before.
        startup_trials: random suggestions per variant before the sampler uses a model.
    """

    name: str
    variants: Sequence[str]
    fixed: Mapping[str, Mapping[str, Any]]
    params: Mapping[str, Mapping[str, Any]]
    enqueued: Sequence[Mapping[str, Any]]
    image_size: str | int
    image_size_by_variant: Mapping[str, str | int]
    metric: str
    mode: Literal["max", "min"]
    first_rung_epochs: int
    rung_factor: int
    startup_trials: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedPlan:
    """A plan as the ledger stores it: everything that a resumed sweep must not change.

    `overrides` are the training parameters that the command line set for every trial.
    """

    space: RecordedSpace
    seed: int
    image_size_px: Mapping[str, int]
    dataset: str
    fingerprint: str
    overrides: Mapping[str, Any]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecordedPlan:
        """Return a plan from the JSON object that `Plan.identity` returned."""
        return cls(**{**values, "space": RecordedSpace(**values["space"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `from_dict` reads."""
        return asdict(self)

    def is_evaluated(self, trial: Trial) -> bool:
        """Return whether a trial is evaluated on the test split once it is complete."""
        params = self.space.params.get(trial.variant, trial.params)
        return is_evaluated(trial, params, self.space.enqueued)


def is_evaluated(trial: Trial, params: Sized, enqueued: Sized) -> bool:
    """Return whether a trial is evaluated on the test split; such a trial is never stopped early.

    This holds for final trials, for the trials that the space enqueues (a published recipe), and
    for every trial of a variant with nothing to search, where trials differ only in their seeds.
    """
    return trial.stage == "final" or not params or trial.number < len(enqueued)


@dataclass(frozen=True, kw_only=True, slots=True)
class FormerPlan:
    """A plan that `--force` replaced, and the last change that was made under it."""

    until_seq: int
    plan: RecordedPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepHeader:
    """Every fact of the ledger's `sweep` table. A fact that was never stored has its default.

    Attributes:
        sweep_id: identifies the sweep in MLflow and in the storage.
        created_s: Unix time at which the ledger was created.
        plan: the plan in force.
        former_plans: plans that `--force` replaced, oldest first.
        keep_best: the space's number of trials per variant whose weights are kept.
        options: flags of the command line that decide what is computed, by name.
        space: the space as the command named it: a name or a path.
        space_own: the space's own `trials`, `final_seeds` and `dataset`.
        dataset: name of the prepared dataset.
        manifest: the prepared dataset's manifest.
        published: figures that the space's source reports.
        variants: cost of each variant, the fields of `plan.VariantCost`.
        versions: versions of Python and of the packages, by name, when the sweep was created.
        asked: the most search trials that any command asked for, by variant.
        tracking_uri: MLflow's address, where the user gave one without a password.
        tracking_behind: trials that MLflow rejects, by signature, each with the reason.
        drivers: tokens of all drivers that have held the sweep's lease, oldest first.
        products: which state of the sweep its report and its exported model show.
        forecast: measured training time of each variant, the fields of `probe.TrainingTime`.
        forecast_whole: forecast of the whole sweep, the fields of `measure.SweepForecast`.
        disk_used_bytes: size of the sweep's folder when the report was last written.
    """

    sweep_id: str
    created_s: float
    plan: RecordedPlan
    former_plans: Sequence[FormerPlan] = ()
    keep_best: int
    options: Mapping[str, Any] = field(default_factory=dict)
    space: str = ""
    space_own: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    manifest: Mapping[str, Any] | None = None
    published: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)
    tracking_uri: str | None = None
    tracking_behind: Mapping[str, str] = field(default_factory=dict)
    drivers: Sequence[str] = ()
    products: Mapping[str, str] = field(default_factory=dict)
    forecast: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    forecast_whole: Mapping[str, Any] | None = None
    disk_used_bytes: int | None = None

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> SweepHeader:
        """Return the header from the ledger's facts; unknown facts are left out."""
        values = {each.name: facts[each.name] for each in fields(cls) if each.name in facts}
        values["plan"] = RecordedPlan.from_dict(facts["plan"])
        values["former_plans"] = [
            FormerPlan(until_seq=former["until_seq"], plan=RecordedPlan.from_dict(former["plan"]))
            for former in facts.get("former_plans", ())
        ]
        return cls(**values)

    @property
    def num_best(self) -> int:
        """How many trials of each variant keep their best weights."""
        option: str = self.options.get("keep") or ""
        return int(option.removeprefix("best-")) if option.startswith("best-") else self.keep_best

    def plan_at(self, seq: int) -> RecordedPlan:
        """Return the plan that was in force when the change with this number was made."""
        return next((f.plan for f in self.former_plans if seq <= f.until_seq), self.plan)
