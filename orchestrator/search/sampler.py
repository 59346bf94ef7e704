"""The only door to Optuna, and early stopping: both are functions of the ledger's rows.

One in-memory study per variant, TPE, seeded per suggestion; rebuilt from the ledger it makes the
same suggestions. Optuna's pruners are not used: on a rebuilt study they decide otherwise, and they
refuse finished trials. Asynchronous successive halving is `is_stopped` below.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    json_to_distribution,
)
from optuna.trial import TrialState, create_trial

from orchestrator.ledger.records import EpochRow, Trial
from orchestrator.plan.plan import trial_seed

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from orchestrator.plan.plan import Plan


class Study:
    """One variant's study. Trial numbers here are the ledger's, in the order they were planned."""

    def __init__(
        self,
        variant: str,
        params: Mapping[str, BaseDistribution],
        *,
        mode: Literal["max", "min"],
        startup_trials: int,
        sweep_seed: int,
        enqueued: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Start empty.

        Args:
            variant: whose study it is.
            params: what is searched.
            mode: which way the metric gets better.
            startup_trials: random suggestions before the sampler models anything.
            sweep_seed: the sweep's.
            enqueued: the first suggestions, in place of the sampler's.
        """
        self.variant, self.mode, self.enqueued = variant, mode, enqueued
        # Sorted, since the sampler draws in this order: a space with its lines swapped is the same.
        self.params = dict(sorted(params.items()))
        self.startup_trials, self.sweep_seed = startup_trials, sweep_seed
        self._foreign: set[int] = set()  # numbers of trials from another space
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every new study
        self._study = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize",
            sampler=self._sampler(0),
        )

    def ask(self, number: int) -> dict[str, Any]:
        """Suggest the parameters of trial `number`, from everything told so far."""
        self._study.sampler = self._sampler(number)
        if number < len(self.enqueued):
            self._study.enqueue_trial(dict(self.enqueued[number]))
        trial = self._study.ask(self.params)
        assert trial.number == number, "trials are asked for in order"
        return dict(trial.params)

    def tell(self, trial: Trial, rows: Sequence[EpochRow], metric: str) -> None:
        """Take a trial's end.

        A complete one counts with its best value; a stopped one is pruned with its intermediate
        values; a diverged one is pruned without any, which TPE ranks worst of all; a failed one
        says nothing about its parameters and is a FAIL, which TPE leaves out.
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
        """Put back, while rebuilding, a trial that was suggested earlier.

        One whose parameters the space no longer has (after `--force`) says nothing to the sampler.
        """
        known = self._study.get_trials(deepcopy=False)
        assert trial.number == len(known), "trials are rebuilt in order"
        if not self._fits(trial.params):
            self._foreign.add(trial.number)
            self._study.add_trial(create_trial(state=TrialState.FAIL))
            return
        self._study.add_trial(
            create_trial(state=TrialState.RUNNING, params=trial.params, distributions=self.params)
        )

    def figures(self, metric: str) -> dict[str, go.Figure]:
        """Return Optuna's own figures of the complete trials, one or more of them.

        Returns:
            "parallel" (coordinates), "slices" and "importance".
        """
        from optuna import visualization

        return {
            "parallel": visualization.plot_parallel_coordinate(self._study, target_name=metric),
            "slices": visualization.plot_slice(self._study, target_name=metric),
            "importance": visualization.plot_param_importances(self._study, target_name=metric),
        }

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
            seed=seed,
            n_startup_trials=self.startup_trials,
            multivariate=True,
        )


def new_study(plan: Plan, variant: str) -> Study:
    """Return a variant's study before its first suggestion."""
    space = plan.space
    return Study(
        variant,
        space.params_for(variant),
        mode=space.mode,
        startup_trials=space.startup_trials,
        sweep_seed=plan.seed,
        enqueued=space.enqueued if space.params_for(variant) else (),
    )


def read_params(stored: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return the searched parameters of a variant from what the ledger's plan says of them."""
    return {name: json_to_distribution(json.dumps(value)) for name, value in stored.items()}


def optuna_version() -> str:
    """Return the version of Optuna that suggests here; another one may suggest otherwise."""
    return optuna.__version__
