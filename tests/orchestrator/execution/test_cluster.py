"""How Ray is started and joined; `ray.init` is replaced, and no Ray starts."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.clock import Clock
from orchestrator.errors import UsageError
from orchestrator.execution import address, cluster, ray_internals
from orchestrator.threads import run_within
from trainables import limits

LOCAL = cluster.Cluster(
    address="127.0.0.1:1", is_local=True, nodes=1, cpus=1.0, gpus=0.0, machines=((1.0, 0.0),)
)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `ray.init` is called with, in a process with a home directory of its own."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    # Set first, so that they are restored.
    for name in (*cluster._ENVIRONMENT, "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    called: list[Any] = []

    def init(**arguments: Any) -> None:
        called.append((arguments, os.environ.get("RAY_AUTH_MODE")))
        raise StopAsyncIteration("enough seen")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray_internals, "stay_on_loopback", lambda: None)
    monkeypatch.setattr(ray_internals, "use_short_folder", lambda: None)
    monkeypatch.setattr(
        ray_internals,
        "set_authentication_mode",
        lambda mode: monkeypatch.setenv("RAY_AUTH_MODE", mode),
    )
    return called


def test_a_local_ray_has_the_cpus_of_this_process_and_a_token(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "num_cpus", lambda: 3)
    with pytest.raises(cluster.RayStartError, match="Ray did not start on this machine: enough"):
        cluster.connect("local", needs_state_api=True)
    ((arguments, mode),) = calls
    assert (arguments["address"], arguments["num_cpus"], mode) == ("local", 3, "token")
    assert arguments["include_dashboard"] is True
    assert (tmp_path / ".ray" / "auth_token").is_file()


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "text"),
    [
        (1.0, 0.0, 1, "1 CPU, 0 GPUs on 1 node."),
        (2.0, 1.0, 3, "2 CPUs, 1 GPU on 3 nodes."),
    ],
)
def test_a_cluster_is_described_in_the_singular_and_plural(
    cpus: float, gpus: float, nodes: int, text: str
) -> None:
    joined = cluster.Cluster(
        address="10.0.0.1:6379",
        is_local=False,
        nodes=nodes,
        cpus=cpus,
        gpus=gpus,
        machines=((cpus, gpus),),
    )
    assert joined.describe() == f"Using the Ray cluster at 10.0.0.1:6379: {text}"


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_cluster_is_joined_in_its_own_mode(
    mode: str, calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "find", lambda wanted: "127.0.0.1:6379")
    monkeypatch.setattr(address, "authentication_mode", lambda wanted, found: mode)
    with pytest.raises(UsageError, match=r"enough seen\. The address answers.*token"):
        cluster.connect(None, needs_state_api=False)
    ((arguments, joined_with),) = calls
    assert (arguments["address"], joined_with) == ("127.0.0.1:6379", mode)
    assert "num_cpus" not in arguments
    assert (tmp_path / ".ray" / "auth_token").exists() is (mode == "token")


def test_ray_is_not_started_without_a_loopback_interface(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(cluster.RayStartError, match="`ip link set lo up`"):
        cluster.connect(None, needs_state_api=False)
    assert calls == []


def test_a_start_that_takes_too_long_ends_with_a_sentence(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "START_LIMIT_S", 0.01)
    monkeypatch.setattr(ray, "init", lambda **arguments: time.sleep(5))
    with pytest.raises(cluster.RayStartError, match=r"It took longer than 0\.01 s\."):
        cluster.connect("local", needs_state_api=False)


def test_a_limited_call_raises_what_the_function_raises() -> None:
    run_within(5, lambda: None)
    with pytest.raises(ZeroDivisionError):
        run_within(5, lambda: 1 / 0)


def test_a_start_that_the_user_interrupts_is_not_waited_for(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does Ray's own shutdown wait for it at the end of this process."""
    left_out: list[bool] = []
    monkeypatch.setattr(ray_internals, "forget", lambda: left_out.append(True))
    monkeypatch.setattr(ray, "init", lambda **arguments: time.sleep(5))
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        cluster.connect("local", needs_state_api=False, must_end=lambda: True)
    assert time.monotonic() - began_s < 3
    assert left_out == [True]


def test_the_thread_of_a_limited_call_stays_because_ray_s_servers_end_with_it() -> None:
    threads: list[threading.Thread] = []
    run_within(5, lambda: threads.append(threading.current_thread()))
    threads[0].join(0.2)
    assert threads[0].is_alive()
    assert threads[0].daemon


def test_a_user_without_a_home_directory_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", "/kept")
    cluster.ensure_home()
    assert os.environ["HOME"] == "/kept"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "home", no_home)
    cluster.ensure_home()
    assert Path(os.environ["HOME"]).parent == tmp_path
    assert Path(os.environ["HOME"]).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("home", [None, "/proc/none"])
def test_without_a_usable_home_directory_the_token_is_in_the_environment(
    home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a container that runs under a uid without an entry in /etc/passwd."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(Path, "home", no_home if home is None else lambda: Path(home))
    cluster.ensure_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_joined_cluster_is_lost_after_half_a_minute_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, answering = [0.0], [True]
    monkeypatch.setattr(address, "answers", lambda given: answering[0])
    watch = cluster.Watch(replace(LOCAL, is_local=False), Clock(monotonic_s=lambda: now_s[0]))

    def lost_at(seconds: float) -> str | None:
        now_s[0] = seconds
        return watch.lost()

    assert lost_at(100) is None
    answering[0] = False  # its control server is restarted
    assert lost_at(125) is None
    answering[0] = True
    assert lost_at(131) is None
    answering[0] = False
    assert lost_at(160) is None
    assert lost_at(162) == "The Ray cluster at 127.0.0.1:1 does not answer any more."


@pytest.mark.parametrize("found", [None, "127.0.0.1:6379"])
def test_a_path_that_ray_cannot_encode_is_no_fault_of_the_cluster(
    found: str | None, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **arguments: "/d\udcc3".encode())
    monkeypatch.setattr(address, "find", lambda wanted: found)
    monkeypatch.setattr(address, "authentication_mode", lambda wanted, found: "token")
    with pytest.raises(UnicodeEncodeError):
        cluster.connect(None, needs_state_api=False)
