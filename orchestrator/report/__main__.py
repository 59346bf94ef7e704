"""`python -m orchestrator.report`."""

import sys

from orchestrator.report import main

if __name__ == "__main__":
    sys.exit(main())
