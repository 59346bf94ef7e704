"""A real S3 protocol server on loopback, and what tests look up in it."""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moto.server import ThreadedMotoServer

from orchestrator.storage.store import Storage, open_storage

# moto takes any; these say that they are none.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "no-secret", "AWS_SECRET_ACCESS_KEY": "no-secret-either"}


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of its own, on a server that other tests may use as well."""

    host: str
    port: int
    name: str

    def uri(self, port: int | None = None) -> str:
        """The address of a storage in it, by way of another port if one is given."""
        return (
            f"s3://{self.name}/sweeps?endpoint_override={self.host}:{port or self.port}&scheme=http"
        )

    def storage(self) -> Storage:
        return open_storage(self.uri())


@contextmanager
def s3_server(address: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


def new_bucket(host: str, port: int) -> Bucket:
    from pyarrow.fs import S3FileSystem

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    S3FileSystem(
        access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        endpoint_override=f"{host}:{port}",
        scheme="http",
        allow_bucket_creation=True,
    ).create_dir(name)
    return Bucket(host, port, name)


def epochs_in(copy: bytes | None, folder: Path) -> int:
    """How many epochs a copy of a ledger holds."""
    if copy is None:
        return 0
    file = folder / f"{uuid.uuid4().hex}.sqlite"
    file.write_bytes(copy)
    with sqlite3.connect(file) as connection:
        number = connection.execute("SELECT count(*) FROM epochs").fetchone()[0]
    connection.close()
    return int(number)
