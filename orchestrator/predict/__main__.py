"""`python -m orchestrator.predict NAME|MLFLOW_RUN IMAGE...`: what a trained model sees in images.

NAME is a sweep in the storage: its best final trial answers, by the metric it was searched for,
else its best search trial. MLFLOW_RUN is the id of a run that holds a model. Images are of any size
and are cut to their centre square and resized as those of the dataset were. All of them are
answered or none: what cannot be read is named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import command
from orchestrator.errors import OrchestratorError
from orchestrator.predict import model as predict_model
from orchestrator.predict.find import PredictConfig, found
from orchestrator.predict.model import Answer, TrainedModel
from orchestrator.redaction import redacted

if TYPE_CHECKING:
    pass


def predict(config: PredictConfig) -> tuple[TrainedModel, list[Answer]]:
    """Find the model, let it answer for every image, and draw the picture if one is asked for.

    Raises:
        UsageError: the model or an image cannot be used; nothing was written.
    """
    with found(config) as model:
        named: list[tuple[str, bytes | Path]] = [(str(path), path) for path in config.images]
        pixels = predict_model.read_images(named, model.manifest)
        classifier = predict_model.load(model)
        answers = predict_model.answers(classifier, pixels)
        if config.picture is not None:
            from orchestrator.predict.picture import draw

            draw(config.picture, config.images, answers, classifier, pixels, title(model))
        return model, answers


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
