"""What the benchmarks make of their measurements: ratios, results, the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness, scale, table
from benchmarks.__main__ import NAMES, benchmark_of
from benchmarks.harness import Benchmark, Measure, amount


def one(median: float, **facts: float) -> dict[str, Any]:
    return {
        "median": median,
        "least": median,
        "most": median,
        "units": 1,
        "peak_gib": 0.5,
        "facts": facts,
    }


def benchmark(**values: Any) -> Benchmark:
    nothing = {"ours": lambda full: Measure(values=[1.0])}
    return Benchmark(
        name="mine",
        title="a title",
        unit="thing",
        contenders={**nothing, "slow": nothing["ours"], "fast": nothing["ours"]},
        goals={"slow": 3.0, "fast": 2.0},
        **values,
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three repetitions whose values are given, on a machine that copies 10 GB/s."""
    values = {
        "ours": iter([1.0, 2.0, 4.0]),
        "slow": iter([4.0, 6.0, 20.0]),
        "fast": iter([1, 1, 2]),
    }
    monkeypatch.setattr(
        harness, "_in_own_process", lambda name, contender, full: one(next(values[contender]))
    )
    monkeypatch.setattr(harness, "probes", lambda: {"copy_gb_s": 10.0})
    for module in (harness, table):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results.jsonl")
    return tmp_path / "results.jsonl"


def test_ratios_are_of_the_same_repetition_and_their_median_counts(results: Path) -> None:
    said: list[str] = []
    mine = benchmark(limit=lambda probes: 5.0 / probes["copy_gb_s"], at_most=1.5)
    harness.run(mine, full=False, repetitions=3, say=said.append)
    line = json.loads(results.read_text())
    assert line["ratios"]["slow"] == {"median": 4.0, "least": 3.0, "most": 5.0}
    assert line["ratios"]["fast"] == {"median": 0.5, "least": 0.5, "most": 1.0}
    assert line["ours"] == 2.0
    assert line["of_limit"] == 0.25
    assert line["machine"]["cores"] >= 1
    assert "  4x against slow (3 to 5); goal 3x" in said


def test_the_table_says_which_goals_were_missed_and_what_was_not_measured(results: Path) -> None:
    mine = benchmark(at_most=1.5)
    assert "| a title | not measured | | | |" in table.table([mine])
    harness.run(mine, full=False, repetitions=3, say=lambda text: None)
    row = table.table([mine]).splitlines()[-1]
    assert "2 s per thing, goal 1.5 s: missed" in row
    assert "slow: 4x (3x to 5x), goal 3x; fast: 0.5x (0.5x to 1x), goal 2x: missed" in row


def test_what_was_measured_once_has_no_spread_and_facts_are_medians(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = benchmark(limit=lambda probes: 0.004)
    harness.run(mine, full=False, repetitions=1, say=lambda text: None)
    row = table.table([mine]).splitlines()[-1]
    assert "slow: 4x (once), goal 3x; fast: 1x (once), goal 2x: missed" in row
    assert "| 0.4% |" in row
    figures = iter([1.0, 9.0, 2.0])
    monkeypatch.setattr(
        harness,
        "_in_own_process",
        lambda name, contender, full: one(1.0, figure=next(figures) if contender == "ours" else 0),
    )
    harness.run(mine, full=False, repetitions=3, say=lambda text: None)
    assert "1 s per thing (figure 2)" in table.table([mine]).splitlines()[-1]


def test_of_each_machine_and_size_the_last_result_counts(results: Path) -> None:
    machines = [("EPYC", None), ("Xeon", "H200"), ("EPYC", None), ("Xeon", None), ("EPYC", "H200")]
    lines = [
        {
            "benchmark": "mine",
            "machine": {"processor": processor, "cores": 2, "gpu": gpu},
            "full": number == 2,
            "ours": number,
        }
        for number, (processor, gpu) in enumerate(machines)
    ]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [line["ours"] for line in table.latest("mine")] == [0, 2, 3, 4]
    results.write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, lines[0] | {"ours": 5}])
    )
    assert [line["ours"] for line in table.latest("mine")] == [5, 2, 3, 4]


def test_a_contender_runs_in_a_process_of_its_own() -> None:
    found = harness._in_own_process("scale", "ideal time", False)
    assert found["median"] == scale.ideal(False).values[0] == 0.25
    assert found["units"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_has_goals_for_opponents_that_it_measures(name: str) -> None:
    found = benchmark_of(name)
    assert found.name == name
    ours, *opponents = found.contenders
    assert ours == "ours"
    assert set(found.goals) <= set(opponents)
    assert found.goals_cuda.keys() <= found.goals.keys()


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.2e-6, "4.2 µs"), (3e-9, "3 ns")]
)
def test_times_are_told_in_a_unit_that_suits_them(value: float, text: str) -> None:
    assert amount(value, "s") == text
    assert amount(value, "GiB").endswith(" GiB")
