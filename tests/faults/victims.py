"""What the soak kills: drivers with their Ray, trial processes and an MLflow server."""

from __future__ import annotations

import collections
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.data.prepare import prepare
from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import environment

ROOT = Path(__file__).parents[2]
INJECT = Path(__file__).parent / "inject"
LIMIT_S = 120.0  # for whatever must come about
# For the trials of a driver that was killed, and for Ray's own agents, which wait for its return.
TRIALS_GONE_LIMIT_S, ALL_GONE_LIMIT_S = 20.0, 90.0

SPACE = """
from optuna.distributions import CategoricalDistribution, FloatDistribution
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    name="soak",
    dataset="digits",
    variants=("cnn3", "cnn2"),
    trials=4,
    image_size=32,
    base={"epochs": 6, "batch_size": 64, "steps_per_epoch": 20},
    params={
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "optimizer": CategoricalDistribution(["adamw", "nesterov"]),
    },
    first_rung_epochs=2,
    rung_factor=2,
    startup_trials=2,
)
"""


@dataclass
class Soak:
    """What the whole soak shares, and its figures."""

    folder: Path
    draws: random.Random
    port: int
    say: Callable[[str], None]
    server: subprocess.Popen[bytes] | None = None
    all_sweeps: list[Sweep] = field(default_factory=list)
    kills: collections.Counter[str] = field(default_factory=collections.Counter)
    breaches: list[str] = field(default_factory=list)
    dead: dict[int, float] = field(default_factory=dict)  # sessions of killed drivers, and since
    trials_gone_s: float = 0.0
    all_gone_s: float = 0.0
    extra_epochs: int = 0
    sweeps: int = 0
    compared: int = 0
    equal: int = 0

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass
class Sweep:
    """One sweep that is killed again and again. `driver` is None while none runs."""

    paths: SweepPaths
    concurrent: int
    trials: int = 3  # of each of two variants
    driver: subprocess.Popen[bytes] | None = None
    is_fresh: bool = False  # its driver has just been started
    sessions: set[int] = field(default_factory=set)

    def arm(self, what: str) -> Path:
        return self.paths.local_root / f"arm-{self.paths.name}-{what}"

    @property
    def output(self) -> Path:
        return self.paths.local_root / f"{self.paths.name}.out"


class Broken(Exception):
    """An invariant does not hold, so going on makes no sense."""


@contextmanager
def soaking(
    folder: Path, seed: int, say: Callable[[str], None], *, to_the_last: bool = True
) -> Iterator[Soak]:
    """Prepare data, space and MLflow server; nothing of them is left running afterwards.

    Args:
        folder: an empty one, for everything.
        seed: of the instants.
        say: takes lines of progress.
        to_the_last: see killed drivers' last processes go, and do not just end them.
    """
    (folder / "soak.py").write_text(SPACE)
    prepare("digits", data_dir=folder / "data", progress=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    soak = Soak(folder=folder, draws=random.Random(seed), port=port, say=say)
    over = threading.Event()
    watching = threading.Thread(target=watch, args=(soak, over))
    watching.start()
    try:
        start_server(soak)
        yield soak
    except BaseException:
        to_the_last = False
        raise
    finally:
        kill_server(soak)
        over.set()
        if not to_the_last:
            soak.dead.clear()
        watching.join()
        for pid in processes({session for sweep in soak.all_sweeps for session in sweep.sessions}):
            kill(pid)


def wait(condition: Callable[[], object], sweep: Sweep) -> bool:
    """Poll until the condition holds (True) or the driver has ended (False)."""
    assert sweep.driver is not None
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if condition():
            return True
        if sweep.driver.poll() is not None:
            return bool(condition())
        time.sleep(0.02)
    raise Broken(f"{sweep.paths.root}: nothing went on for {LIMIT_S:g} s, see {sweep.output}")


def start_driver(soak: Soak, sweep: Sweep) -> None:
    words = [
        *(str(soak.folder / "soak.py"), "--name", sweep.paths.name),
        *("--storage", str(sweep.paths.local_root), "--data-dir", str(soak.folder / "data")),
        *("--tracking-uri", soak.uri, "--max-concurrent", str(sweep.concurrent)),
        *("--trials", str(sweep.trials)),
        *(("--resume",) if sweep.paths.ledger.exists() else ()),
    ]
    sweep.paths.local_root.mkdir(parents=True, exist_ok=True)
    variables = {
        **environment(),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(INJECT))),
        "FAULTS_ARM_LEDGER": str(sweep.arm("ledger")),
        "FAULTS_ARM_CHECKPOINT": str(sweep.arm("checkpoint")),
    }
    with sweep.output.open("wb") as output:
        sweep.driver = subprocess.Popen(
            [sys.executable, str(INJECT / "driver.py"), *words],
            cwd=sweep.paths.local_root,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    soak.all_sweeps.append(sweep)
    sweep.sessions.add(sweep.driver.pid)
    sweep.is_fresh = True


def start_server(soak: Soak) -> None:
    """Start the MLflow server and wait until it answers."""
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
        *("--port", str(soak.port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{soak.folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(soak.folder / "artifacts")),
    ]
    with (soak.folder / "server.log").open("ab") as log:
        soak.server = subprocess.Popen(
            command,
            cwd=soak.folder,
            # Its job runners are not needed, and leave files behind when they are killed.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{soak.uri}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise Broken("the MLflow server does not start")


def kill_server(soak: Soak) -> None:
    if soak.server is not None:
        os.killpg(soak.server.pid, signal.SIGKILL)
        soak.server.wait()
        soak.server = None


def watch(soak: Soak, over: threading.Event) -> None:
    """See what killed drivers leave, and for how long, until nothing of them is left."""
    while not (over.wait(0.3) and not soak.dead):
        for session, since in list(soak.dead.items()):
            left = processes({session})
            age_s = time.monotonic() - since
            trials = [pid for pid in left if is_trial(pid)]
            if trials:
                soak.trials_gone_s = max(soak.trials_gone_s, age_s)
            if left:
                soak.all_gone_s = max(soak.all_gone_s, age_s)
            if age_s > (TRIALS_GONE_LIMIT_S if trials else ALL_GONE_LIMIT_S):
                titles = ", ".join(title_of(pid) for pid in left)
                soak.breaches.append(f"processes: {titles} outlived their driver by {age_s:.0f} s")
                for pid in left:
                    kill(pid)
                left = []
            if not left:
                soak.dead.pop(session, None)


def processes(sessions: Collection[int]) -> list[int]:
    """Return what lives of drivers' sessions: everything that they have started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # Behind the name, which may hold anything: state, parent, group, session.
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) in sessions and state != "Z":
                found.append(int(folder.name))
    return found


def trial_pids(sweep: Sweep) -> list[int]:
    """Return the trial processes of the driver that runs; killed ones' may still be there."""
    assert sweep.driver is not None
    return [pid for pid in processes({sweep.driver.pid}) if is_trial(pid)]


def is_trial(pid: int) -> bool:
    return title_of(pid).startswith(("ray::ImplicitFunc", "ray::run_trial"))


def title_of(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "a process that is gone"
    return text.replace(b"\0", b" ").decode(errors="replace").strip()[:100]


def kill(pid: int) -> None:
    if pid > 0:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
