"""Test images with each variant's predictions and class activation maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.report.document.blocks import Block, Picture, Pictures, Section, Tabs, text
from orchestrator.report.facts import Record, SweepData

# Maps shown per variant; more would make the page large without showing more.
_MOST_MAPS = 12
_SIZE_PX = 96  # height and width of a picture in the page
_COLOURS_KEPT = 128  # colours in the PNG of an overlay
_MAPS, _GRID = "Where the models look", "Predicted and true labels"


def pictures(sweep: SweepData) -> tuple[list[Section], dict[str, str]]:
    """Return the two sections with images, and the data URIs of the images that both show, by key.

    Each variant is represented by its first evaluated seed. All trials predict the same images.
    """
    firsts = {v: found[0] for v in sweep.variants if (found := sweep.evaluated(v))}
    firsts = {v: r for v, r in firsts.items() if r.evaluation and r.evaluation["examples"]}
    if not firsts:
        named = (("maps", _MAPS), ("predictions", _GRID))
        return [Section.not_evaluated(name, title) for name, title in named], {}
    images: dict[str, str] = {}
    for record in firsts.values():
        for example in _examples(record).values():
            key = f"image-{example['row']}"
            images[key] = images.get(key) or _png(_pixels(example))
    return [_maps(sweep, firsts), _grid(sweep, firsts)], images


def _maps(sweep: SweepData, firsts: Mapping[str, Record]) -> Section:
    with_maps = {v: r for v, r in firsts.items() if any(e["map"] for e in _examples(r).values())}
    without = [variant for variant in firsts if variant not in with_maps]
    blocks: list[Block] = []
    if with_maps:
        blocks += [
            text(
                "Grad-CAM maps of the predicted class, on the same test images for the first seed "
                "of every variant. Bright areas contributed most to the prediction. Green frame "
                "and ✓: correct. Red frame and ✗: wrong. Below each map are the predicted class "
                "and its probability. Images on which the variants disagree come first."
            ),
            _map_table(sweep, with_maps),
            text(
                "Test images that each variant misclassified, drawn at random with the seed of "
                "the split: the map, the predicted class and the true class."
            ),
            Tabs(
                name="mistakes",
                tabs=tuple((v, _mistakes(sweep, v, with_maps[v])) for v in with_maps),
            ),
        ]
    if without:
        blocks.append(text(f"Models without a spatial feature map: {', '.join(without)}."))
    return Section("maps", _MAPS, tuple(blocks))


def _mistakes(sweep: SweepData, variant: str, record: Record) -> tuple[Block, ...]:
    wrong = record.evaluation.get("mistakes", []) if record.evaluation else []
    if not wrong:
        return (text(f"{variant} classified every test image correctly."),)
    line = [
        _evaluated_picture(sweep, each, _overlay(each), both=True) for each in wrong if each["map"]
    ]
    return (Pictures(name=f"mistakes-{variant}", title=f"Mistakes, {variant}", rows=[line]),)


def _map_table(sweep: SweepData, firsts: Mapping[str, Record]) -> Pictures:
    found = {variant: _examples(record) for variant, record in firsts.items()}
    rows = []
    for row in _chosen(list(found.values())):
        label = next(each[row]["label"] for each in found.values() if row in each)
        line = [Picture(source=f"image-{row}", caption=sweep.class_name(label))]
        for examples in found.values():
            if (example := examples.get(row)) and example["map"]:
                line.append(_evaluated_picture(sweep, example, _overlay(example)))
            else:
                line.append(Picture(source="", caption="no map"))
        rows.append(line)
    return Pictures(
        name="maps",
        title="Activation maps side by side",
        rows=rows,
        headings=("image, true class", *found),
    )


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
    kept = {*first[:_MOST_MAPS], *rest[: max(0, _MOST_MAPS - len(first))]}
    return [row for row in (*disputed, *wrong, *right) if row in kept]


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
        tabs.append((variant, (shown,)))
    intro = text(
        "Test images drawn at random with the seed of the split, spread over the classes, and the "
        "predictions of each variant's first seed. Below each image are the predicted class and "
        "its probability, and the true class if the prediction is wrong. Point at an image to see "
        "the five most probable classes."
    )
    return Section("predictions", _GRID, (intro, Tabs(name="predictions", tabs=tuple(tabs))))


def _evaluated_picture(
    sweep: SweepData, example: Mapping[str, Any], source: str, *, both: bool = False
) -> Picture:
    label, probability = example["top5"][0]
    is_right = _is_right(example)
    caption = f"{sweep.class_name(int(label))} ({100 * probability:.1f}\u00a0%)"
    if both and not is_right:
        caption += f"\ntrue: {sweep.class_name(example['label'])}"
    detail = "\n".join(f"{sweep.class_name(int(c))}: {100 * p:.1f} %" for c, p in example["top5"])
    return Picture(
        source=source, caption=caption, detail=detail, mark="right" if is_right else "wrong"
    )


def _examples(record: Record) -> dict[int, Mapping[str, Any]]:
    found = record.evaluation["examples"] if record.evaluation else []
    return {int(example["row"]): example for example in found}


def _is_right(example: Mapping[str, Any]) -> bool:
    return bool(example["top5"][0][0] == example["label"])


def _pixels(example: Mapping[str, Any]) -> Image.Image:
    """Return the stored image, scaled down to at most twice the size of a picture."""
    image = Image.open(io.BytesIO(base64.b64decode(example["image_png"]))).convert("RGB")
    if max(image.size) > 2 * _SIZE_PX:
        image.thumbnail((2 * _SIZE_PX, 2 * _SIZE_PX))
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
