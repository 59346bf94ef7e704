"""Draws predictions: each image, its Grad-CAM map, and its most probable labels.

The map shows which places of the image speak for the first label.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.decode import read_image
from orchestrator.errors import UsageError
from orchestrator.predict.model import Prediction
from trainables import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from trainables.evaluation.classifier import Classifier

_SHOWN_PX = 256  # height and width of an image as it is drawn
_ROW_IN = 2.2  # inches
_LONGEST_LABEL = 32  # characters


def draw(
    file: Path,
    images: Sequence[Path],
    predictions: Sequence[Prediction],
    classifier: Classifier,
    pixels: npt.NDArray[np.uint8],
    title: str,
) -> None:
    """Write a picture with one row per image, whole or not at all; its suffix is its format.

    `pixels` (n, h, w, c) are the images as `read_images` returns them. The column of maps is left
    out if the classifier has none.

    Raises:
        UsageError: the file cannot be written.
    """
    # Without pyplot, which would look for a display and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = np.array([prediction.classes[0] for prediction in predictions])
    maps = classifier.activation_maps(pixels, classes)
    columns = 2 if maps is None else 3
    height_in = _ROW_IN * len(images) + 0.6
    figure = Figure(figsize=(2.2 * (columns - 1) + 4.4, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    ratios = [1] * (columns - 1) + [2]
    axes = figure.subplots(len(images), columns, squeeze=False, width_ratios=ratios)
    for row, (path, prediction) in enumerate(zip(images, predictions, strict=True)):
        shown = read_image(path, str(path), (_SHOWN_PX, _SHOWN_PX, classifier.manifest.channels))
        _image(axes[row][0], shown, _short(path.name))
        if maps is not None:
            _map(axes[row][1], shown, maps[row], f"evidence for {_short(prediction.labels[0])}")
        _bars(axes[row][-1], prediction)
    try:
        with files.temporary(file) as new:
            figure.savefig(new, dpi=120, format=file.suffix[1:].lower())
            new.replace(file)
    except OSError as error:
        raise UsageError(f"The picture {file} cannot be written: {error}.") from error


def _image(axes: Axes, shown: npt.NDArray[np.uint8], name: str) -> None:
    # matplotlib takes an image with one channel without the channel axis.
    axes.imshow(shown.squeeze(-1) if shown.shape[2] == 1 else shown, cmap="gray", vmin=0, vmax=255)
    axes.set_title(name, fontsize=8, parse_math=False)
    axes.set_axis_off()


def _map(
    axes: Axes, shown: npt.NDArray[np.uint8], values: npt.NDArray[np.float32], name: str
) -> None:
    _image(axes, shown, name)
    extent = (-0.5, _SHOWN_PX - 0.5, _SHOWN_PX - 0.5, -0.5)
    heat: Any = {"cmap": "turbo", "vmin": 0, "vmax": 1, "interpolation": "bilinear"}
    axes.imshow(values, extent=extent, alpha=0.45, **heat)


def _bars(axes: Axes, prediction: Prediction) -> None:
    places, labels = range(len(prediction.labels)), [*map(_short, prediction.labels)]
    bars = axes.barh(places, prediction.probabilities, color="#4477aa")
    axes.set_yticks(places, labels, fontsize=7, parse_math=False)
    axes.bar_label(bars, [f"{p:.1%}" for p in prediction.probabilities], fontsize=7, padding=2)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18)  # room for the numbers
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
