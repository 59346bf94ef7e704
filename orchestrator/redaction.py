"""Removes secrets from texts for the ledger, logs, MLflow and the terminal."""

from __future__ import annotations

import logging
import os
import re

_SHORTEST_SECRET = 6  # characters; replacing "1" or "true" would garble a text and hide nothing


def redacted(text: str) -> str:
    """Return a text without the passwords of addresses and without this process's secrets.

    Secrets are the values of environment variables with a name such as `..._TOKEN`.
    """
    secret = r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY"
    for name, value in os.environ.items():
        if re.search(secret, name, re.IGNORECASE) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "[redacted]")
    return re.sub(r"(?<=://)[^\s/@]+@", "[redacted]@", text)


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines, tracebacks included, hold no secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line without secrets."""
        return redacted(super().format(record))
