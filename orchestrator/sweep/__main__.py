"""`python -m orchestrator.sweep SPACE`: plan, run, resume or verify a sweep.

Exit status: 0 all trials complete, 1 some failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator import command
from orchestrator.plan.options import SweepConfig
from orchestrator.storage.paths import DATASET_MANIFEST
from orchestrator.sweep import signals
from orchestrator.sweep.arguments import _parser, config_from

if TYPE_CHECKING:
    from trainables.data.dataset import Manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    interrupted = "Interrupted before the sweep started."
    return command.run(_parser(), _run, argv, interrupted=interrupted, failed=command.FAILED)


def _run(arguments: argparse.Namespace) -> int:
    config = config_from(arguments)
    signals.take_term_as_interrupt()
    if config.verify:
        from orchestrator.verify.check import verify

        return verify(config)
    if config.dry_run:
        return dry_run(config)
    from orchestrator.sweep.driver import sweep

    return sweep(config)


def dry_run(config: SweepConfig) -> int:
    """Print the plan without writing, downloading or starting anything."""
    from orchestrator.plan import disk, resolve
    from orchestrator.sweep import measure, summary

    space = resolve.load_space(config.space)
    manifest = _manifest_or_expected(config, config.dataset or space.dataset)
    plan, costs = resolve.make_plan(config, space, manifest, {})
    console = command.console_on(sys.stdout)
    summary.print_plan(console, plan, costs)
    concurrent = config.max_concurrent or os.cpu_count() or 1
    needed = disk.forecast_bytes(plan, costs, concurrent, config.keep)
    free = disk.free_bytes(config.paths.root)
    console.print(
        f"Checkpoints take up to {disk.gib(needed)} with {concurrent} trials at a time; "
        f"{disk.gib(free)} are free."
    )
    if config.measure:
        measure.measure(config, plan, costs, console)
    return command.COMPLETE


def _manifest_or_expected(config: SweepConfig, dataset: str) -> Manifest:
    """Return the prepared dataset's manifest, or a known dataset's expected one."""
    from orchestrator.data.known_datasets import expected_manifest
    from trainables.data.dataset import load_manifest

    if (config.data.folder / dataset / DATASET_MANIFEST).is_file():
        return load_manifest(config.data.folder / dataset)
    return expected_manifest(dataset)


if __name__ == "__main__":
    command.exit_fast(main)
