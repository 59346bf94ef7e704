"""Python imports this at its start: places inside checkpoint saving where a worker dies or fails.

It does nothing unless a test names the file that arms it.
"""

from __future__ import annotations

import builtins
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from points import point_of


def _is_checkpoint(target: Any) -> bool:
    path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
    return "/attempt_" in path and "epoch_" in path


def _surrounded(call: Callable[..., Any], point: Callable[[], None]) -> Callable[..., Any]:
    """Return the call with a place before and one after it, where it touches a checkpoint."""

    def surrounded(target: Any, *rest: Any, **named: Any) -> Any:
        if not _is_checkpoint(target):
            return call(target, *rest, **named)
        point()
        value = call(target, *rest, **named)
        point()
        return value

    return surrounded


def _install(arm: str) -> None:
    point = point_of(arm)
    for module, name in (
        (os, "fsync"),
        (os, "rename"),
        (pathlib.Path, "write_bytes"),
        (pathlib.Path, "write_text"),
    ):
        setattr(module, name, _surrounded(getattr(module, name), point))


def _let_fail(rule: str) -> None:
    """Let the saving of those checkpoints fail whose path has the pattern: `PATTERN=Error`."""
    pattern, _, name = rule.partition("=")
    error = getattr(builtins, name)
    write_bytes = pathlib.Path.write_bytes

    def failing(self: pathlib.Path, data: Any) -> int:
        if re.search(pattern, str(self)):
            raise error("injected")
        return write_bytes(self, data)

    pathlib.Path.write_bytes = failing  # type: ignore[method-assign]


if "FAULTS_LET_FAIL" in os.environ:
    _let_fail(os.environ["FAULTS_LET_FAIL"])
if "FAULTS_ARM_CHECKPOINT" in os.environ:
    _install(os.environ["FAULTS_ARM_CHECKPOINT"])
