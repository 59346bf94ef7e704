"""`stepping` for the small CNN."""

from __future__ import annotations

import dataclasses

from benchmarks import stepping

BENCHMARK = dataclasses.replace(stepping.benchmark("cnn3"), name="stepping_cnn", goals_cuda={})
