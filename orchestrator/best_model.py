"""Which trial of a sweep is its best, and the model it left; holds no state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import trained_model
from orchestrator.errors import UsageError
from orchestrator.ledger import retention
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Trial
from orchestrator.storage.paths import SweepPaths
from orchestrator.trained_model import TrainedModel

if TYPE_CHECKING:
    from trainables.data.dataset import Manifest


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
