"""Reports of workers: killed around a report, non-finite values, and values of a wrong type."""

from __future__ import annotations

import collections
import os
from pathlib import Path

import pytest
from optuna.trial import TrialState

from orchestrator.ledger.ledger import Ledger
from orchestrator.plan import resolve
from orchestrator.plan.options import SweepConfig
from orchestrator.search.scheduler import TrialScheduler
from orchestrator.storage.paths import SweepPaths
from tests.integration.sweeps import ledger_of, sweep
from trainables.data.dataset import load_manifest

pytestmark = pytest.mark.faults

INJECT = Path(__file__).parent / "inject"


def _inject(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    paths = [str(INJECT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv(name, str(value))


def _epochs(ledger: Ledger) -> dict[str, list[int]]:
    return {
        trial.signature: [row.epoch for row in ledger.epochs(trial.signature)]
        for trial in ledger.trials()
    }


def test_a_worker_killed_around_its_report_leaves_one_value_per_epoch(
    tmp_path: Path, digits_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 37: killed between a checkpoint and its report, and between a report and the next
    checkpoint."""
    kills = tmp_path / "kills"
    kills.mkdir()
    for when in ("after-epoch_0001", "before-epoch_0003"):
        (kills / when).touch()
    _inject(monkeypatch, "FAULT_KILLS", kills)
    options = ("--variants", "cnn3", "--trials", 1, "--epochs", 5, "--max-concurrent", 1)
    ended = sweep(tmp_path, "digits", *options, "--data-dir", digits_data_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(kills.iterdir()) == []
    ledger = ledger_of(SweepPaths(tmp_path / "results", "digits"))
    (trial,) = ledger.trials()
    rows = ledger.epochs(trial.signature)
    assert [row.epoch for row in rows] == [0, 1, 2, 3, 4]
    assert [row.seq for row in rows] == sorted(row.seq for row in rows)
    attempts = ledger.attempts()
    assert [attempt.failure_class for attempt in attempts] == ["killed", "killed", None]
    # Each attempt resumes from the last epoch in the ledger: at most one epoch is trained again.
    assert [(attempt.resumed_from or "")[-10:] for attempt in attempts] == [
        "",
        "epoch_0000",
        "epoch_0002",
    ]


def test_a_diverging_trial_ends_as_diverged_and_is_never_the_best(
    tmp_path: Path, digits_data_dir: Path
) -> None:
    """Case 38: a learning rate of 1e9; to the sampler the trial is worse than any other."""
    (tmp_path / "mine.py").write_text(
        "from optuna.distributions import CategoricalDistribution\n"
        "from search_spaces.space import SearchSpace\n"
        "SPACE = SearchSpace(name='mine', dataset='digits', variants=('cnn3',), trials=6,\n"
        "    image_size=32, base={'epochs': 2, 'optimizer': 'sgd'}, startup_trials=6,\n"
        "    params={'lr': CategoricalDistribution([1e9, 1e-2])})\n"
    )
    ended = sweep(tmp_path, "./mine.py", "--data-dir", digits_data_dir)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ledger = ledger_of(SweepPaths(tmp_path / "results", "mine"))
    by_rate = collections.defaultdict(set)
    for trial in ledger.trials():
        by_rate[trial.params["lr"]].add((trial.status, trial.best_epoch is None))
    assert by_rate == {1e9: {("diverged", True)}, 1e-2: {("complete", False)}}
    diverged = [trial for trial in ledger.trials() if trial.status == "diverged"]
    assert ended.stdout.count("the loss was not finite") == len(diverged)
    board = ended.stdout.split("Search results")[1].split("These trials")[0]
    assert not any(trial.signature in board for trial in diverged)
    # In the study of a restarted driver they are pruned and have no intermediate values.
    config = SweepConfig(space=str(tmp_path / "mine.py"), name="mine")
    manifest = load_manifest(digits_data_dir / "digits")
    plan, _ = resolve.make_plan(config, resolve.load_space(config.space), manifest, {})
    known = TrialScheduler(ledger, plan)._studies["cnn3"]._study.get_trials()
    for trial in ledger.trials():
        wanted = TrialState.PRUNED if trial in diverged else TrialState.COMPLETE
        assert known[trial.number].state is wanted
        assert known[trial.number].intermediate_values == {}


def test_an_invalid_report_fails_only_its_own_trial(
    tmp_path: Path, digits_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 39: a missing metric, a text and None in place of a number; the error names each."""
    _inject(monkeypatch, "FAULT_REPORTS", "cnn2")
    options = ("--variants", "cnn2,cnn3", "--trials", 2, "--epochs", 2, "--max-concurrent", 1)
    ended = sweep(tmp_path, "digits", *options, "--data-dir", digits_data_dir)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    ledger = ledger_of(SweepPaths(tmp_path / "results", "digits"))
    status = collections.Counter((trial.variant, trial.status) for trial in ledger.trials())
    assert status == {("cnn3", "complete"): 2, ("cnn2", "failed"): 2}
    for trial in ledger.trials():
        texts = [attempt.failure_text for attempt in ledger.attempts(trial.signature)]
        if trial.variant == "cnn2":
            assert _epochs(ledger)[trial.signature] == []
            assert len(texts) == 3
            assert "it lacks 'val_top1'" in texts[0]
            assert "its 'val_loss' must be a number; got 'high'" in texts[1]
            assert "its 'val_loss' must be a number; got None" in texts[2]
        else:
            assert _epochs(ledger)[trial.signature] == [0, 1]
    assert "its 'val_loss' must be a number" in ended.stdout
