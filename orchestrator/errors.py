"""The errors a user can meet.

    OrchestratorError
    └── UsageError (also ValueError)   wrong input: the sentence is printed, exit status 2
        ├── SweepExistsError
        └── SweepNotFoundError

A text states the rule, what was got and the way out. `trainables` raises its own errors, defined
where they are raised, because it may not import this package.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OrchestratorError(Exception):
    """Base of every error this package raises on purpose."""


class UsageError(OrchestratorError, ValueError):
    """The input is wrong; the text says the rule, what was got and the way out."""


class SweepExistsError(UsageError):
    """A new sweep was asked for under a name that is taken."""


class SweepNotFoundError(UsageError):
    """A sweep was to be continued that does not exist."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for an unknown name: the known ones, and the nearest of them.

    Args:
        kind: what the name stands for, such as "dataset".
        name: what was got.
        known: the names that exist.
    """
    listed = sorted(known)
    near = difflib.get_close_matches(name, listed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}. Known: {', '.join(listed) or 'none'}.{hint}"
