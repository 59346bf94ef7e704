"""MLflow from the outside: how to ask it patiently, what its refusals mean, how to open its page.

Knows nothing of sweeps, and does not import MLflow.
"""

from __future__ import annotations

import re
import shlex
import time
import urllib.parse
from collections.abc import Callable
from typing import Any


class RetryingClient:
    """MLflow's client, asked patiently.

    But a run is not created again before it was searched for: the first may be there.
    """

    def __init__(self, client: Any) -> None:
        self.impatient = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.impatient, name)
        return method if name == "create_run" else patiently(method)


def patiently(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call that is tried twice more if it fails at once, as at a busy server."""

    def tried(*args: Any, **kwargs: Any) -> Any:
        for pause_s in (0.2, 1.0):
            begun_s = time.monotonic()
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if time.monotonic() - begun_s > 2 or _is_final(error):
                    raise
            time.sleep(pause_s)
        return call(*args, **kwargs)

    return tried


def _is_final(error: Exception) -> bool:
    """Return whether the same request would be answered with the same error."""
    status = http_status(error)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def http_status(error: Exception) -> int | None:
    """Return the status a server answered with, None where the error is of another kind."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    of_mlflow = getattr(error, "get_http_status_code", None)
    return None if of_mlflow is None else int(of_mlflow())


def advice(error: Exception, uri: str) -> str | None:
    """Return what to do about a server that refuses to be written to; None where it does not."""
    status = http_status(error)
    if status == 403 and "Invalid Host header" in str(error):
        host = urllib.parse.urlsplit(uri).hostname
        return (
            f"The server does not go by the name {host!r}. Start it with "
            f"`mlflow server ... --allowed-hosts '{host},{host}:*,localhost,localhost:*'`."
        )
    if status == 401:
        return (
            "The server wants to know who you are. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) and run the same command with "
            "--resume."
        )
    if status == 403:
        return "The server refuses this user. Ask for the right to create and edit experiments."
    return None


def reason(error: Exception, uri: str) -> str:
    """Return one sentence on why MLflow did not take something."""
    text = str(error)
    status = re.search(r"too many (\d+) error responses", text)
    if hint := advice(error, uri):
        return hint
    if "Connection refused" in text:
        return "nothing listens there."
    if "timed out" in text:
        return "it does not answer in time."
    if "database is locked" in text:
        return "another program holds its database locked."
    if "_alembic_tmp_" in text:
        return (
            "its database was left unfinished by a program that was killed while it created or "
            "upgraded it, and MLflow cannot go on with it. Put it aside: what the ledger has is "
            "written to a new one."
        )
    if status:
        return f"it answers with status {status[1]}."
    return f"{first_line(error)}."


def first_line(error: Exception) -> str:
    """Return an error's class and the first line of its text, at most 300 characters of it."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def ui_command(uri: str) -> str | None:
    """Return the command that serves a database file's runs; None where a server does already."""
    if uri.startswith(("http://", "https://")):
        return None
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def page_address(uri: str, experiment: str, metric: str, mode: str) -> str:
    """Return the address of a page with the curves of all trials, the best one first.

    Args:
        uri: of the server; for a database file that of `mlflow ui` with its default port.
        experiment: MLflow's number of the sweep's experiment.
        metric: the sweep's.
        mode: its direction, "max" or "min".
    """
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    query = urllib.parse.urlencode(
        {
            # Sorted by a metric, trials stand beside their parent, not folded into it.
            "orderByKey": f"metrics.`best_{metric}`",
            "orderByAsc": "true" if mode == "min" else "false",
            "compareRunsMode": "CHART",
            # MLflow's page opens with the columns of language models unless told.
            "workflowType": "machine_learning",
        },
        quote_via=urllib.parse.quote,
    )
    return f"{server}/#/experiments/{experiment}/runs?{query}"
