"""`SweepContext`: the objects that the parts of a running sweep share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from orchestrator.clock import Clock
from orchestrator.ledger.backup import LedgerBackup
from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.options import SweepConfig
from orchestrator.plan.plan import Costs, Plan
from orchestrator.storage.paths import SweepPaths
from orchestrator.sweep.signals import Interruption
from trainables.data.dataset import Manifest


@dataclass(frozen=True, slots=True)
class SweepContext:
    """The objects that the parts of a running sweep share."""

    config: SweepConfig
    clock: Clock
    ledger: Ledger  # open for writing
    plan: Plan
    costs: Costs
    manifest: Manifest
    backup: LedgerBackup | None  # None if the ledger is in the sweep's storage already
    console: Console  # on the user's terminal
    until_end: ExitStack  # closed last, when the ledger is closed and its locks are released
    interruption: Interruption = field(default_factory=Interruption)

    @property
    def paths(self) -> SweepPaths:
        """The sweep's files and folders."""
        return self.config.paths

    @property
    def options(self) -> Mapping[str, Any]:
        """The options in force, of this command and of earlier ones, by name."""
        return self.ledger.header().options

    @property
    def copied_seq(self) -> Callable[[], int] | None:
        """Returns the number of the last change in the ledger's copy; None without a copy."""
        backup = self.backup
        return None if backup is None else lambda: backup.copied_seq

    def warn(self, text: str) -> None:
        """Print a problem that does not end the sweep."""
        self.console.print(text, soft_wrap=True, style="yellow")

    def fail(self, text: str) -> None:
        """Print a problem that ends the sweep or leaves it incomplete."""
        self.console.print(text, soft_wrap=True, style="red")
