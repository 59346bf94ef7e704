"""Suggests configurations with Optuna's tree-structured Parzen estimator (TPE).

One in-memory study per variant, with a sampler seeded for each suggestion, so a study rebuilt from
the ledger makes the same suggestions. Together with `search_spaces` (distributions) the only module
that imports Optuna. Its pruners are not used; see `early_stopping`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, json_to_distribution
from optuna.trial import TrialState, create_trial

from orchestrator.ledger.header import RecordedPlan, RecordedSpace
from orchestrator.ledger.records import EpochRow, Trial
from orchestrator.plan.plan import Plan, trial_seed

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Study:
    """One variant's study: suggests the parameters of its search trials by TPE.

    TPE models the parameters of better and worse trials by two densities and suggests where their
    ratio is largest. Optuna's defaults apply, except `multivariate=True`, which models parameters
    jointly; running trials count as worse ones (`constant_liar`). Trials rank in this order:
    complete ones by their best value, then stopped ones (pruned) by the epoch they reached and
    their value there, then diverged ones.
    Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011.

    Before TPE is used, `startup_trials` suggestions are random (Optuna's `n_startup_trials`; 10 by
    default in `SearchSpace`). The sampler's seed follows from the sweep's, the variant's name and
    the trial's number in the ledger, where trials are numbered in the order they were planned.
    """

    def __init__(
        self,
        variant: str,
        params: Mapping[str, BaseDistribution],
        *,
        mode: Literal["max", "min"],  # which values of the metric are better
        startup_trials: int,
        sweep_seed: int,
        enqueued: Sequence[Mapping[str, Any]] = (),  # suggested first
    ) -> None:
        self.variant, self.mode, self.enqueued = variant, mode, enqueued
        # The sampler draws in this order: sorted, so that the order in the space has no effect.
        self.params = dict(sorted(params.items()))
        self.startup_trials, self.sweep_seed = startup_trials, sweep_seed
        self._foreign: set[int] = set()  # numbers of trials with parameters of another space
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it logs every new study
        self._study = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize", sampler=self._sampler(0)
        )

    def ask(self, number: int) -> dict[str, Any]:
        """Return the suggested parameters of trial `number`, given the trials told so far."""
        self._study.sampler = self._sampler(number)
        if number < len(self.enqueued):
            self._study.enqueue_trial(dict(self.enqueued[number]))
        trial = self._study.ask(self.params)
        assert trial.number == number, "trials must be asked for in order"
        return dict(trial.params)

    def tell(self, trial: Trial, rows: Sequence[EpochRow], metric: str) -> None:
        """Add the result of a trial that has ended.

        A complete trial counts with its best value. A stopped trial is PRUNED with its intermediate
        values. A diverged trial is PRUNED without values, which TPE ranks worst. A failed trial is
        FAIL, which TPE ignores, because the failure tells nothing about the parameters.
        """
        if trial.number in self._foreign:
            return
        known = self._study.get_trials(deepcopy=False)
        handle = optuna.trial.Trial(self._study, known[trial.number]._trial_id)
        if trial.status == "complete" and trial.best_value is not None:
            self._study.tell(handle, trial.best_value)
        elif trial.status in ("complete", "stopped", "diverged"):
            if trial.status == "stopped":
                for row in rows:
                    if math.isfinite(row.metrics[metric]):
                        handle.report(row.metrics[metric], row.epoch)
            self._study.tell(handle, state=TrialState.PRUNED)
        else:
            self._study.tell(handle, state=TrialState.FAIL)

    def add_planned(self, trial: Trial) -> None:
        """Add a trial from the ledger that was suggested earlier.

        The sampler ignores a trial whose parameters are not in the space any more (after
        `--force`).
        """
        known, params = self._study.get_trials(deepcopy=False), trial.params
        assert trial.number == len(known), "trials must be added in order"
        if self._fits(params):
            added = create_trial(state=TrialState.RUNNING, params=params, distributions=self.params)
        else:
            self._foreign.add(trial.number)
            added = create_trial(state=TrialState.FAIL)
        self._study.add_trial(added)

    def parallel(self, title: str, scale: float) -> go.Figure:
        """Return Optuna's parallel coordinates of complete trials, with values times `scale`."""
        from optuna import visualization

        return visualization.plot_parallel_coordinate(self._scaled(scale), target_name=title)

    def slices(self, title: str, scale: float) -> dict[str, go.Figure]:
        """Return Optuna's slice of each parameter, with the trials' values times `scale`."""
        from optuna import visualization

        draw, study = visualization.plot_slice, self._scaled(scale)
        return {name: draw(study, [name], target_name=title) for name in sorted(self.params)}

    def importances(self) -> dict[str, float]:
        """Return the importance of each parameter by PED-ANOVA, largest first; their sum is 1."""
        return optuna.importance.get_param_importances(self._study)

    def _scaled(self, scale: float) -> optuna.Study:
        """Return a copy of the study in which the values of trials are times `scale`."""
        scaled = optuna.create_study(direction=self._study.direction)
        for trial in self._study.get_trials():
            if trial.value is not None:
                trial.value *= scale
            scaled.add_trial(trial)
        return scaled

    def _fits(self, params: Mapping[str, Any]) -> bool:
        return params.keys() == self.params.keys() and all(
            choices._contains(choices.to_internal_repr(params[name]))
            if not isinstance(choices, CategoricalDistribution)
            else params[name] in choices.choices
            for name, choices in self.params.items()
        )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = trial_seed(self.sweep_seed, f"suggestion/{self.variant}", number)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=self.startup_trials, multivariate=True
        )


def study_of(plan: Plan | RecordedPlan, variant: str, planned: Sequence[Trial] = ()) -> Study:
    """Return the study of a variant of a plan, with the trials that are planned already."""
    space = plan.space
    if isinstance(space, RecordedSpace):
        stored = space.params[variant].items()
        params = {name: json_to_distribution(json.dumps(value)) for name, value in stored}
    else:
        params = space.params_for(variant)
    study = Study(
        variant,
        params,
        mode=space.mode,
        startup_trials=space.startup_trials,
        sweep_seed=plan.seed,
        enqueued=space.enqueued if params else (),
    )
    for trial in planned:
        study.add_planned(trial)
    return study


def optuna_version() -> str:
    """Return the installed version of Optuna; other versions may suggest other values."""
    return optuna.__version__
