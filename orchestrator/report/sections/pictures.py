"""Test images: where each variant looks, and what it says they are."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.report.document.blocks import Block, Picture, Pictures, Section, Tabs, text
from orchestrator.report.facts import Record, SweepData

# Shown per variant: more would make the page heavy and say no more.
_MOST_MAPS = 12
_SIZE_PX = 96  # of a picture in the page
_COLOURS_KEPT = 128  # in a PNG of an overlay


def images(facts: SweepData) -> tuple[list[Section], dict[str, str]]:
    """Return the sections with images, and the images that both show, by key, as data URIs.

    The first evaluated seed of each variant speaks for it; all trials were shown the same images.
    """
    speakers = {
        variant: facts.evaluated(variant)[0]
        for variant in facts.variants
        if facts.evaluated(variant)
    }
    speakers = {v: r for v, r in speakers.items() if r.evaluation and r.evaluation["examples"]}
    if not speakers:
        nothing = text("No trial has been evaluated on the test split yet.")
        return [
            Section(name="maps", title=_MAPS, blocks=(nothing,)),
            Section(name="predictions", title=_GRID, blocks=(nothing,)),
        ], {}
    held: dict[str, str] = {}
    for record in speakers.values():
        for example in _examples(record).values():
            key = f"image-{example['row']}"
            if key not in held:
                held[key] = _png(_pixels(example), palette=False)
    return [_maps(facts, speakers), _grid(facts, speakers)], held


_MAPS, _GRID = "Where the models look", "Predicted and true labels"


def _maps(facts: SweepData, speakers: Mapping[str, Record]) -> Section:
    with_maps = {v: r for v, r in speakers.items() if any(e["map"] for e in _examples(r).values())}
    without = [variant for variant in speakers if variant not in with_maps]
    blocks: list[Block] = []
    if with_maps:
        blocks += [
            text(
                "Class activation maps (Grad-CAM) of the class that the model predicts, over the "
                "same test images for every variant; the first seed of each. Bright is where the "
                "evidence lies. Green frame and ✓: right. Red frame and ✗: wrong; below it what "
                "was predicted. Images that variants disagree on come first."
            ),
            _map_table(facts, with_maps),
            text(
                "And images that each variant got wrong, drawn by the seed of the split: what it "
                "took them for, the true class, and where it looked."
            ),
            Tabs(
                name="mistakes",
                tabs=tuple((v, _mistakes(facts, v, with_maps[v])) for v in with_maps),
            ),
        ]
    if without:
        blocks.append(text(f"No spatial feature map: {', '.join(without)}."))
    return Section(name="maps", title=_MAPS, blocks=tuple(blocks))


def _mistakes(facts: SweepData, variant: str, record: Record) -> tuple[Block, ...]:
    wrong = record.evaluation.get("mistakes", []) if record.evaluation else []
    if not wrong:
        return (text(f"{variant} got every test image right."),)
    line = [
        _evaluated_picture(facts, each, _overlay(each), both=True) for each in wrong if each["map"]
    ]
    return (Pictures(name=f"mistakes-{variant}", title=f"Mistakes of {variant}", rows=[line]),)


def _map_table(facts: SweepData, speakers: Mapping[str, Record]) -> Pictures:
    found = {variant: _examples(record) for variant, record in speakers.items()}
    rows = []
    for row in _chosen(list(found.values())):
        label = next(each[row]["label"] for each in found.values() if row in each)
        line = [Picture(source=f"image-{row}", caption=facts.class_name(label))]
        for examples in found.values():
            example = examples.get(row)
            if example is None or example["map"] is None:
                line.append(Picture(source="", caption="no map"))
                continue
            line.append(_evaluated_picture(facts, example, _overlay(example)))
        rows.append(line)
    return Pictures(
        name="maps",
        title="Activation maps side by side",
        rows=rows,
        headings=("image, true class", *found),
    )


def _chosen(found: Sequence[Mapping[int, Mapping[str, Any]]]) -> list[int]:
    """Return the images to show: half of them where someone is wrong, as far as there are."""
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


def _grid(facts: SweepData, speakers: Mapping[str, Record]) -> Section:
    tabs = []
    for variant, record in speakers.items():
        examples = list(_examples(record).values())
        right = sum(map(_is_right, examples))
        pictures = Pictures(
            name=f"grid-{variant}",
            title=f"{variant}: {right} of these {len(examples)} are right",
            rows=[[_evaluated_picture(facts, e, f"image-{e['row']}", both=True) for e in examples]],
        )
        tabs.append((variant, (pictures,)))
    intro = text(
        "Test images chosen by the seed of the split only, spread over the classes; the first "
        "seed of each variant. Below each what was predicted and how surely, then the true class "
        "where that is another. Point at an image for the five likeliest classes."
    )
    return Section(
        name="predictions", title=_GRID, blocks=(intro, Tabs(name="predictions", tabs=tuple(tabs)))
    )


def _evaluated_picture(
    facts: SweepData, example: Mapping[str, Any], source: str, *, both: bool = False
) -> Picture:
    label, probability = example["top5"][0]
    is_right = _is_right(example)
    caption = f"{facts.class_name(int(label))} {100 * probability:.1f}\u00a0%"
    if both and not is_right:
        caption += f"\ntrue: {facts.class_name(example['label'])}"
    detail = "\n".join(f"{facts.class_name(int(c))}: {100 * p:.1f} %" for c, p in example["top5"])
    return Picture(
        source=source, caption=caption, detail=detail, mark="right" if is_right else "wrong"
    )


def _examples(record: Record) -> dict[int, Mapping[str, Any]]:
    found = record.evaluation["examples"] if record.evaluation else []
    return {int(example["row"]): example for example in found}


def _is_right(example: Mapping[str, Any]) -> bool:
    return bool(example["top5"][0][0] == example["label"])


def _pixels(example: Mapping[str, Any]) -> Image.Image:
    """Return the stored image, no larger than it is shown; a small one keeps its pixels."""
    image = Image.open(io.BytesIO(base64.b64decode(example["image_png"]))).convert("RGB")
    if max(image.size) > 2 * _SIZE_PX:
        image.thumbnail((2 * _SIZE_PX, 2 * _SIZE_PX))
    return image


def _overlay(example: Mapping[str, Any]) -> str:
    """Return the map over its image, as a data URI."""
    import matplotlib

    size = (_SIZE_PX, _SIZE_PX)
    image = np.asarray(_pixels(example).resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    stored = example["map"]
    values = np.frombuffer(base64.b64decode(stored["values"]), np.uint8)
    heat = Image.fromarray(values.reshape(stored["height"], stored["width"]))
    strength = np.asarray(heat.resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    colour = matplotlib.colormaps["inferno"](strength)[..., :3]
    grey = image.mean(axis=-1, keepdims=True)  # so that all colour is the map's
    mixed = 0.45 * grey + 0.55 * colour
    return _png(Image.fromarray((255 * mixed).clip(0, 255).astype(np.uint8)), palette=True)


def _png(image: Image.Image, *, palette: bool) -> str:
    if palette:
        image = image.quantize(_COLOURS_KEPT)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
