"""The notice that a spot machine is taken back, from a metadata service on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator import spot
from orchestrator.execution import ray_internals
from orchestrator.spot import Metadata


class Service(ThreadingHTTPServer):
    """Speaks version 2 of EC2's instance metadata service: no answer without a living token."""

    def __init__(self, at: tuple[str, int]) -> None:
        super().__init__(at, _Handler)
        self.notice: str | None = None
        self.tokens: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        is_right = self.path == "/latest/api/token" and (
            0 < int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", 0)) <= 21600
        )
        token = f"token{len(self.server.tokens)}"
        self.server.tokens.append(token)
        self._say(200 if is_right else 400, token)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != self.server.tokens[-1]:
            self._say(401, "")
        elif self.path != "/latest/meta-data/spot/instance-action" or self.server.notice is None:
            self._say(404, "")
        else:
            self._say(200, self.server.notice)

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def service(address: str = "127.0.0.1") -> Iterator[tuple[Service, str]]:
    server = Service((address, 0))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server, f"http://{address}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_no_notice_and_then_one() -> None:
    with service() as (server, address):
        metadata = Metadata(address)
        assert metadata.interruption() is None
        server.notice = '{"action": "terminate", "time": "2026-01-02T03:04:05Z"}'
        assert metadata.interruption() == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        assert len(server.tokens) == 1  # one token serves for hours


def test_a_token_that_has_expired_is_replaced() -> None:
    with service() as (server, address):
        metadata = Metadata(address)
        assert metadata.interruption() is None
        server.tokens.append("other")
        assert metadata.interruption() is None
        assert len(server.tokens) == 3


def test_an_unusable_answer_of_the_service_is_an_error() -> None:
    with service() as (server, address):
        server.notice = "soon"
        with pytest.raises(OSError, match="unusable answer"):
            Metadata(address).interruption()


def test_the_node_is_drained_for_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is away for a moment is asked again."""
    drained: list[tuple[str, str, float]] = []

    def drain(address: str, node_ip: str, left_s: float, why: str) -> str:
        drained.append((address, node_ip, left_s))
        return "node"

    monkeypatch.setattr(ray_internals, "drain", drain)
    with service() as (server, address):
        until = datetime.now(UTC).timestamp() + 100
        said = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = Metadata("http://127.0.0.1:1")
        timer = threading.Timer(0.2, lambda: setattr(metadata, "address", address))
        timer.start()
        server.notice = f'{{"action": "stop", "time": "{said}"}}'
        assert spot.watch(metadata, "10.0.0.1:6379", "10.0.0.2", poll_s=0.05) == "node"
        timer.join()
    assert [(cluster, node) for cluster, node, _ in drained] == [("10.0.0.1:6379", "10.0.0.2")]
    assert 90 < drained[0][2] <= 100
