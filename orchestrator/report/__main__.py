"""`python -m orchestrator.report NAME`: writes the report of a sweep, which may be running."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from orchestrator.command import exit_fast
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.snapshot import ledger_copy
from orchestrator.report.render import write_report
from orchestrator.storage.store import StorageError
from orchestrator.storage.sweeps import find_sweep

WRITTEN, WRONG_USAGE, INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 2 (wrong input) or 130 (Ctrl+C)."""
    arguments = _parser().parse_args(argv)
    try:
        paths = find_sweep(arguments.storage, arguments.name)
        with ledger_copy(paths) as ledger:
            page = write_report(ledger, paths.root / "report", paths.name)
    except (OrchestratorError, StorageError, OSError) as error:
        print(error, file=sys.stderr)
        return WRONG_USAGE
    except KeyboardInterrupt:
        print("Interrupted: no report was written.", file=sys.stderr)
        return INTERRUPTED
    print(page)
    return WRITTEN


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.report",
        description="Write a sweep's report: one HTML page, Markdown and CSV, from its ledger.",
    )
    parser.add_argument("name", metavar="NAME", help="of the sweep")
    parser.add_argument(
        "--storage",
        default="results",
        metavar="PLACE",
        help="where sweeps live, as the sweep was told (default: results)",
    )
    return parser


if __name__ == "__main__":
    exit_fast(main)
