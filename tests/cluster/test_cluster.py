"""A cluster of three hosts, brought up by `ray up` over SSH from the shipped file.

The tests run in this order and share the cluster; each repairs what it breaks.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger, open_ledger
from orchestrator.storage.paths import data_location
from tests.cluster.clusters import ROOT, Cluster
from tests.cluster.hosts import OUTSIDE
from tests.orchestrator.data.archive_files import SAMPLES
from tests.orchestrator.test_spot import service

TINY = SAMPLES / "tiny-imagenet-200-sample.zip"

# No suggestion depends on results and no trial is stopped early, so every sweep tries the same.
SPACE = """
from optuna.distributions import FloatDistribution
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    name={name!r}, dataset={dataset!r}, variants=("cnn3",), trials={trials}, image_size=32,
    base={{"epochs": {epochs}, "steps_per_epoch": {steps}, "batch_size": 64, "hflip": False}},
    params={{"lr": FloatDistribution(1e-3, 1e-2, log=True)}},
    startup_trials={trials},
)
"""


def start(
    cluster: Cluster,
    name: str,
    *options: object,
    trials: int = 3,
    epochs: int = 3,
    steps: int = 5,
) -> None:
    """Start a sweep of a small space on the head."""
    text = SPACE.format(
        name=name, dataset=cluster.dataset, trials=trials, epochs=epochs, steps=steps
    )
    (cluster.head.home / "sweep-orchestrator" / f"{name}.py").write_text(text)
    cluster.start(name, f"./{name}.py", "--final-seeds", 0, *options)


def ledger(cluster: Cluster, name: str) -> Ledger:
    """Return the head's ledger of a sweep, open."""
    return open_ledger(cluster.sweep_paths(name).ledger)


def table(cluster: Cluster, name: str) -> list[tuple[Any, ...]]:
    """Return number, signature, status and validation losses of every trial, by number."""
    found = ledger(cluster, name)
    return [
        (t.number, t.signature, t.status, [(e.epoch, e.metrics["val_loss"]) for e in epochs])
        for t in found.trials()
        for epochs in [found.epochs(t.signature)]
    ]


def epochs_done(cluster: Cluster, name: str) -> int:
    """Return how many epochs a sweep has finished."""
    if not cluster.sweep_paths(name).ledger.exists():
        return 0
    found = ledger(cluster, name)
    return sum(len(found.epochs(trial.signature)) for trial in found.trials())


