"""The study is a function of the ledger's rows and the seed; so is early stopping."""

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
from orchestrator.search.early_stopping import is_rung, is_stopped
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
    """Return a study made anew from nothing but the ledger's rows."""
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
def test_a_rebuilt_study_makes_the_suggestions_of_the_live_one(
    tmp_path: Path, mode: str, seed: int
) -> None:
    """Rebuilt at every step, with trials that end late, out of order, in every way, or never."""
    path = tmp_path / "ledger.sqlite"
    ledger = create_ledger(path, {})
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
                continue  # it runs for ever
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


def test_suggestions_are_within_their_ranges_and_of_their_kinds() -> None:
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


def told(
    outcome: Callable[[dict[str, Any]], tuple[str, float | None]], seed: int, **values: Any
) -> Study:
    """Return a study that was told how 24 evenly spread trials ended."""
    own = study({"dropout": FloatDistribution(0.0, 1.0)}, sweep_seed=seed, **values)
    for number in range(24):
        params = {"dropout": (number + 0.5) / 24}
        status, value = outcome(params)
        trial = Trial(
            signature=f"t{number}",
            variant="cnn2",
            stage="search",
            origin=None,
            number=number,
            config={},
            params=params,
            seen_seq=0,
            planned_seq=number,
            changed_seq=number,
            ended_seq=number,
            status=status,  # type: ignore[arg-type]
            best_epoch=None if value is None else 0,
            best_value=value,
        )
        own.add_planned(trial)
        own.tell(trial, [], "val_top1")
    return own


def share_above(threshold: float, outcome: Callable[[dict[str, Any]], Any], **values: Any) -> float:
    """Return the share of next suggestions, over 40 seeds, that lie above a threshold."""
    drawn = [told(outcome, seed, **values).ask(24)["dropout"] for seed in range(40)]
    return sum(value > threshold for value in drawn) / len(drawn)


def test_the_sampler_avoids_where_trials_diverged() -> None:
    """Though the loss improved towards that region until it broke off."""

    def outcome(params: dict[str, Any]) -> tuple[str, float | None]:
        if params["dropout"] > 0.5:
            return "diverged", None
        return "complete", params["dropout"]

    assert share_above(0.55, outcome) < 0.1


def test_diverged_trials_are_ranked_below_the_worst_complete_one() -> None:
    """All complete trials are equally bad: what is left to prefer is not to diverge."""

    def outcome(params: dict[str, Any]) -> tuple[str, float | None]:
        return ("diverged", None) if params["dropout"] > 0.5 else ("complete", -100.0)

    assert share_above(0.5, outcome) < 0.2


def test_the_sampler_ignores_failed_trials() -> None:
    """Failures say nothing: the next suggestion is the one made without them."""
    with_failed = study({"dropout": FloatDistribution(0.0, 1.0)}, startup_trials=2)
    without = study({"dropout": FloatDistribution(0.0, 1.0)}, startup_trials=2)
    for number in range(8):
        value = (number * 37 % 100) / 100
        for own, status in ((with_failed, "failed"), (without, "running")):
            is_end = number % 2 == 0
            trial = Trial(
                signature=f"t{number}",
                variant="cnn2",
                stage="search",
                origin=None,
                number=number,
                config={},
                params={"dropout": value},
                seen_seq=0,
                planned_seq=number,
                changed_seq=number,
                ended_seq=number,
                status="complete" if is_end else status,  # type: ignore[arg-type]
                best_epoch=0 if is_end else None,
                best_value=value if is_end else None,
            )
            own.add_planned(trial)
            if trial.status != "running":
                own.tell(trial, [], "val_top1")
    assert with_failed.ask(8) == without.ask(8)


def test_the_sampler_moves_towards_what_is_better() -> None:
    def outcome(params: dict[str, Any]) -> tuple[str, float | None]:
        return "complete", params["dropout"]

    assert share_above(0.7, outcome, mode="max") > 0.7
    assert share_above(0.3, outcome, mode="min") < 0.3


