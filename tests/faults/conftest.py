"""How fault tests are shared out: those of a file that need the same sweep stay together."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share a fixture of their file in one process; any process takes the rest."""
    for item in items:
        known = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
        if any(definitions[-1].scope == "module" for definitions in known):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
