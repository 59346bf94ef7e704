"""Python imports this at its start: places inside checkpoint saving where a worker dies or fails.

It does nothing unless a test says so in the environment:

FAULTS_ARM_CHECKPOINT=FILE  see `points`
FAULTS_LET_FAIL=PATTERN=Error  saving a checkpoint fails where its path has the pattern
FAULT_KILLS=DIR  a file of each name lies in DIR until its kill was done: `before-epoch_0001` or
    `after-epoch_0001`: the process is killed just before, or after, that checkpoint gets its name
FAULT_REPORTS=VARIANT  the reports of this model's trials are spoilt, differently by attempt
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.util
import os
import pathlib
import re
import signal
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


def _kill_at_renames(folder: pathlib.Path) -> None:
    rename = os.rename

    def die_once(when: str) -> None:
        try:
            (folder / when).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def killing(source, target, **options):
        die_once(f"before-{pathlib.Path(target).name}")
        rename(source, target, **options)
        die_once(f"after-{pathlib.Path(target).name}")

    os.rename = killing


class _AfterImport(importlib.abc.MetaPathFinder):
    """Change a module once it is imported."""

    def __init__(self, name, change):
        self.name, self.change = name, change

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def changed(module):
            run(module)
            self.change(module)

        spec.loader.exec_module = changed
        return spec


def _spoil_reports(variant: str):
    def change(worker) -> None:
        train = worker.train

        def spoilt(job, report, **named):
            def spoil(values):
                if values["kind"] == "epoch" and job.config["variant"] == variant:
                    values = dict(values)
                    if job.attempt == 1:
                        del values["val_top1"]
                    else:
                        values["val_loss"] = "high" if job.attempt == 2 else None
                report(values)

            train(job, spoil, **named)

        worker.train = spoilt

    return change


if "FAULTS_LET_FAIL" in os.environ:
    _let_fail(os.environ["FAULTS_LET_FAIL"])
if "FAULTS_ARM_CHECKPOINT" in os.environ:
    _install(os.environ["FAULTS_ARM_CHECKPOINT"])
if os.environ.get("FAULT_KILLS"):
    _kill_at_renames(pathlib.Path(os.environ["FAULT_KILLS"]))
if os.environ.get("FAULT_REPORTS"):
    sys.meta_path.insert(
        0,
        _AfterImport("orchestrator.execution.worker", _spoil_reports(os.environ["FAULT_REPORTS"])),
    )
