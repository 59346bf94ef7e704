"""A real `mlflow server` on loopback, and a proxy before it that does what bad networks do."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.integration.sweeps import wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One `mlflow server` with a SQLite store; can be killed, frozen and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.database = folder / "server.db"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, politely: bool = False) -> None:
        """Start and wait until it answers.

        Args:
            politely: leave the processors to the trials, whose pace is being measured.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [
                    *("nice", "-n", "19" if politely else "0"),
                    *(Path(sys.executable).with_name("mlflow"), "server", "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{self.database}"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                ],
                cwd=self.folder,
                # Its job runners are six processes that nothing here needs.
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._answers, "the MLflow server", 90)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        """Send to the server and all its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@dataclass(frozen=True)
class Request:
    """What a rule sees of a request."""

    number: int  # counted from 1
    method: str
    path: str
    body: bytes  # empty for an upload

    @property
    def call(self) -> str:
        """Method and the address's constant part: one word per kind of call."""
        path = self.path.partition("?")[0]
        return f"{self.method} " + ("artifacts" if "mlflow-artifacts" in path else path)


@dataclass(frozen=True)
class Fault:
    """What to do with one request."""

    status: int | None = None  # answer this, and forward nothing
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0  # wait before forwarding
    lose_reply: bool = False  # forward, then hang up
    cut_after: int | None = None  # forward so many bytes of an upload, then hang up on both
    host: str | None = None  # the name the server is called by


Rule = Callable[[Request], Fault | None]


class Proxy:
    """Forwards to a server; `rule` says for each request what goes wrong with it."""

    def __init__(self, upstream_port: int, port: int = 0) -> None:
        self.upstream_port = upstream_port
        self.rule: Rule = lambda request: None
        self.seen: list[Request] = []
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._http.daemon_threads = True
        self.port = int(self._http.server_address[1])
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def note(self, method: str, path: str, body: bytes) -> Request:
        with self._lock:
            request = Request(len(self.seen) + 1, method, path, body)
            self.seen.append(request)
            return request

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def handle_any(self) -> None:
                self.close_connection = True
                with suppress(OSError, http.client.HTTPException):
                    _forward(proxy, self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def _forward(proxy: Proxy, handler: BaseHTTPRequestHandler) -> None:
    length = int(handler.headers.get("Content-Length") or 0)
    is_upload = handler.command == "PUT"
    body = b"" if is_upload else handler.rfile.read(length)
    fault = proxy.rule(proxy.note(handler.command, handler.path, body)) or Fault()
    if is_upload:
        body = handler.rfile.read(length if fault.cut_after is None else fault.cut_after)
    if fault.status is not None:
        _answer(handler, fault.status, list(fault.headers), b"made up by a proxy")
        return
    time.sleep(fault.delay_s)
    upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=60)
    upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
    for name, value in handler.headers.items():
        if name.lower() not in ("connection", "host"):
            upstream.putheader(name, value)
    upstream.putheader("Host", fault.host or f"127.0.0.1:{proxy.upstream_port}")
    upstream.putheader("Connection", "close")
    upstream.endheaders(body)
    if fault.cut_after is not None:
        upstream.close()
        return
    reply = upstream.getresponse()
    content = reply.read()
    upstream.close()
    if not fault.lose_reply:
        headers = [
            (name, value)
            for name, value in reply.getheaders()
            if name.lower() not in ("connection", "content-length", "transfer-encoding")
        ]
        _answer(handler, reply.status, headers, content)


def _answer(
    handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes
) -> None:
    handler.send_response(status)
    for name, value in (*headers, ("Content-Length", str(len(content))), ("Connection", "close")):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def proxied(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    try:
        yield proxy
    finally:
        proxy.close()
