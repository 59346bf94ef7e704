"""A real MLflow server behind a proxy that injects faults: it has everything exactly once."""

from __future__ import annotations

import contextlib
import io
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from rich.console import Console

from orchestrator.clock import Clock
from orchestrator.sweep import mlflow_thread
from orchestrator.sweep.mlflow_thread import MlflowThread
from orchestrator.sweep.signals import EndLimit, Interruption
from tests.faults.mlflow_proxy import Fault, Proxy, Request, Server, proxied, running_server
from tests.orchestrator.sweeps import metrics
from tests.orchestrator.tracking.tracked import (
    Sweep,
    assert_all_there_once,
    finish,
    logged,
    outputs_of,
    story,
    versions,
)

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests here; each sweep has its own experiment."""
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with proxied(server) as proxy:
        yield proxy


@pytest.fixture
def sweep(tmp_path: Path, proxy: Proxy, request: pytest.FixtureRequest) -> Sweep:
    name = request.node.name.replace("[", "-").replace("]", "")[:90]
    return Sweep(tmp_path, name, proxy.uri)


def drain(sweep: Sweep, tries: int = 20) -> None:
    """Call `finish` until everything is written."""
    for _ in range(tries):
        with contextlib.suppress(Exception):
            sweep.tracker.finish("complete", {"trials": len(sweep.ledger.trials())})
            if not sweep.tracker.rejected:
                return
    raise AssertionError(f"not written after {tries} tries: {sweep.tracker.rejected}")


def run_story(sweep: Sweep) -> int:
    """Simulate a sweep, with a sync after each part; return how many syncs failed."""
    failed = 0
    for scene in story(sweep):
        scene()
        try:
            sweep.tracker.sync()
        except Exception:
            failed += 1
    return failed


def is_write(request: Request) -> bool:
    return request.method != "GET" and not request.path.endswith("/runs/search")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_refuses_every_third_request_gets_everything_once(
    server: Server, proxy: Proxy, sweep: Sweep, status: int
) -> None:
    """Case 57, an overloaded server: it responds with 429, 500 or 503, Retry-After one hour."""
    patience = (("Retry-After", "3600"),)
    refused = Fault(status=status, headers=patience)
    proxy.rule = lambda request: refused if request.number % 3 == 0 else None
    begun_s = time.monotonic()
    run_story(sweep)
    drain(sweep)
    assert time.monotonic() - begun_s < 60
    assert len(proxy.seen) > 60
    sweep.uri = server.uri
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)
    assert sweep.runs()["sweep"].info.status == "FINISHED"


@pytest.mark.parametrize("every", [1, 3])
def test_replies_lost_after_the_commit_cause_no_duplicates(
    server: Server, proxy: Proxy, sweep: Sweep, every: int
) -> None:
    """Case 57: the request is carried out but its reply is lost, for calls of every kind."""
    lost: Counter[str] = Counter()

    def rule(request: Request) -> Fault | None:
        if not is_write(request):
            return None
        lost[request.call] += 1
        return (
            Fault(lose_reply=True)
            if lost[request.call] in (1, 2, 5) or (every == 3 and request.number % 3 == 0)
            else None
        )

    proxy.rule = rule
    assert run_story(sweep) >= 1
    drain(sweep)
    assert {call.rpartition("/")[2] for call in lost} >= {
        *("create", "log-batch", "set-tag", "update", "PUT artifacts")
    }
    sweep.uri = server.uri
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)
    experiment = sweep.client.get_experiment_by_name(sweep.paths.name).experiment_id
    everything = sweep.client.search_runs([experiment], run_view_type=3)
    assert len(everything) == 5  # and none was created only to be deleted again


def test_requests_that_a_frozen_server_carries_out_late_cause_no_duplicates(
    server: Server, proxy: Proxy, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 59: frozen while runs are created; timed-out requests are carried out afterwards."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    scenes = story(sweep)
    scenes[0]()
    sweep.tracker.sync()
    held = threading.Event()

    def rule(request: Request) -> Fault | None:
        if request.path.endswith("/runs/create") and not held.is_set():
            return Fault(delay_s=7)  # longer than the timeout; it is carried out afterwards
        return None

    proxy.rule = rule
    for scene in scenes[1:]:
        scene()
    sweep.tracker.sync()
    created = [r for r in proxy.seen if r.path.endswith("/runs/create")]
    assert len(created) == 5  # parent, two trials, and two that timed out
    assert len(sweep.tracker.rejected) == 2
    held.set()
    sweep.tracker.sync(last=True)  # creates them again: the late ones do not exist yet
    time.sleep(7)
    drain(sweep)
    sweep.uri = server.uri
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)
    experiment = sweep.client.get_experiment_by_name(sweep.paths.name).experiment_id
    deleted = sweep.client.search_runs([experiment], run_view_type=2)
    assert len(deleted) == 2


def test_a_frozen_server_has_everything_once_after_it_continues(
    server: Server, proxy: Proxy, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 59: SIGSTOP; requests wait in its queue and are all carried out at SIGCONT."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    scenes = story(sweep)
    scenes[0]()
    sweep.tracker.sync()
    server.signal(signal.SIGSTOP)
    try:
        for scene in scenes[1:]:
            scene()
            with pytest.raises(Exception, match="timed out"):
                sweep.tracker.sync()
    finally:
        server.signal(signal.SIGCONT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    drain(sweep)
    sweep.uri = server.uri
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)


def test_a_slow_server_gets_everything_once(server: Server, proxy: Proxy, sweep: Sweep) -> None:
    """Case 59, milder: every request takes 0.1 s longer."""
    proxy.rule = lambda request: Fault(delay_s=0.1)
    assert run_story(sweep) == 0
    drain(sweep)
    sweep.uri = server.uri
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)


def test_a_trial_that_mlflow_rejects_does_not_delay_others(
    server: Server, proxy: Proxy, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 57, for one trial: it is printed once, recorded in the ledger, and written later."""
    monkeypatch.setattr(mlflow_thread, "_REPORT_AFTER_S", 1.0)
    rejected = sweep.config(1).signature()

    def rule(request: Request) -> Fault | None:
        return Fault(status=400) if rejected.encode() in request.body else None

    proxy.rule = rule
    printed = io.StringIO()
    console = Console(file=printed, width=500)
    threads = MlflowThread(sweep.tracker)
    threads.thread.start()
    for scene in story(sweep):
        scene()
    end_s = time.monotonic() + 6
    while time.monotonic() < end_s:
        threads.report(console)
        time.sleep(0.1)
    assert printed.getvalue().count("is behind") == 1
    threads.finish(console, "failed", EndLimit(Interruption(), Clock()))
    assert f"it rejects trial {rejected}: " in printed.getvalue()
    assert "--resume writes the rest" in printed.getvalue()
    assert set(sweep.ledger.facts().get("tracking_behind")) == {rejected}
    runs = sweep.runs()
    assert set(runs) == {"sweep", *(t.signature for t in sweep.ledger.trials())} - {rejected}
    assert runs["sweep"].info.status == "FAILED"
    assert {runs[key].info.status for key in runs} == {"FAILED", "FINISHED"}
    # The next command, with a server that accepts the trial.
    proxy.rule = lambda request: None
    sweep.tracker = sweep.new_tracker()
    drain(sweep)
    assert sweep.ledger.facts().get("tracking_behind") == {}
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (Fault(host="ec2-1-2-3-4.example:5000"), "--allowed-hosts '127.0.0.1,127.0.0.1:*"),
        (Fault(status=401), "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_a_server_that_denies_access_is_explained_once(
    proxy: Proxy, sweep: Sweep, fault: Fault, hint: str
) -> None:
    """Case 69: MLflow's own host validation responds with 403, basic-auth with 401."""
    proxy.rule = lambda request: fault
    printed = io.StringIO()
    console = Console(file=printed, width=500)
    story(sweep)[0]()  # before the first attempt nothing is written
    threads = MlflowThread(sweep.tracker)
    threads.thread.start()
    end_s = time.monotonic() + 30
    while "behind" not in printed.getvalue() and time.monotonic() < end_s:
        threads.report(console)
        time.sleep(0.05)
    for _ in range(10):
        threads.report(console)
    assert printed.getvalue().count(hint) == 1
    threads.finish(console, "complete", EndLimit(Interruption(), Clock()))
    assert "does not have everything" in printed.getvalue()


