"""Loaded by every Python process of a sweep whose PYTHONPATH names this folder: makes it fail.

FAULT_KILLS=DIR:WHEN,...   a file of each name lies in DIR until its kill was done; WHEN is
                           `before-epoch_0001` or `after-epoch_0001`: the process is killed
                           just before, or just after, that checkpoint gets its name.
FAULT_REPORTS=VARIANT      the reports of this model's trials are spoilt, differently by attempt
"""

import importlib.abc
import importlib.util
import os
import signal
import sys
from pathlib import Path


def _kill_at_renames(folder: Path) -> None:
    rename = os.rename

    def die_once(when: str) -> None:
        try:
            (folder / when).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def killing(source, target, **options):
        die_once(f"before-{Path(target).name}")
        rename(source, target, **options)
        die_once(f"after-{Path(target).name}")

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

        def spoilt(job, report):
            def spoil(values):
                if values["kind"] == "epoch" and job.config["variant"] == variant:
                    values = dict(values)
                    if job.attempt == 1:
                        del values["val_top1"]
                    else:
                        values["val_loss"] = "high" if job.attempt == 2 else None
                report(values)

            train(job, spoil)

        worker.train = spoilt

    return change


if os.environ.get("FAULT_KILLS"):
    _kill_at_renames(Path(os.environ["FAULT_KILLS"]))
if os.environ.get("FAULT_REPORTS"):
    sys.meta_path.insert(
        0, _AfterImport("trainables.worker", _spoil_reports(os.environ["FAULT_REPORTS"]))
    )