def verify(cluster: Cluster, name: str, *options: object) -> str:
    """Run the sweep command with `--verify` on a finished sweep and return its output."""
    words = shlex.join(map(str, (f"./{name}.py", "--verify", *options)))
    ended = cluster.head.ssh(
        f"cd ~/sweep-orchestrator && python -m orchestrator.sweep {words}", check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.quick
def test_a_sweep_on_three_hosts_has_the_results_of_one_on_one_host(cluster: Cluster) -> None:
    start(cluster, "three", trials=6)
    assert "on 3 nodes" in cluster.finish("three")
    for host in cluster.hosts:  # trials ran on each
        logs = list((host.home / ".cache/sweep-orchestrator").glob("*/three/trials/*/*.log"))
        assert logs, f"no trial ran on {host.name}"
    assert cluster.copies(cluster.dataset) == cluster.hosts
    verify(cluster, "three")
    start(cluster, "one", "--address", "local", "--max-concurrent", 1, trials=6)
    cluster.finish("one")
    assert table(cluster, "three") == table(cluster, "one")
    assert [row[2] for row in table(cluster, "three")] == ["complete"] * 6


def test_mlflow_on_the_head_has_every_trial_and_is_restarted_when_it_is_killed(
    cluster: Cluster,
) -> None:
    runs = mlflow_runs(cluster, "http://127.0.0.1:5000", "three")
    wanted = {row[1]: row[3][-1][1] for row in table(cluster, "three")}
    assert {run["signature"]: run["val_loss"] for run in runs if run["signature"]} == wanted
    assert all(run["status"] == "FINISHED" for run in runs)
    server = uvicorn(cluster)
    cluster.head.ssh("pkill -KILL -f '[-]m uvicorn'")
    cluster.wait_for(
        lambda: len(mlflow_runs(cluster, "http://127.0.0.1:5000", "three")) == len(runs),
        "MLflow again",
        60,
    )
    assert uvicorn(cluster) != server
    # Running the cluster file's command again starts no second server.
    cluster.head.ssh("~/sweep-orchestrator/orchestrator/services.sh head; sleep 1")
    held = cluster.head.ssh("pgrep -fc '[f]lock --nonblock.*mlflow.lock'; true").stdout.split()
    assert held[-1] == "1"


def mlflow_runs(cluster: Cluster, uri: str, experiment: str, host: int = 0, **env: str) -> Any:
    """Return an experiment's runs, requested from MLflow on a host of the cluster."""
    code = f"""
import json, mlflow
client = mlflow.MlflowClient({uri!r})
found = client.get_experiment_by_name({experiment!r})
runs = client.search_runs([found.experiment_id], max_results=1000) if found else []
print("RUNS" + json.dumps([{{"signature": run.data.tags.get("sweep.signature"),
    "status": run.info.status, "id": run.info.run_id,
    "val_loss": run.data.metrics.get("val_loss")}} for run in runs]))
"""
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
    ended = cluster.hosts[host].ssh(
        f"{settings} MLFLOW_HTTP_REQUEST_MAX_RETRIES=0 python -c {shlex.quote(code)}", check=False
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("RUNS")]
    return json.loads(lines[-1][4:]) if lines else []


def uvicorn(cluster: Cluster) -> str:
    """Return the id of the process that serves MLflow."""
    return cluster.head.ssh("pgrep -f '[-]m uvicorn'").stdout.split()[-1]


def title(pid: int) -> str:
    """Return the command line of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_every_port_of_the_cluster_refuses_requests_without_a_token(cluster: Cluster) -> None:
    """Tests all listening sockets of all hosts; only those of sshd and Ray accept connections."""
    start(cluster, "ports", trials=3, epochs=20000)
    cluster.wait_for(lambda: epochs_done(cluster, "ports") >= 3, "epochs", 120, "ports")
    tested, refused = 0, set[str]()
    for host in cluster.hosts:
        for address, port, owner in listening(host):
            if address.startswith("127.") or address == "[::1]":
                continue
            assert owner == "sshd" or is_rays(owner), f"{owner} listens on {address}:{port}"
            if owner != "sshd":
                tested += 1
                answer = without_token(cluster, host.address, port)
                # Ray serves Prometheus metrics without a token; they can only be read.
                assert answer in ("refused", "no HTTP", "metrics"), f"{owner}, {port}: {answer}"
                if answer == "no HTTP":
                    refused |= grpc_refused(cluster, host.address, port)
    assert tested >= 9  # at least the GCS, and two of each raylet
    assert refused == set(GRPC)  # every service was found and refused the request
    for address in (f"{cluster.head.address}:6379", f"ray://{cluster.head.address}:10001"):
        code = (
            f"import ray; ray.init(address={address!r}, log_to_driver=False); "
            "print('JO' + 'INED', ray.get(ray.remote(num_cpus=0)(lambda: 1).remote()))"
        )
        # With the right token the same command joins.
        assert "JOINED" in cluster.hosts[1].ssh(f"timeout 90 python -c {shlex.quote(code)}").stdout
        for env in ("RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=" + "0" * 64):
            ended = cluster.hosts[1].ssh(
                f"{env} timeout 20 python -c {shlex.quote(code)}; true", timeout_s=60
            )
            assert "JOINED" not in ended.stdout, ended.stdout
    cluster.head.ssh("tmux send-keys -t ports C-c")
    cluster.wait_for(lambda: cluster.status("ports") is not None, "the end", 60, "ports")
    assert cluster.status("ports") == 130


def listening(host: Any) -> list[tuple[str, int, str]]:
    """Return address, port and program of every TCP socket that a host listens on."""
    found = []
    for line in host.ssh("ss -ltnpH").stdout.splitlines():
        if not line.startswith("LISTEN"):  # the shell's warning that it has no terminal
            continue
        words = line.split()
        address, _, port = words[3].rpartition(":")
        owner = words[5].split('"')[1] if len(words) > 5 else "unknown"
        found.append((address, int(port), owner))
    return found


def is_rays(owner: str) -> bool:
    return owner.startswith(("ray", "gcs_server", "raylet", "python"))


def without_token(cluster: Cluster, address: str, port: int) -> str:
    """Send an HTTP request without a token and return the result; Ray's other ports use gRPC."""
    code = f"""
import http.client
try:
    link = http.client.HTTPConnection({address!r}, {port}, timeout=5)
    link.request("GET", "/api/jobs/")
    answer = link.getresponse()
    is_metrics = answer.status == 200 and answer.read(6) == b"# HELP"
    print("metrics" if is_metrics else "refused" if answer.status in (401, 403) else answer.status)
except OSError:
    print("no HTTP")
except http.client.HTTPException:
    print("no HTTP")
"""
    lines = cluster.hosts[-1].ssh(f"python -c {shlex.quote(code)}").stdout.split("\n")
    return lines[-2] if len(lines) > 1 else lines[-1]


# Ray's gRPC services, with a method of each that would reveal or change something.
GRPC = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",  # the GCS
    "ray.rpc.InternalKVGcsService/InternalKVKeys",
    "ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "ray.rpc.NodeManagerService/GetNodeStats",  # raylets
    "ray.rpc.NodeManagerService/ShutdownRaylet",
    "ray.rpc.ObjectManagerService/Pull",
    "ray.rpc.CoreWorkerService/GetCoreWorkerStats",  # the driver and the trials' processes
    "ray.rpc.CoreWorkerService/PushTask",
    "ray.rpc.LogService/ListLogs",  # the agents
    "ray.rpc.ReporterService/GetTraceback",
    "ray.rpc.RayletDriver/ClusterInfo",  # the server for Ray's client
)