def test_a_line_is_printed_when_mlflow_is_behind_and_when_it_has_caught_up(
    server: Server, proxy: Proxy, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 57: one line once it has lasted some seconds, one when it is over."""
    monkeypatch.setattr(mlflow_thread, "_REPORT_AFTER_S", 7.0)  # the client retries for seconds
    printed = io.StringIO()
    console = Console(file=printed, width=500)
    threads = MlflowThread(sweep.tracker)
    threads.thread.start()
    scenes = story(sweep)

    def watch(seconds: float) -> list[str]:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            threads.report(console)
            time.sleep(0.05)
        return printed.getvalue().splitlines()

    scenes[0]()
    assert watch(4) == []
    proxy.rule = lambda request: Fault(status=503)
    scenes[1]()
    (line,) = watch(13)
    assert line.startswith(f"MLflow at {proxy.uri} is behind: it responded with HTTP status 503.")
    proxy.rule = lambda request: None
    scenes[2]()
    assert watch(11)[1:] == ["MLflow has caught up."]
    threads.finish(console, "complete", EndLimit(Interruption(), Clock()))
    assert len(printed.getvalue().splitlines()) == 2
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)


def test_partly_uploaded_weights_do_not_count(server: Server, proxy: Proxy, sweep: Sweep) -> None:
    """Case 66: without `weights/model.json` they do not count; the next sync replaces them."""
    key = sweep.run_trial(0, 0.5)
    (weights,) = sweep.paths.trial(key).glob("attempt_1/epoch_0001/model.safetensors")
    content = bytes(range(256)) * 4096 * 8  # 8 MiB
    weights.write_bytes(content)

    def rule(request: Request) -> Fault | None:
        is_weights = request.method == "PUT" and request.path.endswith("model.safetensors")
        return Fault(cut_after=3_000_000) if is_weights else None

    def uploaded() -> list[str]:
        run_id = sweep.runs()[key].info.run_id
        return [file.path for file in sweep.client.list_artifacts(run_id, "weights")]

    proxy.rule = rule
    sweep.tracker.sync()
    assert set(sweep.tracker.rejected) == {key}
    assert "weights/model.json" not in uploaded()
    assert sweep.runs()[key].data.tags["sweep.weights"] == "incomplete"
    # A server may keep a partial file, as a plain file store would. It is replaced.
    run_id = sweep.runs()[key].info.run_id
    half = sweep.paths.local_root / "model.safetensors"
    half.write_bytes(content[:100])
    proxy.rule = lambda request: None
    sweep.client.log_artifact(run_id, str(half), "weights")
    assert uploaded() == ["weights/model.safetensors"]
    sweep.tracker = sweep.new_tracker()
    drain(sweep)
    assert uploaded() == ["weights/model.json", "weights/model.safetensors"]
    path = sweep.client.download_artifacts(run_id, "weights/model.safetensors", str(half.parent))
    assert Path(path).read_bytes() == content
    assert sweep.runs()[key].data.tags["sweep.weights"] == "epoch 2"


@pytest.mark.parametrize("kind", ["none", "lost", "refused"])
def test_a_server_has_one_logged_model_and_one_version(
    server: Server, proxy: Proxy, sweep: Sweep, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the reply to each first request of a kind is lost, or every third one is refused."""
    seen: Counter[str] = Counter()

    def rule(request: Request) -> Fault | None:
        seen[request.call] += 1
        if kind == "lost" and is_write(request) and seen[request.call] in (1, 2, 5):
            return Fault(lose_reply=True)
        return Fault(status=503) if kind == "refused" and request.number % 3 == 0 else None

    proxy.rule = rule
    key = sweep.run_trial(0, 0.5)
    tracker = None
    for _ in range(20):
        with contextlib.suppress(Exception):
            tracker = finish(sweep, key, sweep.paths.name)
            break
    assert tracker is not None
    assert tracker.registered is not None
    proxy.rule = lambda request: None
    sweep.uri = server.uri
    finish(sweep, key, sweep.paths.name)  # a resumed sweep
    (model,) = logged(sweep)
    assert model.status == "READY"
    assert outputs_of(sweep, "sweep") == outputs_of(sweep, key) == [model.model_id]
    assert {metric.key: metric.value for metric in model.metrics} == {"best_val_top1": 0.5}
    (version,) = versions(sweep, sweep.paths.name)
    assert str(version.version) == str(tracker.registered.version) == "1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    place = mlflow.artifacts.download_artifacts(f"models:/{version.name}/1/MLmodel")
    assert Path(place).read_text() == f"model of {key}"
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)
    assert len(sweep.runs()[key].inputs.dataset_inputs) == 1