def test_a_stopped_trial_is_ranked_by_how_far_it_came() -> None:
    own = study({"dropout": FloatDistribution(0.0, 1.0)})
    trial = Trial(
        signature="a",
        variant="cnn2",
        stage="search",
        origin=None,
        number=0,
        config={},
        params={"dropout": 0.5},
        seen_seq=0,
        planned_seq=1,
        changed_seq=1,
        ended_seq=1,
        status="stopped",
        best_epoch=0,
        best_value=0.4,
    )
    rows = [
        EpochRow(
            seq=epoch,
            signature="a",
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
    diverged = dataclasses.replace(trial, signature="b", number=1, status="diverged")
    own.add_planned(diverged)
    own.tell(diverged, rows, "val_top1")
    stored = own._study.get_trials()[1]
    assert (stored.state.name, stored.intermediate_values) == ("PRUNED", {})


def test_a_space_without_ranges_suggests_nothing() -> None:
    own = study({})
    assert [own.ask(0), own.ask(1)] == [{}, {}]


# Early stopping. A row: the values that had arrived, the last one's own first; does it stop?
HAND_WORKED = [
    # Fewer than `factor`: all go on.
    ([0.1], False),
    ([0.1, 0.9], False),
    # 3 of them: the best one goes on.
    ([0.1, 0.9, 0.5], True),
    ([0.9, 0.1, 0.5], False),
    ([0.8, 0.9, 0.5], True),
    # 5: still one; 6: two.
    ([0.8, 0.9, 0.1, 0.2, 0.3], True),
    ([0.8, 0.9, 0.1, 0.2, 0.3, 0.4], False),
    ([0.4, 0.9, 0.1, 0.2, 0.3, 0.8], True),
    # 9: three.
    ([0.7, 0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], False),
    ([0.6, 0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7], True),
    # As good as the last one that goes on: goes on too.
    ([0.5, 0.5, 0.5], False),
    ([0.9, 0.9, 0.1], False),
    ([0.1, 0.1, 0.9], True),
    # What is no number is worse than all.
    ([math.nan, 0.1], False),
    ([math.nan, 0.1, 0.2], True),
    ([0.1, math.nan, math.nan], False),
    ([math.nan, math.nan, math.nan], True),
    ([0.1, math.nan, 0.2], True),
]


@pytest.mark.parametrize(("values", "stops"), HAND_WORKED)
def test_early_stopping_follows_a_table_worked_by_hand(values: list[float], stops: bool) -> None:
    settings: dict[str, Any] = {"epochs_done": 3, "first_rung": 1, "factor": 3}
    assert is_stopped(values[0], values, mode="max", **settings) is stops
    mirrored = [-value for value in values]
    assert is_stopped(mirrored[0], mirrored, mode="min", **settings) is stops
    backwards = values[::-1]  # only which values there are counts, not their order
    assert is_stopped(values[0], backwards, mode="max", **settings) is stops


def test_early_stopping_looks_at_rungs_only() -> None:
    rungs = [epochs for epochs in range(1, 40) if is_rung(epochs, 2, 3)]
    assert rungs == [2, 6, 18]
    assert [epochs for epochs in range(1, 30) if is_rung(epochs, 1, 4)] == [1, 4, 16]
    assert not any(is_rung(epochs, 0, 3) for epochs in range(1, 30))
    losing = [0.1, 0.8, 0.9]
    stops = [
        epochs
        for epochs in range(1, 20)
        if is_stopped(0.1, losing, epochs_done=epochs, first_rung=2, factor=3, mode="max")
    ]
    assert stops == [2, 6, 18]
    assert not is_stopped(0.1, losing, epochs_done=2, first_rung=0, factor=3, mode="max")


def test_decisions_depend_on_what_had_arrived_before() -> None:
    """Eight trials reach a rung one after the other; worked by hand for factor 2."""
    arrivals = [0.5, 0.4, 0.6, 0.3, 0.55, 0.7, 0.52, 0.6]
    stops = [
        is_stopped(value, arrivals[: n + 1], epochs_done=1, first_rung=1, factor=2, mode="max")
        for n, value in enumerate(arrivals)
    ]
    # Cutoffs: -, 0.5, 0.6, 0.5, 0.55, 0.55, 0.55, 0.55 (the 1st, 1st, 2nd, 2nd, 3rd, 3rd, 4th).
    assert stops == [False, True, False, True, False, False, True, False]
