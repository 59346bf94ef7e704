"""`python -m orchestrator.sweep SPACE`: plan, run, resume or verify a sweep.

Exit status: 0 all trials complete, 1 some failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from orchestrator import command
from orchestrator.sweep import signals
from orchestrator.sweep.arguments import _parser, config_from


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser, interrupted = _parser(), "Interrupted before the sweep started."
    parser.set_defaults(words=tuple(sys.argv[1:] if argv is None else argv))
    return command.run(parser, _run, argv, interrupted=interrupted, failed=command.FAILED)


def _run(arguments: argparse.Namespace) -> int:
    config = config_from(arguments)
    signals.take_term_as_interrupt()
    if config.verify:
        from orchestrator.verify.check import verify

        return verify(config)
    if config.dry_run:
        from orchestrator.sweep.summary import dry_run

        return dry_run(config)
    from orchestrator.sweep.driver import sweep

    command.output_is_optional()
    return sweep(config)


if __name__ == "__main__":
    command.exit_fast(main)
