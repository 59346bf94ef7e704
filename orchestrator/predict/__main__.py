"""`python -m orchestrator.predict NAME|MLFLOW_RUN IMAGE...`: classifies images.

NAME is a sweep in the storage. Its best final trial is used, by the metric that was searched for;
without final trials, its best search trial. MLFLOW_RUN is the id of a run that holds a model.
Images of any size are cropped to the centre square and resized, as the dataset's images were. If
one image cannot be read, none is classified, and the error names it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import command
from orchestrator.predict import find
from orchestrator.predict import model as predict_model
from orchestrator.predict.find import PredictConfig
from orchestrator.predict.model import Prediction, TrainedModel
from orchestrator.storage.arguments import add_data_dir, add_storage, add_tracking_uri
from trainables.metrics import is_fraction

if TYPE_CHECKING:
    from rich.table import Table


def predict(config: PredictConfig) -> tuple[TrainedModel, list[Prediction]]:
    """Return the model and its prediction for every image, and draw the picture if requested.

    Raises:
        UsageError: the model or an image cannot be used; nothing was written.
    """
    with find.find_model(config) as model:
        named: list[tuple[str, bytes | Path]] = [(str(path), path) for path in config.images]
        pixels = predict_model.read_images(named, model.manifest)
        classifier = predict_model.load(model)
        predictions = predict_model.predict(classifier, pixels)
        if config.picture is not None:
            from orchestrator.predict.picture import draw

            draw(config.picture, config.images, predictions, classifier, pixels, title(model))
        return model, predictions


def title(model: TrainedModel) -> str:
    """Return one line that describes the model."""
    about, text = model.about, model.config.variant
    if about.get("sweep"):
        text += f" of the sweep {about['sweep']!r}"
    if about.get("run_id"):
        text += f" from the MLflow run {about['run_id']}"
    facts = [about["trial"]] if about.get("trial") else []
    facts.append(f"epoch {about['epoch']}")
    if about.get("value") is not None:
        form = ".1%" if is_fraction(about["metric"]) else ".4f"
        facts.append(f"{about['metric']} {about['value']:{form}}")
    return f"{text} ({', '.join(facts)})"


def _table(config: PredictConfig, predictions: Sequence[Prediction]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    for path, prediction in zip(config.images, predictions, strict=True):
        name = Text(str(path))
        for label, value in zip(prediction.labels, prediction.probabilities, strict=True):
            table.add_row(name, Text(label), f"{value:.1%}")
            name = Text()
        table.add_section()
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.predict",
        description="Classify images with the best model of a sweep.",
    )
    add = parser.add_argument
    add("model", metavar="NAME|MLFLOW_RUN", help="name of a sweep, or id of an MLflow run")
    add(
        "images",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="image files of any size, or folders of them",
    )
    add("--variant", metavar="V", help="use the best trial of this variant (default: of all)")
    add("--json", dest="as_json", action="store_true", help="print JSON instead of a table")
    drawn = f"also draw images, Grad-CAM maps and labels: {', '.join(find.PICTURE_ENDINGS)}"
    add("--picture", type=Path, metavar="FILE", help=drawn)
    add_storage(add)
    add_tracking_uri(add)
    add_data_dir(add)
    command.add_verbose(add)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 (usage or input), 130 (Ctrl+C)."""
    return command.run(_parser(), _predict, argv)


def _predict(arguments: argparse.Namespace) -> int:
    values = {name: value for name, value in vars(arguments).items() if name != "verbose"}
    values["images"] = [file for path in values["images"] for file in find.image_files(path)]
    config = PredictConfig(**values)
    model, predictions = predict(config)
    if config.as_json:
        named = zip(config.images, predictions, strict=True)
        entries = [{"image": str(path), **prediction.to_dict()} for path, prediction in named]
        about = {**model.about, "variant": model.config.variant, "dataset": model.manifest.name}
        shown = {"model": about, "predictions": entries}
        command.say(json.dumps(shown, indent=1, sort_keys=True))
        return command.COMPLETE
    command.say(f"{title(model)}:")
    command.console_on(sys.stdout).print(_table(config, predictions))
    if config.picture is not None:
        command.say(f"Picture: {config.picture}")
    return command.COMPLETE


if __name__ == "__main__":
    command.exit_fast(main)
