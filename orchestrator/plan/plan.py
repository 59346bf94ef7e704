"""`Plan`: the trials that a sweep will run, resolved from the space and the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger.header import is_evaluated
from orchestrator.ledger.records import Stage, Trial
from search_spaces.space import SearchSpace
from trainables.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The trials that a sweep will run."""

    space: SearchSpace
    seed: int  # of the sweep; the seed of every trial is a function of it
    trials: int  # search trials per variant
    variants: tuple[str, ...]  # in the order in which they run
    image_size_px: Mapping[str, int]  # resolved image size, by variant
    dataset: str
    fingerprint: str  # of the prepared dataset's contents
    overrides: Mapping[str, Any]  # training parameters that the command line sets for every trial
    final_seeds: int = 0  # seeds with which the best configuration of a variant is trained again
    final_on_all: bool = False  # final trials train on all training images, without validation

    def identity(self) -> dict[str, Any]:
        """Return everything that a resumed sweep must not change, ready for JSON."""
        return {
            "space": self.space.to_dict(self.variants),
            "seed": self.seed,
            "image_size_px": dict(self.image_size_px),
            "dataset": self.dataset,
            "fingerprint": self.fingerprint,
            "overrides": dict(self.overrides),
        }

    def epochs(self, variant: str) -> int:
        """Return the epochs of a trial that is not stopped early."""
        return int(self.overrides.get("epochs", self.space.fixed_for(variant).get("epochs", 0)))

    def train_config(
        self, variant: str, number: int, params: Mapping[str, Any], stage: Stage = "search"
    ) -> TrainConfig:
        """Return the configuration of one trial; of a final trial, `number` selects the seed."""
        is_final = stage == "final"
        on_all = {"validation_fraction": 0.0} if is_final and self.final_on_all else {}
        return self.space.train_config(
            variant,
            params,
            dataset=self.dataset,
            fingerprint=self.fingerprint,
            image_size_px=self.image_size_px[variant],
            seed=trial_seed(self.seed, f"{variant}/final" if is_final else variant, number),
            overrides={**self.overrides, **on_all},
        )

    @property
    def num_finals(self) -> int:
        """The number of final trials, if every search has a best trial."""
        searched = [variant for variant in self.variants if self.space.params_for(variant)]
        return self.final_seeds * len(searched)

    @property
    def num_trials(self) -> int:
        """The number of all trials, final trials included."""
        return self.trials * len(self.variants) + self.num_finals

    def is_evaluated(self, trial: Trial) -> bool:
        """Return whether a trial is evaluated on the test split once it is complete."""
        return is_evaluated(trial, self.space.params_for(trial.variant), self.space.enqueued)


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantCost:
    """Trainable parameters of a variant, and operations of one image forward."""

    image_size_px: int
    parameters: int
    multiply_accumulates: int


Costs = Mapping[str, VariantCost]  # by variant


def trial_seed(sweep_seed: int, variant: str, number: int) -> int:
    """Return the seed of a trial, 0 to 2**31 - 1."""
    digest = hashlib.sha256(f"{sweep_seed}/{variant}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