def test_a_server_without_logged_models_gets_the_model_as_a_folder(
    server: Server, proxy: Proxy, sweep: Sweep
) -> None:
    """As a server of MLflow 2, which responds with 404."""
    proxy.rule = lambda request: Fault(status=404) if "logged-models" in request.path else None
    key = sweep.run_trial(0, 0.5)
    finish(sweep, key)
    sweep.uri = server.uri
    assert sweep.files("sweep", "model")["model/MLmodel"] == f"model of {key}"
    assert sweep.runs()["sweep"].info.status == "FINISHED"


@pytest.mark.alone
def test_eight_trials_with_a_hundred_metrics_per_second_each_are_written_in_time(
    server: Server, proxy: Proxy, sweep: Sweep
) -> None:
    """Case 63: 8 trials, 100 metrics/s each, into SQLite: through a server, then directly."""
    per_epoch = len(metrics())
    direct = Sweep(sweep.paths.local_root, "direct")
    for one in (sweep, direct):
        one.tracker.uri = server.uri if one is sweep else one.uri
        keys = [one.start(number) for number in range(8)]
        one.tracker.sync()
        epochs, syncs = 100, 10
        slowest_s = total_s = 0.0
        for turn in range(syncs):
            for key in keys:
                for epoch in range(turn * epochs // syncs, (turn + 1) * epochs // syncs):
                    one.ledger.record_epoch(key, 1, epoch, metrics(val_top1=epoch / 1000), None)
            begun_s = time.monotonic()
            assert one.tracker.sync() == 8
            slowest_s = max(slowest_s, time.monotonic() - begun_s)
            total_s += time.monotonic() - begun_s
        rate = 8 * epochs * per_epoch / total_s
        print(f"{one.paths.name[:8]}: {rate:,.0f} metrics/s, slowest sync {slowest_s:.2f} s")
        assert rate > 800
        # Each sync above wrote the metrics of 0.9 s.
        assert slowest_s < 3
        one.uri = one.tracker.uri
        for key in keys:
            one.end(key, "complete", (99, 0.099))
    drain(sweep)
    assert_all_there_once(sweep.client, sweep.paths.name, sweep.ledger)