def grpc_refused(cluster: Cluster, address: str, port: int) -> set[str]:
    """Call the methods without a token and return those that require one; none may succeed."""
    code = f"""
import grpc, json
link, codes = grpc.insecure_channel("{address}:{port}"), {{}}
for method in {GRPC!r}:
    try:
        link.unary_unary("/" + method)(b"", timeout=5)
        codes[method] = "OK"
    except grpc.RpcError as error:
        codes[method] = error.code().name
        if codes[method] in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            break  # no gRPC
print("CODES" + json.dumps(codes))
"""
    ended = cluster.hosts[-1].ssh(
        f"PYTHONWARNINGS=ignore GRPC_VERBOSITY=NONE python -c {shlex.quote(code)}", timeout_s=120
    )
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("CODES"))
    codes: dict[str, str] = json.loads(line.removeprefix("CODES"))
    # A port of another service does not know the method; one without gRPC cannot be called.
    known = {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert set(codes.values()) <= known, f"{address}:{port}: {codes}"
    return {method for method, code in codes.items() if code == "UNAUTHENTICATED"}


def documented_commands() -> dict[str, str]:
    """Return the commands of the page "Run on a cluster on AWS" by their purpose."""
    text = (ROOT / "docs/how-to/cluster-aws.md").read_text().partition("\n## Use it\n")[2]
    rows = re.findall(r"^\| ([^|]+) \| (.*) \|$", text, re.MULTILINE)
    return {
        what.strip(): found.group(1).replace("\\|", "|")
        for what, cell in rows
        if (found := re.search(r"`(ray (?:exec|attach|down) .*?)`", cell))
    }


def test_the_documented_commands_work(cluster: Cluster) -> None:
    """Runs them unchanged: prepare, run, watch, stop, resume, open MLflow.

    The images are Tiny ImageNet's sample, in the place and with the name of the official archive.
    """
    if not TINY.exists():
        pytest.skip(f"{TINY.name} is missing")
    commands = documented_commands()
    place = data_location(f"s3://{cluster.bucket.name}/data").folder.name
    folder = cluster.head.home / ".cache" / "sweep-orchestrator" / "data" / place
    shutil.copy(TINY, folder / "tiny-imagenet-200.zip")

    def run(what: str, more: str = "") -> str:
        (command,) = [line for key, line in commands.items() if key.startswith(what)]
        words = shlex.split(command.replace("cluster.yaml", str(cluster.file)))
        words[-1] = words[-1].replace("tinyimagenet 2>&1", f"tinyimagenet {more} 2>&1")
        ended = cluster.ray(*words[1:])
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    assert "fingerprint" in run("prepare a dataset")
    out = cluster.head.home / "sweep.out"
    for more in ("--max-concurrent 1", "--max-concurrent 1 --resume"):
        run("run a sweep", more)
        cluster.wait_for(lambda: out.exists() and "1 running" in out.read_text(), "a trial", 120)
        assert "trials ended" in run("watch it")
        run("stop the sweep")
        cluster.wait_for(lambda: "Nothing is lost" in out.read_text(), "the end", 60)
        out.write_text("")
    command = next(line for key, line in commands.items() if key.startswith("open MLflow"))
    words = shlex.split(command.replace("cluster.yaml", str(cluster.file)))
    with cluster.ray_in_terminal(*words[1:]):
        cluster.wait_for(lambda: http_status("http://127.0.0.1:5000/") == 200, "MLflow here", 60)
        cluster.wait_for(
            lambda: http_status("http://127.0.0.1:8265/api/jobs/") in (401, 403), "Ray's page", 60
        )


def http_status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


LONG = {"trials": 3, "epochs": 10, "steps": 25}


@pytest.fixture(scope="session")
def unbroken(cluster: Cluster) -> list[tuple[Any, ...]]:
    """The results of the longer sweeps below when nothing fails."""
    start(cluster, "unbroken", "--address", "local", "--max-concurrent", 2, **LONG)
    cluster.finish("unbroken")
    return table(cluster, "unbroken")


def test_killed_and_frozen_hosts_lose_no_results(
    cluster: Cluster, unbroken: list[tuple[Any, ...]]
) -> None:
    """One host is killed, another is frozen until Ray counts it as lost; its late writes do not
    count."""
    start(cluster, "killed", **LONG)
    cluster.wait_for(lambda: epochs_done(cluster, "killed") >= 6, "epochs", 120, "killed")
    _, second, third = cluster.hosts
    second.kill()
    third.freeze()
    cluster.wait_for(lambda: cluster.alive() == 1, "two lost nodes", 150, "killed")
    third.thaw()
    second.boot()
    cluster.finish("killed", 300)
    verify(cluster, "killed")
    assert table(cluster, "killed") == unbroken
    found = ledger(cluster, "killed")
    classes = [a.failure_class for a in found.attempts() if a.outcome == "failed"]
    assert len(classes) == 2
    assert set(classes) <= {"node", "killed"}
    runs = mlflow_runs(cluster, "http://127.0.0.1:5000", "killed")
    assert sorted(r["signature"] for r in runs if r["signature"]) == sorted(
        row[1] for row in unbroken
    )


def test_a_host_that_lost_its_network_for_a_while_loses_no_results(
    cluster: Cluster, unbroken: list[tuple[Any, ...]]
) -> None:
    rejoin(cluster)
    start(cluster, "cut", **LONG)
    cluster.wait_for(lambda: epochs_done(cluster, "cut") >= 3, "epochs", 120, "cut")
    third = cluster.hosts[2]
    third.cut()
    cluster.wait_for(lambda: cluster.alive() == 2, "a lost node", 150, "cut")
    third.reconnect()
    cluster.finish("cut", 300)
    verify(cluster, "cut")
    assert table(cluster, "cut") == unbroken


def rejoin(cluster: Cluster) -> None:
    """Start Ray again on every host that left the cluster."""
    for host in cluster.hosts[1:]:
        if host.address not in cluster.nodes():
            host.ssh(
                f". ~/.sweep-env; ray stop -f; ray start --num-cpus=1 "
                f"--address={cluster.head.address}:6379",
                check=False,
            )
    cluster.wait_for(lambda: cluster.alive() == 3, "three nodes", 90)


def test_trials_leave_a_draining_node_in_time_and_use_a_new_one(cluster: Cluster) -> None:
    """An interruption notice from a metadata service drains a node; another host joins."""
    rejoin(cluster)
    _, second, third = cluster.hosts
    third.ssh("ray stop -f")
    cluster.wait_for(lambda: cluster.alive() == 2, "a node less", 60)
    start(cluster, "drained", trials=4, epochs=10, steps=25)
    cluster.wait_for(lambda: epochs_done(cluster, "drained") >= 3, "epochs", 120, "drained")
    with service(OUTSIDE) as (server, address):
        limit_s = 60
        when = time.gmtime(time.time() + limit_s)
        server.notice = json.dumps(
            {"action": "terminate", "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", when)}
        )
        began_s = time.monotonic()
        printed = second.ssh(
            f"cd ~/sweep-orchestrator && python -m orchestrator.spot --metadata {address} --poll 1"
        ).stdout
        assert "is drained" in printed
        cluster.wait_for(
            lambda: [a for a in ledger(cluster, "drained").attempts() if a.outcome == "failed"],
            "preempted attempt",
            limit_s,
            "drained",
        )
        assert time.monotonic() - began_s < limit_s
    (left,) = [a for a in ledger(cluster, "drained").attempts() if a.outcome == "failed"]
    assert left.failure_class == "preempted"
    second.kill()  # the machine is gone
    third.ssh(f"ray start --num-cpus=1 --address={cluster.head.address}:6379")
    cluster.finish("drained", 300)
    second.boot()
    verify(cluster, "drained")
    logs = list((third.home / ".cache/sweep-orchestrator").glob("*/drained/trials/*/*.log"))
    assert logs, "the new host was not used"
    attempts = ledger(cluster, "drained").attempts()
    assert [a.outcome for a in attempts if a.signature == left.signature][-1] == "complete"
    assert all(row[2] == "complete" for row in table(cluster, "drained"))


