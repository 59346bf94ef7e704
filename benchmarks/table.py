"""The documentation's table, from the last line of each benchmark in the results file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import RESULTS, Benchmark, amount


def table(benchmarks: Sequence[Benchmark]) -> str:
    """Return Markdown: a row per benchmark and kind of machine that was measured."""
    lines = [
        "| what | ours | ratio to (least to most), goal | of what the machine allows | machine |",
        "| --- | --- | --- | --- | --- |",
    ]
    for benchmark in benchmarks:
        found = latest(benchmark.name)
        if not found:
            lines.append(f"| {benchmark.title} | not measured | | | |")
        lines += [_row(benchmark, line) for line in found]
    return "\n".join(lines)


def latest(name: str) -> list[dict[str, Any]]:
    """Return a benchmark's last result for each machine and size; those with a GPU come last."""
    found: dict[tuple[bool, str, bool], dict[str, Any]] = {}
    for text in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        line = json.loads(text)
        if line["benchmark"] == name:
            found[line["machine"]["gpu"] is not None, _machine(line), line["full"]] = line
    return [found[key] for key in sorted(found)]


def _machine(line: dict[str, Any]) -> str:
    machine = line["machine"]
    return machine["gpu"] or f"{machine['cores']} cores, {machine['processor']}"


def _row(benchmark: Benchmark, line: dict[str, Any]) -> str:
    gpu = line["machine"]["gpu"]
    goals = benchmark.goals_cuda if gpu else benchmark.goals
    ratios = []
    # A line may be older than a contender.
    for name in [name for name in list(benchmark.contenders)[1:] if name in line["ratios"]]:
        ratio = line["ratios"][name]
        goal = goals.get(name)
        spread = f"{_x(ratio['least'])} to {_x(ratio['most'])}"
        said = f"{name}: {_x(ratio['median'])} ({'once' if line['repetitions'] == 1 else spread})"
        if goal:
            said += f", goal {_x(goal)}{'' if ratio['median'] >= goal else ': missed'}"
        ratios.append(said)
    value = f"{amount(line['ours'], line['quantity'])} per {line['unit']}"
    if benchmark.at_most is not None:
        missed = "" if line["ours"] <= benchmark.at_most else ": missed"
        value += f", goal {amount(benchmark.at_most, line['quantity'])}{missed}"
    share = "" if line["of_limit"] is None else _percent(line["of_limit"])
    ours = line["measured"][next(iter(benchmark.contenders))]
    facts = [
        f"{name} {_number(_middle([one['facts'][name] for one in ours]))}"
        for name in ours[0]["facts"]
    ]
    if facts:
        value += f" ({', '.join(facts)})"
    command = f"python -m benchmarks {benchmark.name}{' --full' if line['full'] else ''}"
    where = f"{_machine(line)}, {line['when']}"
    cells = (f"{benchmark.title}, `{command}`", value, "; ".join(ratios), share, where)
    return f"| {' | '.join(cells)} |"


def _x(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.2g}x"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _middle(values: list[Any]) -> Any:
    return values[0] if isinstance(values[0], str) else statistics.median(values)


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
