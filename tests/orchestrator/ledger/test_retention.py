"""Which checkpoints stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.ledger import ranking, retention
from orchestrator.ledger.ledger import Ledger
from orchestrator.storage.paths import SweepPaths
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths(tmp_path, "s")


def sweep(paths: SweepPaths, keep: int = 2, mode: str = "max") -> Ledger:
    metric = "val_top1" if mode == "max" else "val_loss"
    return new_ledger(paths.ledger, plan(space(keep_best=keep, mode=mode, metric=metric)))


def add(
    ledger: Ledger,
    paths: SweepPaths,
    key: str,
    status: str,
    best: tuple[int, float] | None,
    *,
    variant: str = "cnn2",
) -> None:
    """Add a trial with checkpoints of two epochs in each of two attempts."""
    number = sum(trial.variant == variant for trial in ledger.trials())
    ledger.plan_trial(
        signature=key,
        variant=variant,
        number=number,
        config={"select_by": "val_top1"},
        params={},
        seen_seq=0,
    )
    for attempt in (1, 2):
        ledger.start_attempt(key, resumed_from=None, micro_batch_size=0)
        for epoch in (2 * attempt - 2, 2 * attempt - 1):
            name = f"trials/{key}/attempt_{attempt}/epoch_{epoch:04d}"
            (paths.root / name).mkdir(parents=True)
            (paths.root / name / "model.safetensors").write_text(name)
            ledger.record_epoch(key, attempt, epoch, metrics(), name)
        if status != "running" or attempt == 1:
            ledger.end_attempt(
                key,
                attempt,
                outcome="lost" if attempt == 1 else status,
                trial_status="running" if attempt == 1 else status,  # type: ignore[arg-type]
                best=best,
            )


def kept(paths: SweepPaths, key: str) -> list[str]:
    return sorted(str(p.relative_to(paths.trial(key))) for p in paths.trial(key).glob("*/epoch_*"))


ALL = [
    *("attempt_1/epoch_0000", "attempt_1/epoch_0001"),
    *("attempt_2/epoch_0002", "attempt_2/epoch_0003"),
]


def test_the_best_trials_of_each_variant_keep_only_their_best_epoch(paths: SweepPaths) -> None:
    ledger = sweep(paths)
    add(ledger, paths, "low", "complete", (0, 0.5))
    add(ledger, paths, "high", "complete", (1, 0.9))
    add(ledger, paths, "middle", "stopped", (2, 0.7))
    add(ledger, paths, "other", "complete", (3, 0.1), variant="cnn3")
    retention.collect(ledger, paths, set())
    assert kept(paths, "low") == []
    assert kept(paths, "high") == ["attempt_1/epoch_0001"]
    assert kept(paths, "middle") == ["attempt_2/epoch_0002"]
    assert kept(paths, "other") == ["attempt_2/epoch_0003"]


def test_running_and_failed_trials_keep_the_checkpoints_to_resume_from(paths: SweepPaths) -> None:
    """Of attempts that are over the best epoch, here the first, and the trial's last two."""
    ledger = sweep(paths, keep=0)
    add(ledger, paths, "running", "running", None)
    add(ledger, paths, "failed", "failed", None)
    add(ledger, paths, "diverged", "diverged", None)
    (paths.trial("running") / "attempt_1" / ".epoch_0002.tmp").mkdir()
    retention.collect(ledger, paths, set())
    left = [name for name in ALL if name != "attempt_1/epoch_0001"]
    assert kept(paths, "running") == kept(paths, "failed") == left
    assert not (paths.trial("running") / "attempt_1" / ".epoch_0002.tmp").exists()
    assert kept(paths, "diverged") == []


def test_the_checkpoint_an_attempt_resumed_from_stays_while_it_runs(paths: SweepPaths) -> None:
    ledger = sweep(paths, keep=0)
    add(ledger, paths, "a", "running", None)
    ledger.end_attempt("a", 2, outcome="lost", trial_status="running")
    from_epoch = "trials/a/attempt_1/epoch_0001"
    ledger.start_attempt("a", resumed_from=from_epoch, micro_batch_size=0)
    retention.collect(ledger, paths, set())
    assert kept(paths, "a") == ALL


