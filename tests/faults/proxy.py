"""A proxy on loopback that does to a connection what networks and servers do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Proxy:
    """Passes bytes on to a server as `mode` says, which may be changed at any time.

    Modes: "pass"; "refuse" (hang up at once); a status such as "503", "500" or "429" (answer every
    request with it, without asking the server); "hang" (take everything, answer nothing);
    "slow" (`bytes_per_s` in each direction); "cut" (hang up after `cut_after` bytes of each
    request); "lose_reply" (the server gets the request, the client no answer).
    """

    def __init__(self, host: str, port: int) -> None:
        self.server = host, port
        self.mode = "pass"
        self.bytes_per_s = 10_000
        self.cut_after = 20_000
        self.requests = 0  # chunks that began a request, as good as can be told
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        for one in (self._listener, *self._open):
            _hang_up(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self.server)
        except OSError:
            _hang_up(client)
            return
        self._open.add(server)
        threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
        taken = 0
        with contextlib.suppress(OSError):
            while data := client.recv(4096):
                begins = data[:8].partition(b" ")[0].isalpha()
                taken = len(data) if begins else taken + len(data)
                self.requests += begins
                mode = self.mode
                if mode == "hang":
                    continue
                if mode == "refuse" or (mode == "cut" and taken > self.cut_after):
                    break
                if mode.isdigit():
                    client.sendall(_answer(mode))
                    break
                if mode == "slow":
                    time.sleep(len(data) / self.bytes_per_s)
                server.sendall(data)
        _hang_up(client)
        _hang_up(server)
        self._open -= {client, server}

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(4096):
                while self.mode == "hang":
                    time.sleep(0.05)
                if self.mode == "lose_reply":
                    break
                if self.mode == "slow":
                    time.sleep(len(data) / self.bytes_per_s)
                client.sendall(data)
        _hang_up(client)


@contextmanager
def proxied(host: str, port: int) -> Iterator[Proxy]:
    """Run a proxy while the block runs."""
    proxy = Proxy(host, port)
    try:
        yield proxy
    finally:
        proxy.mode = "pass"
        proxy.close()


def _answer(status: str) -> bytes:
    body = (
        b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
        b"<Message>Please reduce your request rate.</Message></Error>"
    )
    head = (
        f"HTTP/1.1 {status} Told To\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _hang_up(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
