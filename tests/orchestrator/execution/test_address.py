"""Which cluster a sweep joins, and how; a small server answers in place of Ray's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from orchestrator.errors import UsageError
from orchestrator.execution import address, ray_internals
from orchestrator.execution.address import Wanted, authentication_mode, find, wanted_address

GIVEN = "--address"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that answers like a cluster's, with the status that a test names."""
    status = getattr(request, "param", grpc.StatusCode.OK)

    class Gcs(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
        def CheckAlive(self, asked: Any, context: Any) -> Any:
            if status is not grpc.StatusCode.OK:
                context.abort(status, "no")
            return gcs_service_pb2.CheckAliveReply()  # type: ignore[attr-defined]

    server = grpc.server(ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Gcs(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


WITH_TOKEN = pytest.mark.parametrize("cluster", [grpc.StatusCode.UNAUTHENTICATED], indirect=True)


@pytest.fixture
def other_user(monkeypatch: pytest.MonkeyPatch) -> int:
    """This process's uid is not the one that started the cluster."""
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    return owner


def test_an_own_cluster_without_a_token_is_joined_without_one(cluster: str) -> None:
    assert find(Wanted(cluster, GIVEN)) == cluster
    assert authentication_mode(Wanted("auto", "the default"), cluster) == "disabled"
    assert authentication_mode(Wanted(cluster, GIVEN), cluster) == "disabled"


@WITH_TOKEN
def test_a_cluster_with_a_token_is_joined_with_one(cluster: str) -> None:
    assert authentication_mode(Wanted("auto", "the default"), cluster) == "token"


@WITH_TOKEN
def test_a_given_cluster_of_another_user_is_joined_with_its_token(
    cluster: str, other_user: int
) -> None:
    assert authentication_mode(Wanted(cluster, GIVEN), cluster) == "token"


@pytest.mark.usefixtures("other_user")
def test_a_given_cluster_without_a_token_that_may_be_another_users_needs_consent(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Wanted(cluster, "RAY_ADDRESS")
    with pytest.raises(UsageError, match=r"started without a token.*RAY_AUTH_MODE=disabled") as e:
        authentication_mode(wanted, cluster)
    assert f"No Ray cluster can be joined at '{cluster}' (RAY_ADDRESS):" in str(e.value)
    assert "`--address local`" in str(e.value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert authentication_mode(wanted, cluster) == "disabled"


@pytest.mark.parametrize(
    "cluster", [grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED], indirect=True
)
def test_a_cluster_of_another_user_is_not_joined_by_default(cluster: str, other_user: int) -> None:
    """Asking it with this user's token would tell it the token."""
    with pytest.raises(
        UsageError, match=rf"another user of this machine \(uid {other_user}\)"
    ) as e:
        authentication_mode(Wanted("auto", "the default"), cluster)
    assert "`--address local`" in str(e.value)


@pytest.mark.parametrize(
    ("cluster", "mode"),
    [(grpc.StatusCode.OK, "token"), (grpc.StatusCode.UNAUTHENTICATED, "disabled")],
    indirect=["cluster"],
)
def test_a_wrong_mode_in_the_environment_is_named(
    cluster: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(UsageError, match=f"is '{mode}' here. Unset RAY_AUTH_MODE"):
        authentication_mode(Wanted(cluster, GIVEN), cluster)


@pytest.mark.parametrize("cluster", [grpc.StatusCode.UNIMPLEMENTED], indirect=True)
def test_a_server_that_is_not_rays_is_no_cluster(cluster: str) -> None:
    with pytest.raises(UsageError, match=r"not a Ray cluster: UNIMPLEMENTED"):
        authentication_mode(Wanted(cluster, GIVEN), cluster)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("http://127.0.0.1:8265", "the address of Ray's dashboard"),
        ("https://ray.example.org", "the address of Ray's dashboard"),
        ("127.0.0.1", "an address is host:port"),
        ("127.0.0.1:", "an address is host:port"),
        ("127.0.0.1:99999", "an address is host:port"),
        ("tcp://127.0.0.1:6379", "an address is host:port"),
        ("127.0.0.1:1", "nothing answers there"),
        ("[::1]:1", "nothing answers there"),
        ("no.such.host.invalid:6379", "nothing answers there"),
        ("-\udce4:6379", "nothing answers there"),
        (f"{'a' * 70}.example:6379", "nothing answers there"),
        ("ray://127.0.0.1:10001", "a sweep cannot run through Ray Client"),
        ("auto", "no Ray of `ray start` is running on this machine"),
    ],
)
def test_a_bad_address_in_the_environment_is_named_with_the_way_out(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_internals, "this_node", lambda: (None, "127.0.0.1"))
    monkeypatch.setattr(ray_internals, "own_clusters", list)
    monkeypatch.setattr(
        address, "wanted_address", lambda given: Wanted(value, "RAY_ADDRESS")
    )  # a name that no environment can hold is among them
    with pytest.raises(UsageError) as refused:
        find(address.wanted_address(None))
    assert f"{value!r} (RAY_ADDRESS): " in str(refused.value)
    assert message in str(refused.value)
    assert str(refused.value).endswith("and unset RAY_ADDRESS.")
    assert "`--address local`" in str(refused.value)


def test_the_address_is_the_given_one_then_the_environments_then_auto(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert wanted_address(None).address == "auto"
    monkeypatch.setenv("RAY_ADDRESS", " \n")
    assert wanted_address(None).address == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert wanted_address(None) == Wanted("head:6379", "RAY_ADDRESS")
    assert wanted_address("local") == Wanted("local", "--address")


def test_a_local_ray_starts_where_no_cluster_is_left(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_internals, "own_clusters", list)
    auto = wanted_address(None)
    for found, joined in ((None, None), ("127.0.0.1:1", None), (cluster, cluster)):
        monkeypatch.setattr(ray_internals, "this_node", lambda found=found: (found, "127.0.0.1"))
        assert find(auto) == joined
    assert find(Wanted("local", GIVEN)) is None


def test_an_own_cluster_that_was_started_with_another_tmpdir_is_joined(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for noted in (None, "127.0.0.1:1"):  # no file, or one of a cluster that ended
        monkeypatch.setattr(ray_internals, "this_node", lambda noted=noted: (noted, "127.0.0.1"))
        for ended in ([], ["127.0.0.1:1"]):
            found = [*ended, cluster]
            monkeypatch.setattr(ray_internals, "own_clusters", lambda found=found: found)
            assert find(wanted_address(None)) == cluster
            assert find(Wanted("auto", "RAY_ADDRESS")) == cluster


def test_of_several_own_clusters_one_must_be_chosen(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_internals, "this_node", lambda: (None, "127.0.0.1"))
    monkeypatch.setattr(ray_internals, "own_clusters", lambda: [cluster, f"{cluster}"])
    with pytest.raises(UsageError, match=f"several are running here: {cluster}, {cluster}. Choose"):
        find(wanted_address(None))


def test_the_owner_is_read_from_the_sockets_of_this_host(cluster: str, tmp_path: Path) -> None:
    assert address.owner_on_this_host(cluster) == os.getuid()
    assert address.owner_on_this_host(cluster, tmp_path) == os.getuid()  # no /proc
    (tmp_path / "net").mkdir()
    (tmp_path / "net/tcp").write_text("  sl  local_address rem_address   st\n")
    port = int(cluster.rpartition(":")[2])
    zeros, rest = "0" * 32, "00000000:00000000 00:00000000 00000000"
    (tmp_path / "net/tcp6").write_text(
        "  sl  local_address                         remote_address\n"
        f"   0: {zeros}:{port:04X} {zeros}:0000 01 {rest} 7 0 1\n"
        f"   1: {zeros}:{port:04X} {zeros}:0000 0A {rest} 1234 0 1\n"
    )
    assert address.owner_on_this_host(cluster, tmp_path) == 1234


def test_a_port_of_this_host_that_nobody_of_it_listens_on_has_no_owner(
    cluster: str, tmp_path: Path
) -> None:
    """Such as one that a container or a tunnel forwards."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net/tcp").write_text("  sl  local_address rem_address   st\n")
    assert address.owner_on_this_host(cluster, tmp_path) is None


def test_an_http_server_is_no_cluster() -> None:
    """As where the port of Ray's dashboard is given instead of the cluster's."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        pool.submit(answer)
        given = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UsageError, match="not a Ray cluster: UNAVAILABLE"):
            authentication_mode(Wanted(given, GIVEN), given)
