"""Advice for MLflow's errors, and which calls are retried."""

from __future__ import annotations

import pytest

from orchestrator.clock import Clock
from orchestrator.tracking.client import RetryingClient, advice, reason, with_retries

URI = "http://ec2-1-2-3-4.example:5000"
NO_PAUSES = Clock(sleep=lambda seconds: None)


class Refusal(Exception):
    """Has an HTTP status, as MLflow's errors have."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    def get_http_status_code(self) -> int:
        return self.status


class Counting:
    def __init__(self, errors: list[Exception]) -> None:
        self.errors, self.calls = errors, 0

    def create_run(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    log_batch = create_run


def test_a_long_reason_is_cut_between_words() -> None:
    text = reason(ValueError("word " * 100), URI)
    assert text.endswith("word word ....")
    assert len(text) <= len("ValueError: ") + 301


def test_a_rejected_host_name_names_the_flag_that_allows_it() -> None:
    error = Refusal(403, "failed with error code 403. 'Invalid Host header - possible DNS ...'")
    assert advice(error, URI) == (
        "The server does not accept the host name 'ec2-1-2-3-4.example'. Start it with "
        "`mlflow server ... --allowed-hosts 'ec2-1-2-3-4.example,ec2-1-2-3-4.example:*,"
        "localhost,localhost:*'`."
    )
    assert reason(error, URI) == advice(error, URI)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            Refusal(401, "You are not authenticated"),
            "requires a login. Set MLFLOW_TRACKING_USERNAME and",
        ),
        (Refusal(403, "Permission denied"), "This user has no write access to the server."),
        (
            Refusal(500, "... [Errno 111] Connection refused"),
            "no server is listening at this address.",
        ),
        (Refusal(500, "Read timed out. (read timeout=10)"), "it did not respond in time."),
        (Refusal(500, "too many 503 error responses"), "it responded with HTTP status 503."),
        (
            Refusal(503, "(sqlite3.OperationalError) database is locked"),
            "its database is locked by another program.",
        ),
        (
            Refusal(500, "(OperationalError) table _alembic_tmp_tags already exists"),
            "Move the file away",
        ),
        (ValueError("first\nsecond"), "ValueError: first."),
        (ValueError(), "ValueError."),
    ],
)
def test_the_reason_of_an_error_is_one_line(error: Exception, expected: str) -> None:
    assert expected in reason(error, URI)
    assert "\n" not in reason(error, URI)


def test_a_call_to_a_busy_server_is_tried_three_times() -> None:
    client = Counting([Refusal(503, "busy"), Refusal(429, "busy")])
    assert RetryingClient(client, NO_PAUSES).log_batch() == "done"
    assert client.calls == 3
    client = Counting([Refusal(503, "busy")] * 3)
    with pytest.raises(Refusal):
        RetryingClient(client, NO_PAUSES).log_batch()
    assert client.calls == 3


def test_an_invalid_request_is_not_retried() -> None:
    client = Counting([Refusal(400, "wrong")])
    with pytest.raises(Refusal):
        RetryingClient(client, NO_PAUSES).log_batch()
    assert client.calls == 1


def test_creating_a_run_is_not_retried() -> None:
    client = Counting([Refusal(503, "busy")])
    with pytest.raises(Refusal):
        RetryingClient(client, NO_PAUSES).create_run()
    assert client.calls == 1


def test_a_call_that_failed_slowly_is_not_retried() -> None:
    times = iter(range(0, 1000, 5))
    clock = Clock(monotonic_s=lambda: next(times), sleep=lambda seconds: None)
    client = Counting([Refusal(500, "Read timed out")])
    with pytest.raises(Refusal):
        with_retries(client.log_batch, clock)()
    assert client.calls == 1
