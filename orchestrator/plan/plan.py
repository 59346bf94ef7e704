"""`Plan`: what a sweep is to do, resolved from the space and the command line."""

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
    """What a sweep is to do, resolved: variants in their order and each one's image size.

    `overrides` are the training parameters that the command line decides. After a variant's search
    its best configuration is trained again with `final_seeds` seeds, with `final_on_all` on the
    whole training part.
    """

    space: SearchSpace
    seed: int
    trials: int  # per variant
    variants: tuple[str, ...]
    image_size_px: Mapping[str, int]
    dataset: str
    fingerprint: str
    overrides: Mapping[str, Any]
    final_seeds: int = 0
    final_on_all: bool = False

    def identity(self) -> dict[str, Any]:
        """Return what must not change when a sweep is continued, JSON-ready."""
        return {
            "space": self.space.to_dict(self.variants),
            "seed": self.seed,
            "image_size_px": dict(self.image_size_px),
            "dataset": self.dataset,
            "fingerprint": self.fingerprint,
            "overrides": dict(self.overrides),
        }

    def epochs(self, variant: str) -> int:
        """Return how long a trial of a variant trains if nothing stops it."""
        return int(self.overrides.get("epochs", self.space.fixed_for(variant).get("epochs", 0)))

    def train_config(
        self, variant: str, number: int, params: Mapping[str, Any], stage: Stage = "search"
    ) -> TrainConfig:
        """Return the configuration of one trial; of a final one `number` says which seed."""
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
        """How many final trials follow the searches, when each of those finds a best one."""
        searched = [variant for variant in self.variants if self.space.params_for(variant)]
        return self.final_seeds * len(searched)

    @property
    def num_trials(self) -> int:
        """How many trials there are in all, the final ones among them."""
        return self.trials * len(self.variants) + self.num_finals

    def is_evaluated(self, trial: Trial) -> bool:
        """Return whether a trial is evaluated on the test split when it is complete."""
        return is_evaluated(
            trial.stage,
            trial.number,
            num_params=len(self.space.params_for(trial.variant)),
            num_enqueued=len(self.space.enqueued),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantCost:
    """What a variant costs: `parameters` are trainable ones, operations are per image, forward."""

    image_size_px: int
    parameters: int
    multiply_accumulates: int


def trial_seed(sweep_seed: int, variant: str, number: int) -> int:
    """Return a trial's own seed, 0 to 2**31 - 1, a function of sweep seed, variant and number."""
    digest = hashlib.sha256(f"{sweep_seed}/{variant}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