@pytest.mark.parametrize("mode", ["max", "min"])
def test_of_equal_trials_the_earlier_one_is_always_the_better(paths: SweepPaths, mode: str) -> None:
    ledger = sweep(paths, mode=mode)
    asked = []
    for key, value in (("a", 0.5), ("b", 0.5), ("c", 0.5), ("d", 0.9), ("e", 0.1)):
        add(ledger, paths, key, "complete", (0, value))
        asked.append(sorted(ranking.top_k(ledger.trials(), 2, mode)))
    expected = [["a"], ["a", "b"], ["a", "b"]]
    expected += [["a", "d"], ["a", "d"]] if mode == "max" else [["a", "b"], ["a", "e"]]
    assert asked == expected


def test_a_displaced_trial_loses_its_checkpoint(paths: SweepPaths) -> None:
    ledger, done = sweep(paths, keep=1), set[str]()
    add(ledger, paths, "first", "complete", (0, 0.5))
    retention.collect(ledger, paths, done)
    assert kept(paths, "first") == ["attempt_1/epoch_0000"]
    assert done == set()
    add(ledger, paths, "better", "complete", (1, 0.6))
    retention.collect(ledger, paths, done)
    assert kept(paths, "first") == []
    assert kept(paths, "better") == ["attempt_1/epoch_0001"]
    assert done == {"first"}


def test_a_later_attempts_checkpoint_of_the_best_epoch_replaces_a_lost_one(
    paths: SweepPaths,
) -> None:
    ledger = sweep(paths, keep=1)
    add(ledger, paths, "a", "complete", (1, 0.5))
    (paths.trial("a") / "attempt_1" / "epoch_0001").rename(
        paths.trial("a") / "attempt_2" / "epoch_0001"
    )
    retention.collect(ledger, paths, set())
    assert kept(paths, "a") == ["attempt_2/epoch_0001"]
    best = retention.best_checkpoint(ledger, paths, ledger.trial("a"))
    assert best == paths.trial("a") / "attempt_2" / "epoch_0001"


def test_partial_checkpoints_of_a_killed_worker_are_deleted_at_the_trials_end(
    paths: SweepPaths,
) -> None:
    ledger = sweep(paths, keep=1)
    add(ledger, paths, "a", "complete", (1, 0.5))
    half = paths.trial("a") / "attempt_1" / ".epoch_0002.77.tmp"
    half.mkdir()
    retention.collect(ledger, paths, set())
    assert not half.exists()


def test_a_trial_without_a_best_value_is_never_among_the_best(paths: SweepPaths) -> None:
    ledger = sweep(paths, keep=3)
    add(ledger, paths, "none", "complete", None)
    add(ledger, paths, "diverged", "diverged", (0, 0.9))
    add(ledger, paths, "zero", "complete", (0, 0.0))
    assert ranking.top_k(ledger.trials(), 3, "max") == {"zero"}


def test_the_averaged_weights_are_kept_if_there_are_any(paths: SweepPaths) -> None:
    ledger = sweep(paths)
    add(ledger, paths, "a", "complete", (1, 0.5))
    trial = ledger.trial("a")
    folder = paths.trial("a") / "attempt_1" / "epoch_0001"
    assert retention.best_checkpoint(ledger, paths, trial) == folder
    assert retention.best_weights(ledger, paths, trial) == folder / "model.safetensors"
    (folder / "average.safetensors").touch()
    assert retention.best_weights(ledger, paths, trial) == folder / "average.safetensors"


def test_missing_weights_are_none(paths: SweepPaths) -> None:
    ledger = sweep(paths)
    add(ledger, paths, "a", "complete", (1, 0.5))
    trial = ledger.trial("a")
    (paths.trial("a") / "attempt_1" / "epoch_0001" / "model.safetensors").unlink()
    assert retention.best_weights(ledger, paths, trial) is None
    (paths.trial("a") / "attempt_1" / "epoch_0001").rmdir()
    assert retention.best_checkpoint(ledger, paths, trial) is None
    assert retention.best_weights(ledger, paths, trial) is None
