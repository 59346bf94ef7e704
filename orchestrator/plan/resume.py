"""Checks whether a command may resume an existing sweep, and with which differences."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.ledger.header import FormerPlan
from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.plan import Costs, Plan

_PACKAGES = (
    *("sweep-orchestrator", "ray", "torch", "torchvision", "timm", "optuna", "mlflow"),
    *("pyarrow", "numpy"),
)


def check_same(ledger: Ledger, plan: Plan, say: Callable[[str], None], *, force: bool) -> None:
    """Refuse to resume a sweep with a different plan; other variants or more trials are allowed.

    With `force` the new plan replaces the old one, which the ledger keeps.

    Raises:
        UsageError: the plan differs, and `force` is False.
    """
    header, new = ledger.header(), plan.identity()
    old = header.plan.to_dict()
    lines = difference(_comparable(old, new), _comparable(new, old))
    if not lines:
        return
    listed = "\n".join(f"  {line}" for line in lines)
    if not force:
        raise UsageError(
            f"This sweep was started with other values:\n{listed}\n"
            "Results of both cannot be compared. Choose another --name, or use the values that the "
            "sweep was started with. With --force the sweep resumes: planned trials keep the old "
            "values, new trials use the new ones."
        )
    say(f"Resuming with changed values:\n{listed}")
    former = [*header.former_plans, FormerPlan(until_seq=ledger.seq, plan=header.plan)]
    ledger.put("former_plans", [asdict(each) for each in former])
    ledger.put("plan", new)


def add_variants(ledger: Ledger, plan: Plan, costs: Costs) -> None:
    """Store the plan's values of variants that earlier commands left out."""
    header, new = ledger.header(), plan.identity()
    old = header.plan.to_dict()
    space = {part: {**old["space"][part], **new["space"][part]} for part in ("fixed", "params")}
    merged = {
        **new,
        "image_size_px": {**old["image_size_px"], **new["image_size_px"]},
        "space": {**new["space"], **space},
    }
    if merged != old:
        ledger.put("plan", merged)
        added = {name: asdict(cost) for name, cost in costs.items()}
        ledger.put("variants", {**header.variants, **added})


def _comparable(plan: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's identity, limited to the variants that both plans have."""
    shared = set(plan["image_size_px"]) & set(other["image_size_px"])
    space = {name: value for name, value in plan["space"].items() if name != "variants"}
    for part in ("fixed", "params"):
        space[part] = {name: space[part][name] for name in sorted(shared) if name in space[part]}
    return {
        **plan,
        "space": space,
        "image_size_px": {name: plan["image_size_px"][name] for name in sorted(shared)},
    }


def difference(old: Any, new: Any, where: str = "") -> list[str]:
    """Return one line for each value that differs between two JSON-like values."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted({*old, *new}, key=str):
            path = f"{where}.{key}" if where else str(key)
            lines += difference(old.get(key), new.get(key), path)
        return lines
    return [] if old == new else [f"{where}: {old!r} before, {new!r} now"]


def installed() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from its source, not installed
            found[name] = "not installed"
    return found


def changes(before: Mapping[str, str]) -> list[str]:
    """Return one warning if the versions differ from those at the sweep's start, else none."""
    now = installed()
    changed = [name for name in now if name in before and now[name] != before[name]]
    if not changed:
        return []
    old = ", ".join(f"{name} {before[name]}" for name in changed)
    new = ", ".join(f"{name} {now[name]}" for name in changed)
    return [
        f"This sweep was started with {old}; it resumes with {new}. Results of new trials may "
        "differ from those that the old versions would have given."
    ]
