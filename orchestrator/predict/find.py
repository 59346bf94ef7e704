"""Finds the trained model of a sweep or of an MLflow run."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import SweepNotFoundError, UsageError, unknown_name
from orchestrator.ledger import ranking, retention
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Trial
from orchestrator.ledger.snapshot import ledger_copy
from orchestrator.predict import model as predict_model
from orchestrator.predict.model import TrainedModel
from orchestrator.storage import sweeps
from orchestrator.storage.paths import SweepPaths, data_location, sweep_paths
from orchestrator.storage.store import StorageError
from trainables.config import TrainConfig

if TYPE_CHECKING:
    from trainables.data.dataset import Manifest

PICTURE_ENDINGS = (".png", ".jpg", ".pdf", ".svg")
MAX_IN_PICTURE = 64  # images; a taller picture is too large for most viewers
_WAY_OUT = (
    "Give another place with --storage, or the id of an MLflow run (32 hexadecimal digits) instead "
    "of the name."
)


def model_of_trial(
    ledger: Ledger, paths: SweepPaths, trial: Trial, manifest: Manifest
) -> TrainedModel:
    """Return the model of the best epoch of a trial that has ended.

    A checkpoint that only the sweep's storage has is fetched.

    Raises:
        UsageError: its checkpoint is missing or damaged, or the dataset is another one.
    """
    folder = retention.best_checkpoint(ledger, paths, trial)
    if folder is None:
        raise UsageError(
            f"The checkpoint of the best epoch of the trial {trial.name} is not in "
            f"{paths.trial(trial.signature)}. It may have been deleted. Choose another --variant, "
            "or give the id of the trial's MLflow run instead of the sweep."
        )
    header = ledger.header()
    about: dict[str, Any] = {"sweep": paths.name, "sweep_id": header.sweep_id}
    about["metric"] = header.plan.space.metric
    about |= {"trial": trial.name, "variant": trial.variant, "value": trial.best_value}
    return predict_model.from_checkpoint(folder, manifest, about)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """The parsed command line."""

    model: str
    images: Sequence[Path]
    storage: Path | str = Path("results")  # a text is an address
    variant: str | None = None
    tracking_uri: str | None = None
    data_dir: Path | str = Path("data")  # a text is an address
    as_json: bool = False
    picture: Path | None = None

    def __post_init__(self) -> None:
        if self.picture is not None and (problems := [*self._picture_problems(self.picture)]):
            raise UsageError("\n".join(problems))

    def _picture_problems(self, file: Path) -> Iterator[str]:
        if file.suffix.lower() not in PICTURE_ENDINGS:
            yield f"`--picture` must end in {', '.join(PICTURE_ENDINGS)}; got {str(file)!r}."
        if not file.absolute().parent.is_dir():
            yield f"There is no folder {file.parent} for `--picture`. Create it first."
        if file.resolve() in {image.resolve() for image in self.images}:
            yield f"`--picture` would replace the image {str(file)!r}."
        if len(self.images) > MAX_IN_PICTURE:
            text = f"A picture shows at most {MAX_IN_PICTURE} images; got {len(self.images)}. "
            yield f"{text}Give fewer images, or leave out `--picture`."


def image_files(path: Path) -> list[Path]:
    """Return the image files in a folder, without its folders; the path itself if it has none."""
    from orchestrator.data.sources.source import is_no_image  # numpy, for which --help cannot wait

    inside = sorted(path.iterdir()) if path.is_dir() else []
    return [file for file in inside if file.is_file() and not is_no_image(file.name)] or [path]


@contextlib.contextmanager
def find_model(config: PredictConfig) -> Iterator[TrainedModel]:
    """Yield the model of the sweep or run; its files may be deleted after the block.

    Raises:
        UsageError: there is no such sweep or run, or it has no weights.
    """
    with tempfile.TemporaryDirectory(prefix="sweep-predict-") as folder:
        try:
            paths = sweeps.find_sweep(config.storage, config.model, way_out=_WAY_OUT)
        except SweepNotFoundError:
            if not re.fullmatch(r"[0-9a-f]{32}", config.model):
                raise
            yield _of_run(config, Path(folder))
        except StorageError as error:
            raise UsageError(str(error)) from error
        else:
            with ledger_copy(paths) as ledger:
                yield _of_sweep(config, paths, ledger)


def _of_sweep(config: PredictConfig, paths: SweepPaths, ledger: Ledger) -> TrainedModel:
    trials = ledger.trials()
    if config.variant is not None:
        variants = {trial.variant for trial in trials}
        if config.variant not in variants:
            raise UsageError(unknown_name("variant of this sweep", config.variant, variants))
        trials = [trial for trial in trials if trial.variant == config.variant]
    header = ledger.header()
    trial = ranking.best_trial(trials, header.plan.space.mode)
    if trial is None:
        raise UsageError(
            f"The sweep {paths.name!r} has no model yet: no trial"
            f"{f' of {config.variant}' if config.variant else ''} has ended without a failure. "
            "Resume it with `python -m orchestrator.sweep ... --resume`."
        )
    manifest = _manifest(config, header.manifest, trial.config)
    return model_of_trial(ledger, paths, trial, manifest)


def _of_run(config: PredictConfig, folder: Path) -> TrainedModel:
    from orchestrator.predict.mlflow_model import fetch_files

    uri = config.tracking_uri or sweep_paths(config.storage, "any").default_tracking_uri
    files, kind, tags = fetch_files(config.model, uri, folder)
    about = {"run_id": config.model, "trial": tags.get("mlflow.runName", "")}
    if kind == "exported":
        model = predict_model.read_folder(files)
        return replace(model, about={**model.about, "run_id": config.model})
    path = files / predict_model.FACTS
    try:
        recipe = json.loads(path.read_text())
        trained = TrainConfig.from_dict(recipe["config"])
        about["epoch"] = recipe["best_epoch"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"The MLflow run {config.model!r} has an incomplete model: its weights/{path.name} "
            f"cannot be read ({error})."
        ) from error
    manifest = _manifest(config, recipe.get("manifest"), recipe["config"])
    weights = files / predict_model.WEIGHTS
    return TrainedModel(weights=weights, config=trained, manifest=manifest, about=about)


def _manifest(config: PredictConfig, recorded: Any, trained: dict[str, Any]) -> Manifest:
    """Return the recorded manifest of the model's dataset, else that of the prepared dataset."""
    from orchestrator.data import share
    from trainables.data.dataset import DatasetError, load_manifest

    if recorded is not None and recorded["fingerprint"] == trained["dataset_fingerprint"]:
        return predict_model.manifest_of(recorded)
    place = data_location(config.data_dir)
    folder = place.folder / trained["dataset"]
    try:
        if place.address is not None:
            share.fetch(place.address, folder)
        manifest = load_manifest(folder)
    except (DatasetError, StorageError) as error:
        raise UsageError(
            "The class names are those of the prepared dataset, which --data-dir must name. "
            f"{error}"
        ) from error
    if manifest.fingerprint != trained["dataset_fingerprint"]:
        raise UsageError(
            f"{folder} is not the dataset that the model was trained on: its fingerprint is "
            f"{manifest.fingerprint!r}, not {trained['dataset_fingerprint']!r}. Give the folder of "
            "the right dataset with --data-dir."
        )
    return manifest
