"""What MLflow's errors mean, and how patiently it is asked."""

from __future__ import annotations

import pytest

from orchestrator.tracking.client import RetryingClient, advice, patiently, reason, time

URI = "http://ec2-1-2-3-4.example:5000"


class Refusal(Exception):
    """As MLflow's: it knows the status a server answered with."""

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


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_an_unknown_host_name_is_answered_with_the_flag_that_allows_it() -> None:
    error = Refusal(403, "failed with error code 403. 'Invalid Host header - possible DNS ...'")
    assert advice(error, URI) == (
        "The server does not go by the name 'ec2-1-2-3-4.example'. Start it with `mlflow server "
        "... --allowed-hosts 'ec2-1-2-3-4.example,ec2-1-2-3-4.example:*,localhost,localhost:*'`."
    )
    assert reason(error, URI) == advice(error, URI)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refusal(401, "You are not authenticated"), "Set MLFLOW_TRACKING_USERNAME and"),
        (Refusal(403, "Permission denied"), "The server refuses this user."),
        (Refusal(500, "... [Errno 111] Connection refused"), "nothing listens there."),
        (Refusal(500, "Read timed out. (read timeout=10)"), "it does not answer in time."),
        (Refusal(500, "too many 503 error responses"), "it answers with status 503."),
        (Refusal(503, "(sqlite3.OperationalError) database is locked"), "database locked."),
        (Refusal(500, "(OperationalError) table _alembic_tmp_tags already exists"), "Put it aside"),
        (ValueError("first\nsecond"), "ValueError: first."),
        (ValueError(), "ValueError."),
    ],
)
def test_every_reason_is_one_sentence(error: Exception, said: str) -> None:
    assert said in reason(error, URI)
    assert "\n" not in reason(error, URI)


def test_a_busy_server_is_asked_three_times() -> None:
    client = Counting([Refusal(503, "busy"), Refusal(429, "busy")])
    assert RetryingClient(client).log_batch() == "done"
    assert client.calls == 3
    client = Counting([Refusal(503, "busy")] * 3)
    with pytest.raises(Refusal):
        RetryingClient(client).log_batch()
    assert client.calls == 3


def test_a_request_that_is_wrong_is_not_repeated() -> None:
    client = Counting([Refusal(400, "wrong")])
    with pytest.raises(Refusal):
        RetryingClient(client).log_batch()
    assert client.calls == 1


def test_a_run_is_never_created_twice_without_a_search_between() -> None:
    client = Counting([Refusal(503, "busy")])
    with pytest.raises(Refusal):
        RetryingClient(client).create_run()
    assert client.calls == 1


def test_who_was_waited_for_once_is_not_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    client = Counting([Refusal(500, "Read timed out")])
    with pytest.raises(Refusal):
        patiently(client.log_batch)()
    assert client.calls == 1
