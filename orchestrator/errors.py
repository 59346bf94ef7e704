"""The errors that a user can meet.

    OrchestratorError
    ├── UsageError (also ValueError)    wrong input: the text is printed, exit status 2
    │   ├── SweepExistsError
    │   └── SweepNotFoundError
    ├── StorageError (also OSError)     in storage/store.py
    └── LeaseLostError                  in storage/lease.py

A text states the rule, the value that was given and the way out. `trainables` defines its own
errors where it raises them, because it may not import this package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OrchestratorError(Exception):
    """Base of every error that this package raises on purpose."""


class UsageError(OrchestratorError, ValueError):
    """The input is wrong; the text states the rule, the given value and the way out."""


class SweepExistsError(UsageError):
    """A new sweep has the name of an existing one."""


class SweepNotFoundError(UsageError):
    """The named sweep does not exist."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the text for an unknown name of a kind of thing, such as "dataset".

    It lists the known names and suggests the nearest of them.
    """
    listed = sorted(known)
    near = difflib.get_close_matches(name, listed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}. Known: {', '.join(listed) or 'none'}.{hint}"
