"""Kills a short sweep at random instants, resumes it each time, compares it with an unbroken one.

`make soak KILLS=100`. Half of the kills fall on sweeps with one trial at a time, whose final table
must equal the unbroken run's in full; half on sweeps with two, which must keep every invariant of
`orchestrator.sweep --verify`. What dies, with SIGKILL each time:

    driver      at any instant, its start included
    ledger      the driver, inside or just after a transaction of the ledger
    trial       a trial's process
    checkpoint  a trial's process, inside the saving of a checkpoint
    server      the MLflow server, which is started again

Exit status 0 when everything held, 1 when something did not; then the folder is kept.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import verify
from orchestrator.data import prepare
from orchestrator.paths import SweepPaths
from orchestrator.verify_facts import Result, facts_of
from tests.integration.sweeps import count_epochs, environment, ledger_of, table

ROOT = Path(__file__).parents[2]
INJECT = Path(__file__).parent / "inject"
SHARES = {"driver": 7, "ledger": 4, "trial": 3, "checkpoint": 4, "server": 2}  # of 20 kills
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
    side=32,
    base={"epochs": 6, "batch_size": 64, "steps_per_epoch": 8},
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
    driver: subprocess.Popen[bytes] | None = None
    is_fresh: bool = False  # its driver has just been started
    sessions: set[int] = field(default_factory=set)

    def arm(self, what: str) -> Path:
        return self.paths.storage / f"arm-{self.paths.name}-{what}"

    @property
    def output(self) -> Path:
        return self.paths.storage / f"{self.paths.name}.out"


class Broken(Exception):
    """An invariant does not hold, so going on makes no sense."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", choices=SHARES, help="this kind of kill and no other")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    with soaking(folder, options.seed, lambda line: print(line, flush=True)) as soak:
        soak.say(f"{options.kills} kills, seed {options.seed}, in {folder}")
        begun = time.monotonic()
        try:
            half = options.kills // 2
            only = [options.only] if options.only else None
            run(soak, 1, drawn_kinds(soak.draws, options.kills - half, only))
            run(soak, 2, drawn_kinds(soak.draws, half, only))
        except Broken as error:
            soak.breaches.append(str(error))
        minutes = (time.monotonic() - begun) / 60
    print(summary(soak, minutes))
    if soak.breaches:
        print(
            "\n".join(f"BROKEN: {breach}" for breach in soak.breaches), f"Kept: {folder}", sep="\n"
        )
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


@contextmanager
def soaking(folder: Path, seed: int, say: Callable[[str], None]) -> Iterator[Soak]:
    """Prepare data, space and MLflow server; nothing of them is left running afterwards."""
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
    finally:
        kill_server(soak)
        over.set()
        watching.join()
        for pid in processes({session for sweep in soak.all_sweeps for session in sweep.sessions}):
            kill(pid)


def drawn_kinds(draws: random.Random, kills: int, only: list[str] | None = None) -> list[str]:
    kinds = only or [kind for kind, share in SHARES.items() for _ in range(share)]
    drawn: list[str] = []
    while len(drawn) < kills:
        draws.shuffle(kinds)
        drawn += kinds
    return drawn[:kills]


def run(soak: Soak, concurrent: int, kinds: Sequence[str]) -> None:
    """Spend the kills on as many sweeps as it takes, each compared when it has ended."""
    reference = None
    if concurrent == 1 and kinds:
        whole = Sweep(SweepPaths(soak.folder / "whole", "soak"), 1)
        finish(soak, whole)
        reference = everything(whole.paths)
        soak.say(f"unbroken: {len(reference[0])} trials, {len(reference[1])} epochs")
    waiting = list(kinds)
    number = 0
    while waiting:
        number += 1
        name = f"soak-{concurrent}-{number}"
        sweep = Sweep(SweepPaths(soak.folder / "broken", name), concurrent)
        spent = 0
        while waiting and strike(soak, sweep, waiting[0]):
            soak.kills[waiting.pop(0)] += 1
            spent += 1
        finish(soak, sweep)
        judge(soak, sweep, reference)
        soak.sweeps += 1
        soak.say(
            f"{name}: {spent} kills, {sum(soak.kills.values())} in all; "
            f"{len(ledger_of(sweep.paths).attempts())} attempts, {len(soak.breaches)} breaches"
        )
        if soak.breaches:
            raise Broken(f"sweep {sweep.paths.root}")


