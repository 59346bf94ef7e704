"""`python -m orchestrator.report`."""

from orchestrator.command import exit_fast
from orchestrator.report import main

if __name__ == "__main__":
    exit_fast(main)
