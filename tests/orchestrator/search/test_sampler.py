"""Suggestions are a function of the ledger's rows and the seed."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from orchestrator.ledger.ledger import Ledger, create_ledger, open_ledger
from orchestrator.ledger.records import EpochRow, Trial
from orchestrator.search.sampler import Study
from tests.orchestrator.sweeps import metrics

PARAMS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "crop_padding_px": IntDistribution(0, 8),
    "batch_size": CategoricalDistribution([32, 64, 128]),
    "hflip": CategoricalDistribution([True, False]),
}


def study(params: dict[str, BaseDistribution] | None = None, **values: Any) -> Study:
    defaults: dict[str, Any] = {"mode": "max", "startup_trials": 5, "sweep_seed": 3}
    return Study("cnn2", PARAMS if params is None else params, **{**defaults, **values})


def rebuilt(ledger: Ledger, **values: Any) -> Study:
    """Return a study rebuilt from the ledger's rows."""
    again = study(**values)
    for trial in ledger.trials():
        again.add_planned(trial)
        if trial.status not in ("planned", "running"):
            again.tell(trial, ledger.epochs(trial.signature), "val_top1")
    return again


def quality(params: dict[str, Any]) -> float:
    return 1 - abs(math.log10(params["lr"]) + 2) / 3 - abs(params["dropout"] - 0.3)


ENDS = ("complete", "complete", "stopped", "diverged", "failed", "running", "complete", "all_nan")


def plan(ledger: Ledger, number: int, params: dict[str, Any]) -> str:
    key = f"t{number}"
    ledger.plan_trial(
        signature=key, variant="cnn2", number=number, config={}, params=params, seen_seq=0
    )
    ledger.start_attempt(key, resumed_from=None, micro_batch_size=0)
    return key


def end(ledger: Ledger, key: str, how: str, rows: Sequence[float]) -> Trial:
    for epoch, value in enumerate(rows):
        ledger.record_epoch(key, 1, epoch, metrics(val_top1=value), None)
    status: Any = "complete" if how == "all_nan" else how
    finite = [value for value in rows if math.isfinite(value)]
    best = (0, max(finite)) if finite and how in ("complete", "stopped") else None
    ledger.end_attempt(key, 1, outcome=status, trial_status=status, best=best)
    return ledger.trial(key)


@pytest.mark.parametrize(("mode", "seed"), [("max", 0), ("min", 11)])
def test_a_rebuilt_study_makes_the_same_suggestions(tmp_path: Path, mode: str, seed: int) -> None:
    """Rebuilt at each step, with trials that end late, out of order, in all ways, or never."""
    path = tmp_path / "ledger.sqlite"
    ledger = create_ledger(path, {"plan": {}})
    live = study(mode=mode, sweep_seed=seed)
    draws = random.Random(seed)
    running: list[str] = []
    for number in range(44):
        ledger.close()
        ledger = open_ledger(path)
        expected = rebuilt(ledger, mode=mode, sweep_seed=seed).ask(number)
        params = live.ask(number)
        assert params == expected
        assert list(map(type, params.values())) == list(map(type, expected.values()))
        running.append(plan(ledger, number, params))
        draws.shuffle(running)
        while len(running) > draws.randrange(1, 5):
            how = draws.choice(ENDS)
            key = running.pop()
            if how == "running":
                continue  # it never ends
            value = quality(ledger.trial(key).params)
            rows = [value * part for part in (0.5, 0.8, 1.0)]
            if how == "stopped":
                rows = [*rows[:1], math.nan]
            elif how in ("diverged", "failed"):
                rows = rows[: draws.randrange(2)]
            elif how == "all_nan":
                rows = [math.nan]
            trial = end(ledger, key, how, rows)
            live.tell(trial, ledger.epochs(key), "val_top1")
    statuses = {trial.status for trial in ledger.trials()}
    assert statuses == {"complete", "stopped", "diverged", "failed", "running"}


def test_suggestions_have_the_range_and_type_of_their_parameter() -> None:
    asked = study()
    for number in range(12):
        params = asked.ask(number)
        assert 1e-5 <= params["lr"] <= 1e-1
        assert 0 <= params["dropout"] <= 0.5
        assert type(params["crop_padding_px"]) is int
        assert params["batch_size"] in (32, 64, 128)
        assert type(params["hflip"]) is bool


def test_suggestions_depend_on_sweep_seed_variant_and_number() -> None:
    first = study().ask(0)
    assert study().ask(0) == first
    assert study(sweep_seed=4).ask(0) != first
    other = Study("cnn3", PARAMS, mode="max", startup_trials=5, sweep_seed=3)
    assert other.ask(0) != first
    again = study()
    drawn = [again.ask(number)["lr"] for number in range(6)]
    assert len(set(drawn)) == 6


