"""`python -m orchestrator.report`."""

import sys

from orchestrator.report import main

sys.exit(main())
