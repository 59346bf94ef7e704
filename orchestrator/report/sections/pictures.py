"""Test images with each variant's predictions and class activation maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.report.document import blocks
from orchestrator.report.document.blocks import Picture, Pictures, Section, Tabs
from orchestrator.report.facts import Record, SweepData

# Maps shown per variant; more would make the page large without showing more.
_MOST_MAPS = 12
_SIZE_PX = 96  # height and width of a picture in the page
_COLOURS_KEPT = 128  # colours in the PNG of an overlay
_WITHOUT_MAPS = "No Grad-CAM maps, because the model has no spatial features"
_MAPS, _GRID = "Grad-CAM maps", "Predicted and true labels"


def pictures(sweep: SweepData) -> tuple[list[Section], dict[str, str]]:
    """Return the two sections with images, and the data URIs of the images that both show, by key.

    Each variant is represented by its first evaluated seed. All trials predict the same images.
    """
    firsts = {v: found[0] for v in sweep.variants if (found := sweep.evaluated(v))}
    firsts = {v: record for v, record in firsts.items() if record.evaluation["examples"]}
    if not firsts:
        return [], {}
    examples = {row: each for r in firsts.values() for row, each in _examples(r).items()}
    images = {f"image-{row}": _png(_pixels(example)) for row, example in examples.items()}
    return [_maps(sweep, firsts), _grid(sweep, firsts)], images


def _maps(sweep: SweepData, firsts: Mapping[str, Record]) -> Section:
    with_maps = {variant: record for variant, record in firsts.items() if _has_map(record)}
    if not with_maps:
        return Section.of("maps", _MAPS)
    without = [variant for variant in firsts if variant not in with_maps]
    shown: list[blocks.Block | str] = [
        "Grad-CAM maps of the predicted class, on the same test images for the first seed of "
        "every variant. Bright areas contributed most to the prediction. Green frame and ✓: "
        "correct. Red frame and ✗: wrong. Below each map are the predicted class and its "
        "probability. Images on which the variants disagree come first.",
        _map_table(sweep, with_maps),
        "Test images that each variant misclassified, drawn at random with the seed of the "
        "split: the map, the predicted class and the true class.",
        Tabs("mistakes", [(v, [_mistakes(sweep, v, r)]) for v, r in with_maps.items()]),
    ]
    if without:
        shown.append(f"{_WITHOUT_MAPS}: {', '.join(without)}.")
    return Section.of("maps", _MAPS, *shown)


def _mistakes(sweep: SweepData, variant: str, record: Record) -> blocks.Block:
    wrong = record.evaluation.get("mistakes")
    if not wrong:
        return blocks.Text((f"{variant} classified every test image correctly.",))
    mapped = [example for example in wrong if example["map"]]
    line = [_evaluated_picture(sweep, each, _overlay(each), both=True) for each in mapped]
    return Pictures(name=f"mistakes-{variant}", title=f"Mistakes, {variant}", rows=[line])


def _map_table(sweep: SweepData, firsts: Mapping[str, Record]) -> Pictures:
    found = {variant: _examples(record) for variant, record in firsts.items()}
    rows = []
    for row in _chosen(list(found.values())):
        label = next(each[row]["label"] for each in found.values() if row in each)
        line = [Picture(f"image-{row}", sweep.class_name(label))]
        for examples in found.values():
            if (example := examples.get(row)) and example["map"]:
                line.append(_evaluated_picture(sweep, example, _overlay(example)))
            else:
                line.append(Picture("", "no map"))
        rows.append(line)
    headings = ("image, true class", *found)
    title = "Activation maps side by side"
    return Pictures(name="maps", title=title, rows=rows, headings=headings)


def _chosen(found: Sequence[Mapping[int, Mapping[str, Any]]]) -> list[int]:
    """Return the images to show: those that variants disagree on, then wrong ones, then right ones.

    At most two thirds are images that variants disagree on, if there are enough others.
    """
    rows = sorted({row for examples in found for row in examples})

    def rights(row: int) -> list[bool]:
        return [_is_right(examples[row]) for examples in found if row in examples]

    disputed = [row for row in rows if len(set(rights(row))) > 1]
    wrong = [row for row in rows if not any(rights(row))]
    right = [row for row in rows if all(rights(row))]
    third = _MOST_MAPS // 3
    first = [*disputed[: 2 * third], *wrong[:third], *right[:third]]
    rest = [row for row in (*disputed, *wrong, *right) if row not in first]
    kept = (first + rest)[:_MOST_MAPS]
    return [row for row in (*disputed, *wrong, *right) if row in kept]


def _has_map(record: Record) -> bool:
    return any(example["map"] for example in _examples(record).values())


def _grid(sweep: SweepData, firsts: Mapping[str, Record]) -> Section:
    tabs = []
    for variant, record in firsts.items():
        examples = list(_examples(record).values())
        right = sum(map(_is_right, examples))
        shown = Pictures(
            name=f"grid-{variant}",
            title=f"{variant}: {right} of these {len(examples)} are correct",
            rows=[[_evaluated_picture(sweep, e, f"image-{e['row']}", both=True) for e in examples]],
        )
        tabs.append((variant, [shown]))
    intro = (
        "Test images drawn at random with the seed of the split, spread over the classes, and the "
        "predictions of each variant's first seed. Below each image are the predicted class and "
        "its probability, and the true class if the prediction is wrong. Point at an image to see "
        "the five most probable classes."
    )
    # Without any map there is no section of maps that says so.
    found: list[blocks.Block | str] = [intro, Tabs("predictions", tabs)]
    if not any(map(_has_map, firsts.values())):
        found.append(f"{_WITHOUT_MAPS}: {', '.join(firsts)}.")
    return Section.of("predictions", _GRID, *found)


def _evaluated_picture(
    sweep: SweepData, example: Mapping[str, Any], source: str, *, both: bool = False
) -> Picture:
    label, probability = example["top5"][0]
    is_right = _is_right(example)
    caption = f"{sweep.class_name(int(label))} ({100 * probability:.1f}\u00a0%)"
    if both and not is_right:
        caption += f"\ntrue: {sweep.class_name(example['label'])}"
    detail = "\n".join(f"{sweep.class_name(int(c))}: {100 * p:.1f} %" for c, p in example["top5"])
    return Picture(source, caption, detail, "right" if is_right else "wrong")


def _examples(record: Record) -> dict[int, Mapping[str, Any]]:
    return {int(example["row"]): example for example in record.evaluation["examples"]}


def _is_right(example: Mapping[str, Any]) -> bool:
    return bool(example["top5"][0][0] == example["label"])


def _pixels(example: Mapping[str, Any]) -> Image.Image:
    """Return the stored image, scaled down to at most twice the size of a picture."""
    image = Image.open(io.BytesIO(base64.b64decode(example["image_png"]))).convert("RGB")
    image.thumbnail((2 * _SIZE_PX, 2 * _SIZE_PX))  # leaves a smaller image as it is
    return image


def _overlay(example: Mapping[str, Any]) -> str:
    """Return the map over its image as a data URI."""
    import matplotlib

    size = (_SIZE_PX, _SIZE_PX)
    image = np.asarray(_pixels(example).resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    stored = example["map"]
    values = np.frombuffer(base64.b64decode(stored["values"]), np.uint8)
    heat = Image.fromarray(values.reshape(stored["height"], stored["width"]))
    strength = np.asarray(heat.resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    colour = matplotlib.colormaps["inferno"](strength)[..., :3]
    grey = image.mean(axis=-1, keepdims=True)  # so that colour comes only from the map
    mixed = 0.45 * grey + 0.55 * colour
    overlay = Image.fromarray((255 * mixed).clip(0, 255).astype(np.uint8))
    return _png(overlay.quantize(_COLOURS_KEPT))


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