def strike(soak: Soak, sweep: Sweep, kind: str) -> bool:
    """Kill once; return whether it hit before the driver had ended by itself."""
    if sweep.driver is None:
        start_driver(soak, sweep)
    assert sweep.driver is not None
    if kind in ("ledger", "checkpoint"):
        # Transactions are few and have three places, a checkpoint has about thirty.
        places = soak.draws.randint(1, 30 if kind == "ledger" else 90)
        sweep.arm(kind).write_text(str(places))
        hit = wait(lambda: not sweep.arm(kind).exists(), sweep)
        sweep.arm(kind).unlink(missing_ok=True)
    else:
        hit = at_random_instant(soak, sweep, may_be_early=kind == "driver")
    if not hit:
        return False
    if kind == "trial":
        if not wait(lambda: trial_pids(sweep), sweep):
            return False
        kill(soak.draws.choice(trial_pids(sweep) or [0]))
    elif kind == "server":
        kill_server(soak)
        time.sleep(soak.draws.uniform(0, 2))
        start_server(soak)
    elif kind in ("driver", "ledger"):
        sweep.driver.kill()
        soak.dead[sweep.driver.pid] = time.monotonic()
        sweep.driver.wait()
        sweep.driver = None
        after_death(soak, sweep)
    return True


def at_random_instant(soak: Soak, sweep: Sweep, *, may_be_early: bool) -> bool:
    """Wait until a random instant; return False when the driver ended before it."""
    if sweep.is_fresh and may_be_early and soak.draws.random() < 0.3:
        pause_s = soak.draws.uniform(0.0, 8.0)  # imports, Ray's start, the first worker's
    else:
        before = count_epochs(sweep.paths)
        if not wait(lambda: count_epochs(sweep.paths) > before, sweep):
            return False
        pause_s = soak.draws.uniform(0.0, 1.5)
    sweep.is_fresh = False
    end = time.monotonic() + pause_s
    assert sweep.driver is not None
    while time.monotonic() < end and sweep.driver.poll() is None:
        time.sleep(0.01)
    return sweep.driver.poll() is None


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


def after_death(soak: Soak, sweep: Sweep) -> None:
    """A driver was killed: its ledger is consistent at once."""
    if sweep.paths.ledger.exists():
        # As if it still ran: its attempts are open until the next driver closes them.
        with facts_of(sweep.paths, "a killed driver") as facts:
            note(soak, sweep, verify.check_ledger(facts))


def finish(soak: Soak, sweep: Sweep) -> None:
    """Let the sweep end in peace, with `--resume` where MLflow was away at its end."""
    for _ in range(3):
        if sweep.driver is None:
            start_driver(soak, sweep)
        assert sweep.driver is not None
        status = sweep.driver.wait(timeout=2 * LIMIT_S)
        sweep.driver = None
        text = sweep.output.read_text()
        if status != 0:
            raise Broken(f"F: {sweep.paths.root}: exit status {status}, see {sweep.output}")
        if "did not take everything" not in text:
            return
    raise Broken(f"C: {sweep.paths.root}: MLflow did not take everything, see {sweep.output}")


