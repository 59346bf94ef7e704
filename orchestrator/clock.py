"""The clock, sleep and random numbers of a running sweep; a simulation replaces them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the parts of a running sweep get time and chance from.

    No decision about trials uses it: those are functions of the ledger's rows and the seed.
    """

    now_s: Callable[[], float] = time.time  # Unix time, for the ledger
    monotonic_s: Callable[[], float] = time.monotonic  # for durations and limits
    sleep: Callable[[float], None] = time.sleep  # seconds
    random: random.Random = field(default_factory=random.Random)  # for jitter of retries
