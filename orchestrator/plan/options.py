"""`SweepConfig`: the options of one sweep command. Hyperparameters are set in the space."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.storage import paths as storage_paths
from orchestrator.storage import tracking_uri


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """The options of one command; None: the value of the space, the cluster or the sweep."""

    space: str
    trials: int | None = None
    final_seeds: int | None = None
    final_on_all: bool | None = None
    epochs: int | None = None
    variants: tuple[str, ...] | None = None
    dataset: str | None = None
    seed: int | None = None
    image_size: str | None = None
    weights: str | None = None
    max_concurrent: int | None = None
    gpus_per_trial: float | None = None
    workers_per_trial: int | None = None
    data_dir: Path | str = Path("data")  # str: an address
    storage: Path | str = Path("results")  # str: an address
    tracking_uri: str | None = None
    register: str | None = None
    address: str | None = None
    name: str = ""
    keep: str | None = None
    budget_s: float | None = None
    max_device_hours: float | None = None
    hang_timeout_s: float = 600.0
    resume: bool = False
    retry_failed: bool = True
    from_scratch: bool = False
    force: bool = False
    dry_run: bool = False
    measure: bool = False
    verbose: bool = False
    verify: bool = False
    words: tuple[str, ...] = ()  # the command's arguments as they were typed

    def __post_init__(self) -> None:
        problems = [*self._number_problems(), *self._word_problems()]
        if self.from_scratch and not self.retry_failed:
            problems.append("`--from-scratch` retries failed trials, `--no-retry-failed` does not.")
        if problems:
            raise UsageError("\n".join(problems))

    def _number_problems(self) -> list[str]:
        problems = []
        for flag, value, low in (
            ("--trials", self.trials, 1),
            ("--epochs", self.epochs, 1),
            ("--seed", self.seed, 0),
            ("--final-seeds", self.final_seeds, 0),
            ("--max-concurrent", self.max_concurrent, 1),
            ("--workers-per-trial", self.workers_per_trial, 1),
        ):
            if value is not None and value < low:
                problems.append(f"`{flag}` must be {low} or more; got {value}.")
        share = self.gpus_per_trial
        if share is not None and not (0 <= share <= 1 or (share > 1 and share.is_integer())):
            problems.append(f"`--gpus-per-trial` must be 0 to 1, or a whole number; got {share:g}.")
        limits = {"--budget": self.budget_s, "--max-device-hours": self.max_device_hours}
        for flag, limit in limits.items():
            if limit is not None and not limit > 0:
                problems.append(f"`{flag}` must be above 0; got {limit:g}.")
        if not self.hang_timeout_s > 0:
            problems.append(f"`--hang-timeout` must be above 0 s; got {self.hang_timeout_s:g}.")
        return problems

    def _word_problems(self) -> list[str]:
        problems = []
        if self.variants == ():
            problems.append("`--variants` must list at least one model, separated by commas.")
        size = self.image_size
        if size not in (None, "native", "paper") and not (size.isdecimal() and int(size) > 0):
            problems.append(f"`--image-size` must be native, paper or pixels; got {size!r}.")
        weights = self.weights
        if weights not in (None, "none", "imagenet") and not weights.endswith(".safetensors"):
            problems.append(
                "`--weights` must be none, imagenet or the path of a .safetensors file; got "
                f"{weights!r}."
            )
        if self.keep is not None and not re.fullmatch(r"best-[1-9]\d*|last|all", self.keep):
            problems.append(
                f"`--keep` must be best-K (such as best-3), last or all; got {self.keep!r}."
            )
        if not storage_paths.is_sweep_name(self.name):
            problems.append(
                "`--name` must be letters, digits, '.', '_' and '-', starting with a letter or "
                f"digit; got {self.name!r}."
            )
        if self.register is not None and not re.fullmatch(r"\w[\w .-]{0,249}", self.register):
            problems.append(
                "`--register` must be letters, digits, spaces, '.', '_' and '-', starting with a "
                f"letter, digit or '_'; got {self.register!r}."
            )
        if self.tracking_uri is not None:
            problems += filter(None, [tracking_uri.problem(self.tracking_uri)])
        return problems

    @property
    def data(self) -> storage_paths.DataLocation:
        """Where prepared datasets are."""
        return storage_paths.data_location(self.data_dir)

    @property
    def paths(self) -> storage_paths.SweepPaths:
        """The sweep's files and folders."""
        return storage_paths.sweep_paths(str(self.storage), self.name)


def given_options(config: SweepConfig) -> dict[str, Any]:
    """Return the given flags that a resumed sweep keeps, for the ledger."""
    names = (
        *("trials", "epochs", "variants", "dataset", "seed", "image_size", "weights"),
        *("final_seeds", "final_on_all", "workers_per_trial", "gpus_per_trial", "keep", "register"),
    )
    options = {name: getattr(config, name) for name in names}
    if config.variants:
        options["variants"] = list(config.variants)
    return {name: value for name, value in options.items() if value is not None}
