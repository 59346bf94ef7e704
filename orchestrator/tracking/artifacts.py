"""Files that a sweep writes into its MLflow runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.ledger.header import read_header
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Trial


@dataclass(frozen=True, slots=True)
class Product:
    """A folder, and what tells whether another copy of it is the same."""

    name: str
    folder: Path
    mark: str


def rebuild_recipe(ledger: Ledger, trial: Trial) -> dict[str, Any]:
    """Return what it takes to build the model again and load its weights."""
    header = read_header(ledger)
    return {
        "config": trial.config,
        "dataset": header.dataset,
        "manifest": header.manifest,
        "best_epoch": trial.best_epoch,
        "versions": header.versions,
        "how": "trainables.models.build.build_model(TrainConfig.from_dict(config), ...), then "
        "load_state_dict(safetensors.torch.load_file('model.safetensors'))",
    }
