"""The built-in search spaces, one file each, and functions to load and check a space."""

from __future__ import annotations

import difflib
import importlib
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace


def names() -> list[str]:
    """Return the names of the built-in spaces, without importing them."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(p.stem for p in files if p.stem != "space" and not p.stem.startswith("_"))


def load(name: str) -> SearchSpace:
    """Return a built-in space, or the one that a file defines, after checking it.

    Raises:
        ValueError: there is no such space or file, it defines no `SPACE`, or a value is wrong.
    """
    from search_spaces.space import SearchSpace

    if name.endswith(".py") or "/" in name:
        module: types.ModuleType = _load_file(Path(name))
    elif name in names():
        module = importlib.import_module(f"search_spaces.{name}")
    else:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"Unknown search space {name!r}. Known: {', '.join(names())}.{hint} To use your "
            "own space, give the path of its .py file."
        )
    space = getattr(module, "SPACE", None)
    if not isinstance(space, SearchSpace):
        raise ValueError(
            f"{name} must define `SPACE = SearchSpace(...)` (from search_spaces.space)."
        )
    check(space)
    return space


def check(space: SearchSpace) -> None:
    """Check a space's values; no model is built.

    Raises:
        ValueError: one sentence for each mistake.
    """
    from search_spaces._check import problems_of

    if problems := problems_of(space):
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ValueError(f"The search space {space.name!r} cannot be used:\n{listed}")


def _load_file(path: Path) -> types.ModuleType:
    """Return the module of a user's space file; an error names its line."""
    if not path.is_file():
        raise ValueError(f"There is no space file at {path}.")
    module = types.ModuleType(f"user_space_{path.stem}")
    module.__file__ = str(path)
    try:
        # Not imported: Python's cache misses a change within the same second.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        text: object = error
        if isinstance(error, SyntaxError):
            lines, text = [error.lineno], error.msg
        where = f", line {lines[-1]}," if lines and lines[-1] else ""
        raise ValueError(
            f"{path}{where} cannot be read as a space: {type(error).__name__}: {text}"
        ) from error
    return module
