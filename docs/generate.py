"""A MkDocs hook that fills the reference pages from the code, so that they cannot be stale.

A line `<!-- generate: NAME [ARGUMENT] -->` in a page is replaced by the result of the function
`NAME` below.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from orchestrator.data.known_datasets import KNOWN  # noqa: E402
from search_spaces._check import _DECIDED_ELSEWHERE as DECIDED_ELSEWHERE  # noqa: E402
from search_spaces.space import Published, SearchSpace  # noqa: E402
from trainables import config as train_config  # noqa: E402

_MARK = re.compile(r"^<!-- generate: (\w+)(?: (\w+))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its marks filled in; MkDocs calls it for every page."""
    return _MARK.sub(lambda mark: globals()[mark[1]](*filter(None, [mark[2]])), markdown)


def flags(command: str) -> str:
    """Return the arguments of a command, a table for each group of its help."""
    parser: argparse.ArgumentParser = importlib.import_module(
        "orchestrator.sweep.arguments" if command == "sweep" else f"orchestrator.{command}.__main__"
    )._parser()
    parts = [parser.epilog] if parser.epilog else []
    for title, actions in _groups(parser):
        rows = [_flag_row(action) for action in actions if action.help != argparse.SUPPRESS]
        if rows:
            parts.append(
                f"**{title[0].upper()}{title[1:]}**\n\n" + _table(("argument", "meaning"), rows)
            )
    return "\n\n".join(parts)


def _groups(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[argparse.Action]]]:
    for group in parser._action_groups:
        plain = [
            action
            for action in group._group_actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        ]
        yield group.title or "", plain
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield f"`{name}`", [a for _, actions in _groups(sub) for a in actions]


def _flag_row(action: argparse.Action) -> tuple[str, str]:
    value = "" if action.nargs == 0 else str(action.metavar or action.dest)
    names = ", ".join(action.option_strings) or value
    shown = f"`{names} {value}`" if action.option_strings and value else f"`{names}`"
    return shown, (action.help or "").replace("%%", "%")


def hyperparameters() -> str:
    """Return every field of `TrainConfig` with values, unit, default and meaning, by group."""
    lines = inspect.getsource(train_config.TrainConfig).splitlines()
    body = ast.parse("\n".join(lines)).body[0].body  # type: ignore[attr-defined]
    defaults = {item.name: _default(item) for item in dataclasses.fields(train_config.TrainConfig)}
    groups: dict[str, list[tuple[str, ...]]] = {}
    for item, following in itertools.pairwise(body):
        if not isinstance(item, ast.AnnAssign):
            continue
        if heading := re.fullmatch(r" {4}# (.*)\.", lines[item.lineno - 2]):
            rows = groups.setdefault(heading[1], [])
        name = ast.unparse(item.target)
        default = "set by the sweep" if name in DECIDED_ELSEWHERE else defaults[name]
        meaning = " ".join(following.value.value.split())
        rows.append((f"`{name}`", meaning, *_values(name), default))
    heads = ("name", "meaning", "values", "unit", "default")
    return "\n\n".join(f"## {name}\n\n{_table(heads, rows)}" for name, rows in groups.items())


def _values(name: str) -> tuple[str, str]:
    """Return the values that a hyperparameter accepts, and their unit."""
    if allowed := train_config.choices(name):
        return ", ".join(f"`{value}`" for value in allowed), ""
    kind = get_type_hints(train_config.TrainConfig)[name]
    if name not in train_config.RANGES:
        return {str: "text", bool: "`True`, `False`"}[kind], ""
    low, high, unit = train_config.RANGES[name]
    top = (
        "or more" if high is None else f"to {high if high < 1e6 else f'2^{high.bit_length()} - 1'}"
    )
    return f"{low} {top}", unit


def space_fields() -> str:
    """Return the fields of `SearchSpace` and what they mean."""
    return _fields(SearchSpace)


def published_fields() -> str:
    """Return the fields of `Published` and what they mean."""
    return _fields(Published)


def _fields(kind: type) -> str:
    """Return a table of a dataclass's fields from the "Attributes" of its docstring."""
    text = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    meanings = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE))
    rows = []
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        meaning = " ".join(meanings[item.name].split())
        meaning = meaning[0].upper() + meaning[1:]
        rows.append((f"`{item.name}`", meaning, f"`{item.type}`", _default(item)))
    return _table(("field", "meaning", "type", "default"), rows)


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default_factory is not dataclasses.MISSING:
        return f"`{item.default_factory()!r}`"
    return "required" if item.default is dataclasses.MISSING else f"`{item.default!r}`"


def variants() -> str:
    """Return every built-in variant with its size on Tiny ImageNet, smallest first."""
    from trainables.models import build, cost

    rows = []
    for name in build.VARIANTS:
        config = train_config.TrainConfig(
            variant=name,
            dataset="tinyimagenet",
            dataset_fingerprint="",
            epochs=1,
            seed=0,
            image_size_px=build.input_size_px(name, 64, "native"),
        )
        parameters, macs = cost.model_cost(config, num_classes=200, in_channels=3)
        size = f"{config.image_size_px} px"
        paper = f"{build.input_size_px(name, 64, 'paper')} px"
        pretrained = build.weights_name(name)
        weights = f"`{pretrained}`" if pretrained else "none"
        flops = (f"{macs / 1e6:,.1f}", f"{2 * macs / 1e6:,.1f}")
        rows.append((f"`{name}`", f"{parameters:,}", size, *flops, paper, weights))
    heads = ("variant", "parameters", "native image size", "MMACs", "MFLOPs")
    return _table((*heads, "paper's image size", "ImageNet weights"), rows)


def datasets() -> str:
    """Return the known datasets."""
    rows = [
        (
            f"`{name}`",
            known.summary,
            f"{known.images['train']:,}" if known.images else "yours",
            f"{known.images['test']:,}: {known.test_split}" if known.images else known.test_split,
            f"<{known.address}>" if known.address else "none",
        )
        for name, known in KNOWN.items()
    ]
    return _table(("dataset", "images", "training images", "test split", "download"), rows)


def spaces() -> str:
    """Return the built-in search spaces."""
    import search_spaces

    rows = []
    for name in search_spaces.names():
        space = search_spaces.load(name)
        searched = sorted({p for variant in space.variants for p in space.params_for(variant)})
        rows.append(
            (
                f"`{name}`",
                f"`{space.dataset}`",
                ", ".join(f"`{variant}`" for variant in space.variants),
                str(space.trials),
                ", ".join(f"`{p}`" for p in searched) or "nothing",
            )
        )
    return _table(("space", "dataset", "variants", "trials per variant", "searched"), rows)


def modules(package: str) -> str:
    """Return the modules of a package and the first sentence of each one's docstring."""
    rows = []
    for path in sorted((ROOT / package).rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
        if path.name == "__init__.py":
            dotted = dotted.removesuffix(".__init__")
            rows.append((f"**`{dotted}`**", " ".join(first.split())))
        else:
            rows.append((f"`{dotted}`", " ".join(first.split())))
    return _table(("module", "contents"), rows)


def benchmarks() -> str:
    """Return the table of benchmark results."""
    from benchmarks.__main__ import NAMES, benchmark_of
    from benchmarks.table import table

    return table([benchmark_of(name) for name in NAMES])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [heads, ["---"] * len(heads), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)