def test_two_workers_on_two_hosts_equal_one_and_survive_a_killed_rank(cluster: Cluster) -> None:
    rejoin(cluster)
    start(cluster, "pair", "--workers-per-trial", 2, trials=1, epochs=6, steps=25)
    cluster.wait_for(lambda: epochs_done(cluster, "pair") >= 1, "an epoch", 150, "pair")
    ranks = {
        host.name: [pid for pid in host.pids() if "RayTrainWorker" in title(pid)]
        for host in cluster.hosts
    }
    busy = [name for name, pids in ranks.items() if pids]
    assert len(busy) == 2, ranks
    victim = next(host for host in reversed(cluster.hosts) if ranks[host.name])
    victim.ssh("pkill -KILL -f '[R]ayTrainWorker'")
    cluster.finish("pair", 300)
    verify(cluster, "pair")
    attempts = ledger(cluster, "pair").attempts()
    assert [a.outcome for a in attempts] == ["failed", "complete"]
    assert attempts[1].resumed_from is not None
    start(cluster, "single", trials=1, epochs=6, steps=25)
    cluster.finish("single")
    pair, single = table(cluster, "pair")[0], table(cluster, "single")[0]
    for (epoch, ours), (other, theirs) in zip(pair[3], single[3], strict=True):
        assert epoch == other
        assert ours == pytest.approx(theirs, rel=0.05)


