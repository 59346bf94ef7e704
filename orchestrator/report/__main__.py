"""`python -m orchestrator.report NAME`: writes the report of a sweep, which may be running."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from orchestrator import command
from orchestrator.ledger.snapshot import ledger_copy
from orchestrator.storage.arguments import add_storage
from orchestrator.storage.sweeps import find_sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 2 (wrong input) or 130 (Ctrl+C)."""
    return command.run(_parser(), _write, argv, interrupted="Interrupted: no report was written.")


def _write(arguments: argparse.Namespace) -> int:
    from orchestrator.report.render import write_report

    command.output_is_optional()
    paths = find_sweep(arguments.storage, arguments.name)
    with ledger_copy(paths) as ledger:
        page = write_report(ledger, paths.report, paths.name, storage=paths.storage)
        command.say(str(page))
    return command.COMPLETE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.report",
        description="Write a sweep's report: one HTML page, Markdown and CSV, from its ledger.",
    )
    parser.add_argument("name", metavar="NAME", help="the sweep's name")
    add_storage(parser.add_argument)
    command.add_verbose(parser.add_argument)
    return parser


if __name__ == "__main__":
    command.exit_fast(main)
