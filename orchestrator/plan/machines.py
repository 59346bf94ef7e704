"""How many trials fit on which machines; a calculation without Ray."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from orchestrator.errors import UsageError
from orchestrator.plan.plan import Plan

Machine = tuple[float, float]  # CPUs and GPUs
Shape = tuple[float, float]  # CPUs and GPUs of one worker of a trial


def check_fit(plan: Plan, machines: Sequence[Machine], gpus_per_trial: float | None) -> int:
    """Return how many trials fit at a time, for the variant with the most.

    `machines` are those that the cluster has or may add, at least one.

    Raises:
        UsageError: no trial of some variant fits.
    """
    of_plan = shapes(plan, has_gpus=total(machines)[1] > 0, gpus_per_trial=gpus_per_trial)
    fits = fitting(plan, machines, of_plan)
    small = [variant for variant, number in fits.items() if not number]
    if small:
        cpus, gpus = total(machines)
        apart = f" on {len(machines)} machines" if len(machines) > 1 else ""
        raise UsageError(
            f"No trial of {', '.join(small)} fits on this cluster ({counted(cpus, 'CPU')}, "
            f"{counted(gpus, 'GPU')}{apart}). Lower `threads` in the space, `--gpus-per-trial` or "
            "`--workers-per-trial`, or use a larger cluster."
        )
    return max(fits.values())


def workers_per_trial(plan: Plan) -> int:
    """Return how many workers train one trial together."""
    return int(plan.overrides.get("workers", 1))


def shapes(plan: Plan, *, has_gpus: bool, gpus_per_trial: float | None) -> dict[str, Shape]:
    """Return the CPUs and GPUs of one worker of each variant's trials.

    `gpus_per_trial` is the share of a device per worker; None: the space's values.
    """
    found = {}
    for variant in plan.variants:
        gpus = plan.space.gpus_for(variant) if gpus_per_trial is None else gpus_per_trial
        threads = float(plan.space.fixed_for(variant).get("threads", 1))
        found[variant] = threads, gpus if has_gpus else 0.0
    return found


def fitting(
    plan: Plan, machines: Sequence[Machine], of_plan: Mapping[str, Shape]
) -> dict[str, int]:
    """Return how many trials of each variant fit on the machines at a time."""
    workers = workers_per_trial(plan)
    return {name: workers_fitting(machines, shape) // workers for name, shape in of_plan.items()}


def workers_fitting(machines: Sequence[Machine], shape: Shape) -> int:
    """Return how many workers of a shape fit on the machines; a worker uses one machine."""
    (cpus, gpus), number = shape, 0
    for own_cpus, own_gpus in machines:
        fits = own_cpus // cpus
        if gpus > 1:
            fits = min(fits, own_gpus // gpus)
        elif gpus:
            # A share lies on one device. The summand is for 1 / share just below an integer.
            fits = min(fits, int(own_gpus) * int(1 / gpus + 1e-9))
        number += int(fits)
    return number


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, such as "1 CPU" or "0.5 GPUs"."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def total(machines: Sequence[Machine]) -> Machine:
    """Return the CPUs and GPUs of all machines together."""
    return sum(cpus for cpus, _ in machines), sum(gpus for _, gpus in machines)


@functools.lru_cache(maxsize=1)
def planned_machines(text: str) -> tuple[Machine, ...]:
    """Return the machines that the text of a file for `ray up` allows, higher priorities first.

    A node type without `resources` counts as a machine without any.
    """
    import yaml

    config = yaml.safe_load(text)
    kinds, head = config.get("available_node_types") or {}, config.get("head_node_type")
    left = int(config.get("max_workers") or 0)
    found = []
    for name in sorted(kinds, key=lambda name: (name != head, -kinds[name].get("priority", 0))):
        has = kinds[name].get("resources") or {}
        number = 1 if name == head else min(int(kinds[name].get("max_workers", left)), left)
        left -= number if name != head else 0
        found += [(float(has.get("CPU", 0)), float(has.get("GPU", 0)))] * number
    return tuple(found)
