"""Which trial of a sweep is its best, and the model it left; holds no state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import finals, retention, trained_model
from orchestrator.errors import UsageError
from orchestrator.ledger import Ledger, Trial
from orchestrator.storage.paths import SweepPaths
from orchestrator.trained_model import TrainedModel

if TYPE_CHECKING:
    from trainables.data.dataset import Manifest


def best_trial(trials: Sequence[Trial], mode: str) -> Trial | None:
    """Return the best trial by the validation part, None where none ended well.

    A variant's final trials stand for it where there are any; the test part has no say in it.

    Args:
        trials: of a sweep, or of one variant.
        mode: "max" or "min": which values of the metric are good.
    """
    sign = -1 if mode == "max" else 1
    values = finals.values(trials)
    candidates: list[Trial] = []
    for variant in {trial.variant for trial in trials}:
        own = [t for t in trials if t.variant == variant and t.signature in values]
        # Those of a configuration that a longer search has beaten stand for nothing any more.
        again = [t for t in finals.current(own, variant, mode) if t.status == "complete"]
        candidates += again or [t for t in own if t.stage == "search"]

    def rank(trial: Trial) -> tuple[bool, float, int]:
        """One that was stopped early only where nothing else is; of equal ones the earlier."""
        return trial.status != "complete", sign * values[trial.signature], trial.planned_seq

    usable = [trial for trial in candidates if trial.status in ("complete", "stopped")]
    return min(usable, key=rank, default=None)


def model_of(ledger: Ledger, paths: SweepPaths, trial: Trial, manifest: Manifest) -> TrainedModel:
    """Return the model of a trial's best epoch.

    Args:
        ledger: the sweep's.
        paths: its folder; what only its storage has is brought here.
        trial: one that has ended.
        manifest: of the dataset it was trained on.

    Raises:
        UsageError: its checkpoint is gone or damaged, or the dataset is another one.
    """
    folder: Path | None = retention.best_checkpoint(ledger, paths, trial)
    if folder is None:
        raise UsageError(
            f"The checkpoint of the best epoch of the trial {trial.name} is not in "
            f"{paths.trial(trial.signature)}. Was it deleted? Name another --variant, or the "
            "trial's run in MLflow."
        )
    about: dict[str, Any] = {
        "sweep": paths.name,
        "sweep_id": ledger.get("sweep_id"),
        "trial": trial.name,
        "variant": trial.variant,
        "metric": ledger.get("plan")["space"]["metric"],
        "value": trial.best_value,
    }
    return trained_model.from_checkpoint(folder, manifest, about)