def test_four_trials_share_one_gpu(cluster: Cluster) -> None:
    """The host has no GPU: Ray counts a logical one, and it decides where trials run."""
    rejoin(cluster)
    third = cluster.hosts[2]
    third.ssh("ray stop -f")
    cluster.wait_for(lambda: cluster.alive() == 2, "a node less", 60)
    third.ssh(f"ray start --num-cpus=8 --num-gpus=1 --address={cluster.head.address}:6379")
    cluster.wait_for(lambda: cluster.alive() == 3, "three nodes", 60)
    start(cluster, "quarter", "--gpus-per-trial", 0.25, trials=5, epochs=3)
    most = 0
    while cluster.status("quarter") is None:
        running = [pid for pid in third.pids() if "ray::ImplicitFunc" in title(pid)]
        most = max(most, len(running))
        time.sleep(0.2)
    assert cluster.status("quarter") == 0, cluster.output("quarter")
    assert most == 4
    assert "1 GPUs" in cluster.output("quarter")
    logs = list((third.home / ".cache/sweep-orchestrator").glob("*/quarter/trials/*/*.log"))
    assert len(logs) == 5


def test_mlflow_beyond_loopback_requires_a_login(cluster: Cluster) -> None:
    """Requests by name and by address from another host, with artifacts through the server."""
    head = cluster.head
    head.ssh("pkill -KILL -f '[m]lflow'; sleep 1; true")
    head.ssh(f"SWEEP_MLFLOW_HOST={head.address} ~/sweep-orchestrator/orchestrator/services.sh head")
    password = {}

    def ready() -> bool:
        file = head.home / "sweep-services" / "mlflow-password"
        if not file.exists():
            return False
        assert file.stat().st_mode & 0o077 == 0
        password.update(
            MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD=file.read_text().strip()
        )
        return bool(mlflow_runs(cluster, f"http://{head.address}:5000", "three", 1, **password))

    cluster.wait_for(ready, "MLflow with users", 60)
    for name in (head.address, head.name):
        uri = f"http://{name}:5000"
        assert mlflow_runs(cluster, uri, "three", 1) == []
        runs = mlflow_runs(cluster, uri, "three", 1, **password)
        trial = next(run for run in runs if run["signature"])
        code = (
            f"import mlflow; client = mlflow.MlflowClient({uri!r}); "
            f"print(open(client.download_artifacts({trial['id']!r}, 'config.json')).read())"
        )
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in password.items())
        printed = cluster.hosts[1].ssh(f"{settings} python -c {shlex.quote(code)}").stdout
        assert '"variant": "cnn3"' in printed


