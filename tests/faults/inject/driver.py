"""The sweep command with places inside its ledger's transactions where it can be made to die."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from points import point_of

from orchestrator.ledger.database import Database
from orchestrator.sweep.__main__ import main

point = point_of(os.environ["FAULTS_ARM_LEDGER"])
original = Database.change


@contextmanager
def change(self: Database) -> Iterator[sqlite3.Connection]:
    with original(self) as connection:
        point()  # the transaction has begun and nothing is written
        yield connection
        point()  # everything is written and nothing committed
    point()  # committed, and the caller does not know it yet


if __name__ == "__main__":
    Database.change = change
    sys.exit(main())
