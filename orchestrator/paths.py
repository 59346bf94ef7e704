"""Every file and folder of a sweep: the only code that knows their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SweepPaths:
    """Where one sweep lives below the storage folder."""

    storage: Path
    name: str

    @property
    def root(self) -> Path:
        """The sweep's own folder."""
        return self.storage / self.name

    @property
    def ledger(self) -> Path:
        """The one file from which everything else can be rebuilt."""
        return self.root / "ledger.sqlite"

    @property
    def lock(self) -> Path:
        """Held by the driver while it runs."""
        return self.root / "driver.lock"

    @property
    def log(self) -> Path:
        """What Ray and the libraries say."""
        return self.root / "driver.log"

    @property
    def default_tracking_uri(self) -> str:
        """MLflow's store when none is given: one SQLite file for all sweeps of this storage."""
        return f"sqlite:///{(self.storage / 'mlflow.db').absolute()}"

    @property
    def artifacts(self) -> Path:
        """Where MLflow keeps artifacts when the store is a file."""
        return self.storage / "mlartifacts"

    def trial(self, signature: str) -> Path:
        """A trial's logs and checkpoints."""
        return self.root / "trials" / signature


def is_sweep_name(name: str) -> bool:
    """Return whether a name can be a folder anywhere: letters, digits, '.', '_' and '-'."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name))


def sweep_names(storage: Path) -> list[str]:
    """Return the sweeps that exist in a storage folder, sorted."""
    return sorted(path.parent.name for path in storage.glob("*/ledger.sqlite"))