def ended_trial(number: int, dropout: float, status: Any, value: float | None) -> Trial:
    return Trial(
        signature=f"t{number}",
        variant="cnn2",
        stage="search",
        origin=None,
        number=number,
        config={},
        params={"dropout": dropout},
        seen_seq=0,
        planned_seq=number,
        changed_seq=number,
        ended_seq=number,
        status=status,
        best_epoch=None if value is None else 0,
        best_value=value,
    )


def study_of_24(
    outcome: Callable[[dict[str, Any]], tuple[str, float | None]], seed: int, **values: Any
) -> Study:
    """Return a study with the results of 24 evenly spread trials."""
    own = study({"dropout": FloatDistribution(0.0, 1.0)}, sweep_seed=seed, **values)
    for number in range(24):
        params = {"dropout": (number + 0.5) / 24}
        status, value = outcome(params)
        trial = ended_trial(number, params["dropout"], status, value)
        own.add_planned(trial)
        own.tell(trial, [], "val_top1")
    return own


def share_above(threshold: float, outcome: Callable[[dict[str, Any]], Any], **values: Any) -> float:
    """Return the share of suggestions above a threshold, over 40 seeds."""
    drawn = [study_of_24(outcome, seed, **values).ask(24)["dropout"] for seed in range(40)]
    return sum(value > threshold for value in drawn) / len(drawn)


def test_the_sampler_avoids_regions_where_trials_diverged() -> None:
    """The metric improves towards that region up to its border."""

    def outcome(params: dict[str, Any]) -> tuple[str, float | None]:
        if params["dropout"] > 0.5:
            return "diverged", None
        return "complete", params["dropout"]

    assert share_above(0.55, outcome) < 0.1


def test_diverged_trials_are_ranked_below_the_worst_complete_one() -> None:
    """All complete trials are equally bad, so the sampler can only avoid divergence."""

    def outcome(params: dict[str, Any]) -> tuple[str, float | None]:
        return ("diverged", None) if params["dropout"] > 0.5 else ("complete", -100.0)

    assert share_above(0.5, outcome) < 0.2


def test_the_sampler_ignores_failed_trials() -> None:
    """The next suggestion is the same as without the failed trials."""
    with_failed = study({"dropout": FloatDistribution(0.0, 1.0)}, startup_trials=2)
    without = study({"dropout": FloatDistribution(0.0, 1.0)}, startup_trials=2)
    for number in range(8):
        value = (number * 37 % 100) / 100
        for own, status in ((with_failed, "failed"), (without, "running")):
            is_end = number % 2 == 0
            trial = ended_trial(
                number, value, "complete" if is_end else status, value if is_end else None
            )
            own.add_planned(trial)
            if trial.status != "running":
                own.tell(trial, [], "val_top1")
    assert with_failed.ask(8) == without.ask(8)


def test_the_sampler_prefers_better_regions() -> None:
    def outcome(params: dict[str, Any]) -> tuple[str, float | None]:
        return "complete", params["dropout"]

    assert share_above(0.7, outcome, mode="max") > 0.7
    assert share_above(0.3, outcome, mode="min") < 0.3


def test_a_stopped_trial_is_pruned_with_its_intermediate_values() -> None:
    own = study({"dropout": FloatDistribution(0.0, 1.0)})
    trial = ended_trial(0, 0.5, "stopped", 0.4)
    rows = [
        EpochRow(
            seq=epoch,
            signature="t0",
            epoch=epoch,
            attempt=1,
            arrived_s=0.0,
            checkpoint=None,
            metrics=metrics(val_top1=value),
        )
        for epoch, value in enumerate((0.2, math.nan, 0.4))
    ]
    own.add_planned(trial)
    own.tell(trial, rows, "val_top1")
    [stored] = own._study.get_trials()
    assert stored.state.name == "PRUNED"
    assert stored.intermediate_values == {0: 0.2, 2: 0.4}
    diverged = dataclasses.replace(trial, signature="t1", number=1, status="diverged")
    own.add_planned(diverged)
    own.tell(diverged, rows, "val_top1")
    stored = own._study.get_trials()[1]
    assert (stored.state.name, stored.intermediate_values) == ("PRUNED", {})


def test_a_space_without_ranges_suggests_nothing() -> None:
    own = study({})
    assert [own.ask(0), own.ask(1)] == [{}, {}]
