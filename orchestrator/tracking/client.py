"""Retries calls to MLflow, explains its errors, and gives the addresses of its pages.

Knows nothing of sweeps, and does not import MLflow.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
import urllib.parse
from collections.abc import Callable
from typing import Any

from orchestrator.clock import Clock
from orchestrator.command import program

_PAUSES_S = (0.2, 1.0)
_REASONS = {  # by what the text of an error contains
    "Connection refused": "no server is listening at this address.",
    "timed out": "it did not respond in time.",
    "database is locked": "its database is locked by another program.",
    "_alembic_tmp_": "its database is incomplete, because a program was killed while creating or "
    "upgrading it, and MLflow cannot repair it. Move the file away: a new database is filled from "
    "the ledger.",
}
# Calls that create something each time they are carried out.
_NOT_REPEATED = ("create_run", "create_logged_model", "log_outputs", "create_model_version")
_SLOW_S = 2.0  # a call that failed after this long is not retried: the server has been waited for


def set_environment() -> None:
    """Let MLflow time out soon, send a request once, and print nothing. Call before importing it.

    A request that MLflow sends twice may be carried out twice; `RetryingClient` decides instead.
    """
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


class RetryingClient:
    """MLflow's client with every call retried, except those that create a run or a model.

    The first request may have succeeded although it failed here, so the caller must search for what
    it creates before it tries again.
    """

    def __init__(self, client: Any, clock: Clock) -> None:
        self.without_retries, self.clock = client, clock

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.without_retries, name)
        return method if name in _NOT_REPEATED else with_retries(method, self.clock)


def with_retries(call: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    """Return a call that is retried twice if it fails at once, as calls to a busy server do."""

    def retried(*args: Any, **kwargs: Any) -> Any:
        for pause_s in _PAUSES_S:
            began_s = clock.monotonic_s()
            try:
                return call(*args, **kwargs)
            except Exception as error:
                status = http_status(error) or 0
                is_final = 400 <= status < 500 and status not in (408, 429)
                if is_final or clock.monotonic_s() - began_s > _SLOW_S:
                    raise
            clock.sleep(pause_s)
        return call(*args, **kwargs)

    return retried


def http_status(error: Exception) -> int | None:
    """Return the HTTP status of a server's reply, None if the error is not a reply."""
    if (response := getattr(error, "response", None)) is not None:
        return int(response.status_code)
    mlflow_status = getattr(error, "get_http_status_code", None)
    return None if mlflow_status is None else int(mlflow_status())


def advice(error: Exception, uri: str) -> str | None:
    """Return what the user can do if the server refuses access, None for other errors."""
    status = http_status(error)
    if status == 403 and "Invalid Host header" in str(error):
        host = urllib.parse.urlsplit(uri).hostname
        return (
            f"The server does not accept the host name {host!r}. Start it with "
            f"`mlflow server ... --allowed-hosts '{host},{host}:*,localhost,localhost:*'`."
        )
    if status == 401:
        return (
            "The server requires a login. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            " (or MLFLOW_TRACKING_TOKEN) and run the same command with --resume."
        )
    if status == 403:
        return (
            "This user has no write access to the server. Ask its administrator for permission to "
            "create and edit experiments."
        )
    return None


def reason(error: Exception, uri: str) -> str:
    """Return one sentence that says why a call to MLflow failed."""
    text = str(error)
    if hint := advice(error, uri):
        return hint
    for part, sentence in _REASONS.items():
        if part in text:
            return sentence
    if status := re.search(r"too many (\d+) error responses", text):
        return f"it responded with HTTP status {status[1]}."
    first_line = (text.strip().splitlines() or [""])[0]
    first_line = textwrap.shorten(first_line, 300, placeholder=" ...")
    return f"{type(error).__name__}{first_line and ': '}{first_line}."


def ui_command(uri: str) -> str | None:
    """Return the command that serves the runs of a database file, None if a server does."""
    if uri.startswith(("http://", "https://")):
        return None
    return f"{program('mlflow')} ui --backend-store-uri {shlex.quote(uri)}"


def page_address(uri: str, experiment: str, metric: str, mode: str) -> str:
    """Return the address of the page with the curves of all trials, best trial first.

    A database file gets the default address of `mlflow ui`. `experiment` is an id, `metric` the one
    that the sweep optimizes, and `mode` "max" or "min".
    """
    return _server(uri) + _page(
        f"experiments/{experiment}/runs",
        # Sorted by a metric, MLflow lists trials beside their parent run, not inside it.
        orderByKey=f"metrics.`best_{metric}`",
        orderByAsc="true" if mode == "min" else "false",
        compareRunsMode="CHART",
    )


def short_page_address(uri: str, experiment: str) -> str:
    """Return the address of an experiment's page with MLflow's own choice of columns and order."""
    return _server(uri) + _page(f"experiments/{experiment}/runs")


def run_link(experiment: str, run_id: str) -> str:
    """Return a link to a run's page for texts that MLflow shows, whatever its address is."""
    return _page(f"experiments/{experiment}/runs/{run_id}")


def model_link(experiment: str, model_id: str) -> str:
    """Return a link to a logged model's page for texts that MLflow shows."""
    return _page(f"experiments/{experiment}/models/{model_id}")


def version_address(uri: str, name: str, version: str) -> str:
    """Return the address of the page of a registered model's version."""
    return _server(uri) + _page(f"models/{urllib.parse.quote(name, safe='')}/versions/{version}")


def _server(uri: str) -> str:
    """Return a server's address; a database file has the default one of `mlflow ui`."""
    return (uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000") + "/"


def _page(route: str, **query: str) -> str:
    """Return a page of MLflow, relative to the server.

    `workflowType` selects "Model training": without it, MLflow 3 shows pages for language models.
    """
    query["workflowType"] = "machine_learning"
    return f"#/{route}?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"
