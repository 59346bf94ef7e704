"""`python -m orchestrator.report`."""

from orchestrator.process import run_and_leave
from orchestrator.report import main

if __name__ == "__main__":
    run_and_leave(main)
