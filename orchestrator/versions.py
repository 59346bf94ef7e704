"""Which versions of what computes a sweep is made with; holds no state."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    *("sweep-orchestrator", "ray", "torch", "torchvision", "timm", "optuna", "mlflow"),
    *("pyarrow", "numpy"),
)


def installed() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its source, not installed
            found[name] = "not installed"
    return found


def changes(before: Mapping[str, str]) -> list[str]:
    """Return a line for the user when a sweep goes on with other versions, else none.

    Args:
        before: what `installed` said when the sweep was started.
    """
    now = installed()
    changed = [name for name in now if name in before and now[name] != before[name]]
    if not changed:
        return []
    old = ", ".join(f"{name} {before[name]}" for name in changed)
    new = ", ".join(f"{name} {now[name]}" for name in changed)
    return [
        f"This sweep was started with {old}; it goes on with {new}. Trials from now on may differ "
        "from what they would have been."
    ]