def test_a_sweep_resumes_from_the_storage_after_its_head_and_disk_are_lost(
    cluster: Cluster, unbroken: list[tuple[Any, ...]]
) -> None:
    """MLflow's database, the ledger and all checkpoints of the head are deleted with it."""
    start(cluster, "lost", **LONG)
    cluster.wait_for(lambda: epochs_done(cluster, "lost") >= 6, "epochs", 150, "lost")
    space = (cluster.head.home / "sweep-orchestrator" / "lost.py").read_text()
    time.sleep(3)  # the copy of the ledger follows about a second after each change
    done = epochs_done(cluster, "lost")
    cluster.head.kill()
    cluster.head.lose_disk()
    cluster.head.boot()
    assert cluster.sweep_paths("lost").ledger.exists() is False
    cluster.down()  # otherwise this machine's Ray assumes that the head is set up
    cluster.up(3)
    (cluster.head.home / "sweep-orchestrator" / "lost.py").write_text(space)
    cluster.start("lost", "./lost.py", "--final-seeds", 0, "--resume")
    cluster.finish("lost", 360)
    verify(cluster, "lost")
    assert table(cluster, "lost") == unbroken
    found = ledger(cluster, "lost")
    before = [e for t in found.trials() for e in found.epochs(t.signature) if e.attempt == 1]
    assert len(before) >= done - 3  # at most one epoch of each trial was not copied yet
    runs = mlflow_runs(cluster, "http://127.0.0.1:5000", "lost")
    assert sorted(r["signature"] for r in runs if r["signature"]) == sorted(
        row[1] for row in unbroken
    )
    assert all(run["status"] == "FINISHED" for run in runs)
