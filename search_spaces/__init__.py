"""What to try: values only. One file per space; a user's own file works just as well."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search_spaces.space import SearchSpace


def names() -> list[str]:
    """Return the built-in spaces by file name, importing none of them."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(p.stem for p in files if p.stem != "space" and not p.stem.startswith("_"))


def load(name: str) -> SearchSpace:
    """Return the checked space of a built-in name or of the file at a path.

    Raises:
        ValueError: there is none, the file does not define `SPACE`, or its values are wrong.
    """
    from search_spaces.space import SearchSpace

    if name.endswith(".py") or "/" in name:
        module = _load_file(Path(name))
    elif name in names():
        module = importlib.import_module(f"search_spaces.{name}")
    else:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"Unknown search space {name!r}. Known: {', '.join(names())}.{hint} A space of your "
            "own is given by the path of its file, ending in .py."
        )
    space = getattr(module, "SPACE", None)
    if not isinstance(space, SearchSpace):
        raise ValueError(
            f"{name} must define `SPACE = SearchSpace(...)` (from search_spaces.space)."
        )
    space.check()
    return space


def _load_file(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(f"user_space_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"There is no space file at {path}.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a space: {error!r}.") from error
    return module
