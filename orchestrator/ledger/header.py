"""`SweepHeader`: the facts of a sweep that its ledger keeps once, not per trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from orchestrator.ledger.records import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedSpace:
    """A search space as the ledger stores it, with every value resolved per variant."""

    name: str
    variants: Sequence[str]  # those that the space lists, without those of the command line
    fixed: Mapping[str, Mapping[str, Any]]  # fixed training parameters, by variant
    params: Mapping[str, Mapping[str, Any]]  # Optuna's JSON of each range, by variant and name
    enqueued: Sequence[Mapping[str, Any]]  # parameters of the first trials of searched variants
    image_size: str | int
    image_size_by_variant: Mapping[str, str | int]
    metric: str  # a field of `EpochMetrics`
    mode: Literal["max", "min"]  # which direction of the metric is better
    first_rung_epochs: int  # epochs before the first rung of early stopping; 0: no early stopping
    rung_factor: int  # each rung is this many times as long as the one before
    startup_trials: int  # random suggestions per variant before the sampler uses a model


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedPlan:
    """A plan as the ledger stores it: everything that a resumed sweep must not change."""

    space: RecordedSpace
    seed: int
    image_size_px: Mapping[str, int]
    dataset: str
    fingerprint: str
    overrides: Mapping[str, Any]  # training parameters that the command line set for every trial

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
    """Every fact of the ledger's `sweep` table. A fact that was never stored has its default."""

    sweep_id: str  # identifies the sweep in MLflow and in the storage
    name: str = ""  # the sweep's, which is that of its folder
    created_s: float  # Unix time at which the ledger was created
    plan: RecordedPlan  # the plan in force
    former_plans: Sequence[FormerPlan] = ()  # plans that `--force` replaced, oldest first
    keep_best: int  # the space's number of trials per variant whose weights are kept
    options: Mapping[str, Any] = field(default_factory=dict)  # flags that decide what is computed
    space: str = ""  # as the command named it: a name, or a path in `folder`
    folder: str = ""  # the command's working directory
    git_commit: str = ""  # of the repository that holds that directory, "" if none does
    data_dir: str = ""  # where datasets are, absolute, or a URL without its password
    # The space's own `trials`, `final_seeds` and `dataset`.
    space_own: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""  # name of the prepared dataset
    manifest: Mapping[str, Any] | None = None  # the prepared dataset's
    published: Mapping[str, Any] = field(default_factory=dict)  # what the space's source reports
    # By variant, the fields of `plan.VariantCost`.
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # Versions of Python and of the packages, by name, when the sweep was created.
    versions: Mapping[str, str] = field(default_factory=dict)
    # The most search trials that any command asked for, by variant.
    asked: Mapping[str, int] = field(default_factory=dict)
    tracking_uri: str | None = None  # MLflow's, where the user gave one without a password
    mlflow_experiment: str = ""  # id of the sweep's experiment in MLflow, whatever its name is now
    # Trials that MLflow rejects, by signature, each with the reason.
    tracking_behind: Mapping[str, str] = field(default_factory=dict)
    drivers: Sequence[str] = ()  # tokens of all that have held the sweep's lease, oldest first
    # Which state of the sweep its report and its exported model show.
    products: Mapping[str, str] = field(default_factory=dict)
    # Measured training time of each variant, the fields of `probe.TrainingTime`.
    forecast: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    forecast_whole: Mapping[str, Any] | None = None  # the fields of `measure.SweepForecast`
    disk_used_bytes: int | None = None  # by the sweep's folder when the report was last written

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
