"""The shipped `cluster.onprem.yaml` on test hosts: `ray up`, commands, `ray down`."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.storage import paths
from tests.cluster.hosts import OUTSIDE, Host
from tests.faults.stores import CREDENTIALS, Bucket
from tests.orchestrator.data.archive_files import SAMPLES

ROOT = Path(__file__).parents[2]
ARCHIVE = SAMPLES / "cifar-10-python-sample.tar.gz"
RAY = Path(sys.executable).with_name("ray")


@dataclass
class Cluster:
    """A cluster of test hosts, the first its head; the operator's machine is this one."""

    hosts: list[Host]
    folder: Path  # the operator's home, with the cluster's file
    bucket: Bucket

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def file(self) -> Path:
        return self.folder / "cluster.onprem.yaml"

    @property
    def dataset(self) -> str:
        """CIFAR-10, or digits if its sample is missing."""
        return "cifar10" if ARCHIVE.exists() else "digits"

    @property
    def source(self) -> list[str]:
        return ["--source", str(ARCHIVE)] if ARCHIVE.exists() else []

    @property
    def storage(self) -> str:
        """The URL of the storage, the same on this machine."""
        return self.bucket.uri()

    def write(self, workers: list[Host], extra: str = "") -> None:
        """Write the shipped file with this cluster's values in the places marked SET."""
        text = (ROOT / "cluster.onprem.yaml").read_text()
        config = yaml.safe_load(text)
        config["provider"]["head_ip"] = self.head.address
        config["provider"]["worker_ips"] = [host.address for host in workers]
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.head.key)}
        config["file_mounts"]["~/sweep-orchestrator"] = str(ROOT)
        config["file_mounts"]["~/.ray/auth_token"] = str(self.folder / ".ray" / "auth_token")
        settings = {
            "SWEEP_DATA_DIR": f"s3://{self.bucket.name}/data",
            "SWEEP_STORAGE": f"s3://{self.bucket.name}/sweeps",
            "AWS_ENDPOINT_URL": f"http://{self.bucket.host}:{self.bucket.port}",
            **CREDENTIALS,
        }
        exports = " ".join(f"{name}={value}" for name, value in settings.items())
        commands = config["setup_commands"]
        assert commands[0].startswith("umask 077; echo 'export SWEEP_DATA_DIR=")
        commands[0] = f"echo 'export {exports}' > ~/.sweep-env"
        # The environment is this machine's: to set it up takes minutes, and CI does it.
        assert commands[-1] == "cd ~/sweep-orchestrator && make setup"
        commands[-1] = f"ln -sfn {Path(sys.executable).parents[1]} ~/sweep-orchestrator/.venv"
        for part in ("head_start_ray_commands", "worker_start_ray_commands"):
            config[part] = [
                command.replace("ray start", f"ray start --num-cpus=1 {extra}".rstrip())
                for command in config[part]
            ]
        self.file.write_text(yaml.safe_dump(config, sort_keys=False, width=1000))

    def ray(self, *arguments: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Run one of Ray's commands for clusters, as the operator."""
        return subprocess.run(
            [str(RAY), *map(str, arguments)],
            cwd=self.folder,
            env=self._env(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @contextmanager
    def ray_in_terminal(self, *arguments: object) -> Iterator[None]:
        """Run one of Ray's commands that needs a terminal until the block ends."""
        command = shlex.join(["script", "-qec", shlex.join([str(RAY), *map(str, arguments)])])
        process = subprocess.Popen(
            f"sleep 1000 | {command} /dev/null",
            shell=True,
            cwd=self.folder,
            env=self._env(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "XDG_"))}
        return {
            **kept,
            "HOME": str(self.folder),
            "RAY_UP_enable_autoscaler_v2": "0",
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        }

    def up(self, nodes: int) -> None:
        """Run `ray up` and wait until all nodes have joined."""
        ended = self.ray("up", self.file, "-y", "--no-config-cache")
        assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-3000:]
        self.wait_for(lambda: self.alive() >= nodes, f"{nodes} nodes", 120)

    def down(self) -> None:
        """Run `ray down`."""
        ended = self.ray("down", self.file, "-y")
        assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-3000:]

    def alive(self) -> int:
        """Return how many nodes the cluster has."""
        return len(self.nodes())

    def nodes(self) -> dict[str, str]:
        """Return Ray's ids of the nodes that are alive, by address."""
        code = (
            "from ray._raylet import GcsClient; "
            "from ray.core.generated import gcs_pb2; "
            f"found = GcsClient(address='{self.head.address}:6379').get_all_node_info(timeout=5); "
            "print(*(f'{info.node_manager_address}={key.hex()}' for key, info in found.items() "
            "if info.state == gcs_pb2.GcsNodeInfo.ALIVE))"
        )
        ended = self.head.ssh(f"python -c {shlex.quote(code)}", check=False)
        if ended.returncode:
            return {}
        return dict(pair.split("=") for pair in ended.stdout.split() if "=" in pair)

    def start(self, name: str, *arguments: object, module: str = "sweep") -> None:
        """Start a command on the head in tmux, as `ray exec --tmux` does."""
        words = shlex.join(["python", "-m", f"orchestrator.{module}", *map(str, arguments)])
        inner = f"cd ~/sweep-orchestrator && {words} > ~/{name}.out 2>&1; echo $? > ~/{name}.status"
        self.head.ssh(f"rm -f ~/{name}.status; tmux new-session -d -s {name} {shlex.quote(inner)}")

    def status(self, name: str) -> int | None:
        """Return the exit status of a started command, None while it runs."""
        file = self.head.home / f"{name}.status"
        return int(file.read_text()) if file.exists() and file.read_text().strip() else None

    def output(self, name: str) -> str:
        """Return the output of a started command so far."""
        file = self.head.home / f"{name}.out"
        return file.read_text() if file.exists() else ""

    def finish(self, name: str, limit_s: float = 240) -> str:
        """Wait for the end of a started command, which must succeed, and return its output."""
        self.wait_for(lambda: self.status(name) is not None, f"the end of {name}", limit_s, name)
        assert self.status(name) == 0, self.output(name)[-6000:]
        return self.output(name)

    def wait_for(
        self, is_so: Callable[[], Any], what: str, limit_s: float, name: str | None = None
    ) -> None:
        """Wait until a condition holds; `what` names it in the error."""
        until_s = time.monotonic() + limit_s
        while not is_so():
            if time.monotonic() > until_s:
                output = self.output(name)[-4000:] if name else ""
                raise AssertionError(f"There was no {what} within {limit_s:.0f} s. {output}")
            time.sleep(0.5)

    def sweep_paths(self, name: str) -> paths.SweepPaths:
        """Return the paths of a running sweep on the head."""
        cache = self.head.home / ".cache" / "sweep-orchestrator"
        found = [path.parent for path in cache.glob(f"*/{name}/ledger.sqlite")]
        if not found:
            return paths.SweepPaths(cache / "none", name)
        return paths.SweepPaths(found[0].parent, name)

    def copies(self, dataset: str) -> list[Host]:
        """Return the hosts that hold a copy of a dataset."""
        place = f".cache/sweep-orchestrator/data/*/{dataset}/manifest.json"
        return [host for host in self.hosts if list(host.home.glob(place))]


def new_cluster(hosts: list[Host], folder: Path, bucket: Bucket) -> Cluster:
    """Return a cluster that is not started yet, with its own token."""
    assert bucket.host == OUTSIDE
    folder.mkdir()
    token = folder / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    shutil.rmtree(folder / "results", ignore_errors=True)
    return Cluster(hosts, folder, bucket)
