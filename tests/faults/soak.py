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
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.ledger.snapshot import local_copy
from orchestrator.storage.paths import SweepPaths
from orchestrator.verify import check
from orchestrator.verify.snapshot import Result, read_snapshot
from tests.faults.victims import (
    LIMIT_S,
    Broken,
    Soak,
    Sweep,
    kill,
    kill_server,
    soaking,
    start_driver,
    start_server,
    trial_pids,
    wait,
)
from tests.integration.sweeps import count_epochs, ledger_of, table

TRIALS = 6  # of each of two variants
SHARES = {"driver": 7, "ledger": 4, "trial": 3, "checkpoint": 4, "server": 2}  # of 20 kills


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", choices=SHARES, help="this kind of kill and no other")
    parser.add_argument("--minutes", type=float, default=60, help="no kills after these")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{(time.monotonic() - begun) / 60:5.1f} min  {line}", flush=True)

    with soaking(folder, options.seed, say) as soak:
        say(f"{options.kills} kills, seed {options.seed}, in {folder}")
        try:
            half = options.kills // 2
            only = [options.only] if options.only else None
            kinds = drawn_kinds(soak.draws, options.kills, only)
            until = begun + options.minutes * 60
            run(soak, 1, kinds[half:], (begun + until) / 2)
            run(soak, 2, kinds[:half], until)
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


def drawn_kinds(draws: random.Random, kills: int, only: list[str] | None = None) -> list[str]:
    kinds = only or [kind for kind, share in SHARES.items() for _ in range(share)]
    drawn: list[str] = []
    while len(drawn) < kills:
        draws.shuffle(kinds)
        drawn += kinds
    return drawn[:kills]


def run(soak: Soak, concurrent: int, kinds: Sequence[str], until: float) -> None:
    """Spend the kills on as many sweeps as it takes, each compared when it has ended.

    Args:
        soak: the whole.
        concurrent: trials at a time.
        kinds: of the kills, in their order.
        until: when to stop killing, on the monotonic clock.
    """
    reference = None
    if concurrent == 1 and kinds:
        whole = Sweep(SweepPaths(soak.folder / "whole", "soak"), 1, TRIALS)
        finish(soak, whole)
        reference = everything(whole.paths)
        soak.say(f"unbroken: {len(reference[0])} trials, {len(reference[1])} epochs")
    waiting = list(kinds)
    number = 0
    while waiting and time.monotonic() < until:
        number += 1
        name = f"soak-{concurrent}-{number}"
        sweep = Sweep(SweepPaths(soak.folder / "broken", name), concurrent, TRIALS)
        spent = 0
        while waiting and time.monotonic() < until and strike(soak, sweep, waiting[0]):
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
        # A transaction has three places and an epoch is one; a checkpoint has about thirty.
        places = soak.draws.randint(1, 15 if kind == "ledger" else 60)
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


def after_death(soak: Soak, sweep: Sweep) -> None:
    """A driver was killed: its ledger is consistent at once."""
    if sweep.paths.ledger.exists():
        # As if it still ran: its attempts are open until the next driver closes them.
        driver = "a killed driver"
        with local_copy(sweep.paths, driver) as copy:
            note(soak, sweep, check.check_ledger(read_snapshot(sweep.paths, copy, driver)))


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
            raise Broken(f"{sweep.paths.root}: exit status {status}, see {sweep.output}")
        if "does not have everything" not in text:
            return
    raise Broken(f"MLflow: {sweep.paths.root}: MLflow did not take everything, see {sweep.output}")


def judge(soak: Soak, sweep: Sweep, reference: object) -> None:
    """Check every invariant of a sweep that has ended, and compare it with the unbroken one."""
    with local_copy(sweep.paths, None) as copy:
        note(soak, sweep, check.check(read_snapshot(sweep.paths, copy, None), soak.uri))
    ledger = ledger_of(sweep.paths)
    left = [trial for trial in ledger.trials() if trial.ended_seq is None]
    counts = len(ledger.trials("search")), len(ledger.trials("final")), len(ledger.evaluations())
    if left or counts != (2 * sweep.trials, 2, 2):  # one final trial of each variant, evaluated
        soak.breaches.append(f"ledger: {sweep.paths.root}: {len(left)} trials have not ended")
    ledger.close()
    if reference is not None:
        soak.compared += 1
        if everything(sweep.paths) == reference:
            soak.equal += 1
        else:
            soak.breaches.append(f"{sweep.paths.root} differs from the unbroken sweep")
    soak.extra_epochs += repeated_epochs(soak, sweep)


def note(soak: Soak, sweep: Sweep, results: Sequence[Result]) -> None:
    for breach in (breach for result in results for breach in result.problems):
        soak.breaches.append(f"{breach} [{sweep.paths.root}]")


def everything(paths: SweepPaths) -> tuple[list[object], list[object]]:
    """Every suggestion, status and metric but measured time."""
    ledger = ledger_of(paths)
    trials: list[object] = [
        (t.name, t.signature, t.params, t.status, t.best_epoch, t.best_value)
        for t in ledger.trials()
    ]
    evaluated = [(s, one["confusion"], one["loss"]) for s, one in ledger.evaluations().items()]
    ledger.close()
    return trials + evaluated, list(table(paths))


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
                soak.breaches.append(f"resume: {log}: {again} epochs were trained again")
            extra += again
            trained |= own
    return extra


def summary(soak: Soak, minutes: float) -> str:
    total = sum(soak.kills.values())
    kinds = ", ".join(f"{soak.kills[kind]} {kind}" for kind in SHARES)
    lost = sum("ledger:" in breach for breach in soak.breaches)
    return (
        f"{total} kills ({kinds}) in {soak.sweeps} sweeps, {minutes:.1f} min: "
        f"{len(soak.breaches)} breaches, {lost} trials lost or doubled, "
        f"{sum('MLflow:' in breach for breach in soak.breaches)} duplicate or missing metrics, "
        f"tables equal {soak.equal} of {soak.compared}, "
        f"{soak.extra_epochs / max(total, 1):.2f} epochs finished twice per kill (beside the "
        f"one under way), "
        f"a killed driver's trials gone after {soak.trials_gone_s:.1f} s at the latest, the rest "
        f"of its Ray after {soak.all_gone_s:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