def judge(soak: Soak, sweep: Sweep, reference: object) -> None:
    """Check every invariant of a sweep that has ended, and compare it with the unbroken one."""
    with facts_of(sweep.paths, None) as facts:
        note(soak, sweep, verify.check(facts, soak.uri))
    ledger = ledger_of(sweep.paths)
    left = [trial for trial in ledger.trials() if trial.ended_seq is None]
    if left or len(ledger.trials()) != 8:
        soak.breaches.append(f"A: {sweep.paths.root}: {len(left)} trials have not ended")
    ledger.close()
    if reference is not None:
        soak.compared += 1
        if everything(sweep.paths) == reference:
            soak.equal += 1
        else:
            soak.breaches.append(f"{sweep.paths.root} differs from the unbroken sweep")
    soak.extra_epochs += repeated_epochs(soak, sweep)


def note(soak: Soak, sweep: Sweep, results: Sequence[Result]) -> None:
    for breach in (breach for result in results for breach in result.breaches):
        soak.breaches.append(f"{breach} [{sweep.paths.root}]")


def everything(paths: SweepPaths) -> tuple[list[object], list[object]]:
    """Every suggestion, status and metric but measured time."""
    ledger = ledger_of(paths)
    trials: list[object] = [
        (t.variant, t.number, t.signature, t.params, t.status, t.best_epoch, t.best_value)
        for t in ledger.trials()
    ]
    ledger.close()
    return trials, list(table(paths))


def repeated_epochs(soak: Soak, sweep: Sweep) -> int:
    """Return how many epochs were trained again, from the attempts' logs; one per death at most."""
    extra = 0
    for folder in sweep.paths.root.glob("trials/*"):
        trained: set[int] = set()
        logs = sorted(folder.glob("attempt_*.log"), key=lambda p: int(p.stem.partition("_")[2]))
        for log in logs:
            own = {int(n) for n in re.findall(r"INFO epoch (\d+)/", log.read_text())}
            again = len(own & trained)
            if again > 1:
                soak.breaches.append(f"B: {log}: {again} epochs were trained again")
            extra += again
            trained |= own
    return extra


def summary(soak: Soak, minutes: float) -> str:
    total = sum(soak.kills.values())
    kinds = ", ".join(f"{soak.kills[kind]} {kind}" for kind in SHARES)
    lost = sum("A:" in breach for breach in soak.breaches)
    return (
        f"{total} kills ({kinds}) in {soak.sweeps} sweeps, {minutes:.1f} min: "
        f"{len(soak.breaches)} breaches, {lost} trials lost or doubled, "
        f"{sum('C:' in breach for breach in soak.breaches)} duplicate or missing metrics, "
        f"tables equal {soak.equal} of {soak.compared}, "
        f"{soak.extra_epochs / max(total, 1):.2f} extra epochs per kill, "
        f"a killed driver's trials gone after {soak.trials_gone_s:.1f} s at the latest, the rest "
        f"of its Ray after {soak.all_gone_s:.0f} s"
    )


def start_driver(soak: Soak, sweep: Sweep) -> None:
    words = [
        *(str(soak.folder / "soak.py"), "--name", sweep.paths.name),
        *("--storage", str(sweep.paths.storage), "--data-dir", str(soak.folder / "data")),
        *("--tracking-uri", soak.uri, "--max-concurrent", str(sweep.concurrent)),
        *(("--resume",) if sweep.paths.ledger.exists() else ()),
    ]
    sweep.paths.storage.mkdir(parents=True, exist_ok=True)
    variables = {
        **environment(),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(INJECT))),
        "FAULTS_ARM_LEDGER": str(sweep.arm("ledger")),
        "FAULTS_ARM_CHECKPOINT": str(sweep.arm("checkpoint")),
    }
    with sweep.output.open("wb") as output:
        sweep.driver = subprocess.Popen(
            [sys.executable, str(INJECT / "driver.py"), *words],
            cwd=sweep.paths.storage,
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
            command, cwd=soak.folder, stdout=log, stderr=log, start_new_session=True
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
                soak.breaches.append(f"G: {titles} outlived their driver by {age_s:.0f} s")
                for pid in left:
                    kill(pid)
                left = []
            if not left:
                del soak.dead[session]


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
    return [pid for pid in processes(sweep.sessions) if is_trial(pid)]


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


if __name__ == "__main__":
    sys.exit(main())
