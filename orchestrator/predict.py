"""`python -m orchestrator.predict NAME|MLFLOW_RUN IMAGE...`: what a trained model sees in images.

NAME is a sweep in the storage: its best final trial answers, by the metric it was searched for,
else its best search trial. MLFLOW_RUN is the id of a run that holds a model. Images are of any size
and are cut to their centre square and resized as those of the dataset were. All of them are
answered or none: what cannot be read is named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import best_model, command, trained_model
from orchestrator.errors import OrchestratorError, UsageError, unknown_name
from orchestrator.ledger import ranking
from orchestrator.ledger.snapshot import ledger_copy
from orchestrator.redaction import redacted
from orchestrator.storage import sweeps
from orchestrator.storage.paths import SweepPaths, is_sweep_name, sweep_names, sweep_paths
from orchestrator.storage.store import StorageError
from orchestrator.trained_model import Answer, TrainedModel
from trainables.config import TrainConfig

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger
    from trainables.data.dataset import Manifest

PICTURE_ENDINGS = (".png", ".jpg", ".pdf", ".svg")
MOST_IN_PICTURE = 64  # images; more would be a picture too tall for any viewer


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """What the command line asked for."""

    model: str
    images: tuple[Path, ...]
    storage: str = "results"
    variant: str | None = None
    tracking_uri: str | None = None
    data_dir: Path = Path("data")
    as_json: bool = False
    picture: Path | None = None

    def __post_init__(self) -> None:
        if self.picture is None:
            return
        problems = []
        if self.picture.suffix.lower() not in PICTURE_ENDINGS:
            problems.append(
                f"`--picture` must end in {', '.join(PICTURE_ENDINGS)}; got {str(self.picture)!r}."
            )
        if not self.picture.absolute().parent.is_dir():
            problems.append(f"There is no folder {self.picture.parent} for `--picture`. Make it.")
        if self.picture.resolve() in {image.resolve() for image in self.images}:
            problems.append(f"`--picture` would replace the image {str(self.picture)!r}.")
        if len(self.images) > MOST_IN_PICTURE:
            problems.append(
                f"A picture shows {MOST_IN_PICTURE} images at most; got {len(self.images)}. Give "
                "fewer, or leave out `--picture`."
            )
        if problems:
            raise UsageError("\n".join(problems))


def predict(config: PredictConfig) -> tuple[TrainedModel, list[Answer]]:
    """Find the model, let it answer for every image, and draw the picture if one is asked for.

    Raises:
        UsageError: the model or an image cannot be used; nothing was written.
    """
    with found(config) as model:
        named: list[tuple[str, bytes | Path]] = [(str(path), path) for path in config.images]
        pixels = trained_model.read_images(named, model.manifest)
        classifier = trained_model.load(model)
        answers = trained_model.answers(classifier, pixels)
        if config.picture is not None:
            from orchestrator.prediction_picture import draw

            draw(config.picture, config.images, answers, classifier, pixels, title(model))
        return model, answers


@contextlib.contextmanager
def found(config: PredictConfig) -> Iterator[TrainedModel]:
    """Yield the model that was named; its files may go away with the block.

    Raises:
        UsageError: there is none of that name, or it has no weights.
    """
    paths = sweep_paths(config.storage, config.model) if is_sweep_name(config.model) else None
    with tempfile.TemporaryDirectory(prefix="sweep-predict-") as folder:
        if paths is not None and _has_sweep(paths):
            with ledger_copy(paths) as ledger:
                yield _of_sweep(config, paths, ledger)
        elif re.fullmatch(r"[0-9a-f]{32}", config.model):
            yield _of_run(config, Path(folder))
        else:
            anywhere = sweep_paths(config.storage, "any")
            known = set(sweep_names(anywhere.storage))
            if anywhere.durable:
                known |= set(sweeps.sweeps_in(anywhere.durable))
            raise UsageError(
                f"{unknown_name('sweep', config.model, known)} It is looked for in "
                f"{redacted(config.storage)}; --storage names another place. A run of MLflow is "
                "named by its id of 32 hexadecimal digits."
            )


def title(model: TrainedModel) -> str:
    """Return one line that says which model answers."""
    about = model.about
    parts = [model.config.variant]
    if about.get("sweep"):
        parts.append(f"of the sweep {about['sweep']!r}")
    if about.get("run_id"):
        parts.append(f"from the MLflow run {about['run_id']}")
    trial = about.get("trial")
    parts.append(f"({trial + ', ' if trial else ''}epoch {int(about['epoch']) + 1}")
    if about.get("value") is not None:
        parts[-1] += f", {about['metric']} {about['value']:.4f}"
    return " ".join(parts) + ")"


def _has_sweep(paths: SweepPaths) -> bool:
    try:
        return sweeps.has_sweep(paths)
    except StorageError as error:
        raise UsageError(str(error)) from error


def _of_sweep(config: PredictConfig, paths: SweepPaths, ledger: Ledger) -> TrainedModel:
    trials = ledger.trials()
    if config.variant is not None:
        variants = {trial.variant for trial in trials}
        if config.variant not in variants:
            raise UsageError(unknown_name("variant of this sweep", config.variant, variants))
        trials = [trial for trial in trials if trial.variant == config.variant]
    trial = ranking.best_trial(trials, ledger.get("plan")["space"]["mode"])
    if trial is None:
        raise UsageError(
            f"The sweep {paths.name!r} has no trial that ended well"
            f"{f' of {config.variant}' if config.variant else ''}, so it has no model yet. "
            "`python -m orchestrator.sweep ... --resume` goes on with it."
        )
    manifest = _manifest(config, ledger.get("manifest"), trial.config)
    return best_model.model_of(ledger, paths, trial, manifest)


def _of_run(config: PredictConfig, folder: Path) -> TrainedModel:
    from orchestrator.mlflow_model import fetch_files

    uri = config.tracking_uri or sweep_paths(config.storage, "any").default_tracking_uri
    files, kind, tags = fetch_files(config.model, uri, folder)
    about = {"run_id": config.model, "trial": tags.get("mlflow.runName", "")}
    if kind == "exported":
        model = trained_model.read_folder(files)
        return TrainedModel(
            weights=model.weights,
            config=model.config,
            manifest=model.manifest,
            about={**model.about, "run_id": config.model},
        )
    try:
        recipe = json.loads((files / trained_model.FACTS).read_text())
        trained = TrainConfig.from_dict(recipe["config"])
        about["epoch"] = recipe["best_epoch"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"The MLflow run {config.model!r} does not hold the whole of a model: its "
            f"weights/{trained_model.FACTS} cannot be read ({error})."
        ) from error
    manifest = _manifest(config, recipe.get("manifest"), recipe["config"])
    return TrainedModel(
        weights=files / trained_model.WEIGHTS, config=trained, manifest=manifest, about=about
    )


def _manifest(config: PredictConfig, kept: Any, trained: dict[str, Any]) -> Manifest:
    """Return the dataset's manifest: the one that was kept, else the prepared dataset's."""
    from trainables.data.dataset import DatasetError, load_manifest

    if kept is not None and kept["fingerprint"] == trained["dataset_fingerprint"]:
        return trained_model.manifest_of(kept)
    try:
        manifest = load_manifest(config.data_dir / trained["dataset"])
    except DatasetError as error:
        raise UsageError(
            f"The names of the classes stand with the prepared dataset, which --data-dir names. "
            f"{error}"
        ) from error
    if manifest.fingerprint != trained["dataset_fingerprint"]:
        raise UsageError(
            f"{config.data_dir / trained['dataset']} is another dataset than the model was trained "
            f"on: its fingerprint is {manifest.fingerprint!r}, not "
            f"{trained['dataset_fingerprint']!r}. Name the folder of the right one with --data-dir."
        )
    return manifest


def _print_table(config: PredictConfig, model: TrainedModel, answers: Sequence[Answer]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = command.console_on(sys.stdout)
    console.print(Text(f"{title(model)}:"), soft_wrap=True)
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    for path, answer in zip(config.images, answers, strict=True):
        for rank, (label, probability) in enumerate(
            zip(answer.labels, answer.probabilities, strict=True)
        ):
            name = Text(str(path)) if rank == 0 else ""
            table.add_row(name, Text(label), f"{probability:.2%}")
        table.add_section()
    console.print(table)
    if config.picture is not None:
        console.print(f"Picture: {config.picture}", soft_wrap=True, highlight=False, markup=False)


def _print_json(config: PredictConfig, model: TrainedModel, answers: Sequence[Answer]) -> None:
    predictions = [
        {"image": str(path), **answer.to_dict()}
        for path, answer in zip(config.images, answers, strict=True)
    ]
    about = {**model.about, "variant": model.config.variant, "dataset": model.manifest.name}
    print(json.dumps({"model": about, "predictions": predictions}, indent=1, sort_keys=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.predict",
        description="Classify images with the best model of a sweep.",
    )
    add = parser.add_argument
    add("model", metavar="NAME|MLFLOW_RUN", help="a sweep, or the id of a run that holds a model")
    add("images", nargs="+", type=Path, metavar="IMAGE", help="image files of any size")
    add(
        "--storage",
        default="results",
        metavar="PLACE",
        help="where sweeps live: a folder, s3://bucket/prefix or file:///folder (default: results)",
    )
    add("--variant", metavar="V", help="the best of this model (default: the best of all)")
    add(
        "--tracking-uri",
        metavar="URI",
        help="MLflow, for MLFLOW_RUN (default: the SQLite file in the storage folder)",
    )
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="prepared datasets")
    add("--json", dest="as_json", action="store_true", help="print JSON in place of a table")
    add("--picture", type=Path, metavar="FILE", help="also draw images, maps and labels: .png, ...")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 (usage or input), 130 (Ctrl+C)."""
    values = vars(_parser().parse_args(argv))
    try:
        config = PredictConfig(**{**values, "images": tuple(values["images"])})
        model, answers = predict(config)
        (_print_json if config.as_json else _print_table)(config, model, answers)
        return 0
    except (OrchestratorError, OSError) as error:
        print(redacted(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    command.exit_fast(main)
