"""What the reports of trials do to Tune's trials; needs no Ray."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from orchestrator.execution import attempts, ray_internals
from orchestrator.execution.watchdog import Watchdog
from orchestrator.storage.paths import DataLocation


class Ends:
    """Stands for the scheduler: keeps the outcomes that it is told."""

    def __init__(self, *, stops: bool = False) -> None:
        self.outcomes: list[str] = []
        self.stops = stops

    def on_epoch(self, *_: Any) -> bool:
        return self.stops

    def on_end(self, signature: str, attempt: int, *, outcome: str, **_: Any) -> None:
        self.outcomes.append(outcome)


def jobs_of(scheduler: Ends, tmp_path: Path, *, by_step: bool = True) -> attempts.AttemptRunner:
    return attempts.AttemptRunner(
        scheduler,  # type: ignore[arg-type]
        None,
        tmp_path,
        DataLocation(tmp_path),
        None,
        Watchdog(600, by_step=by_step),
        False,
        None,
    )


@pytest.mark.parametrize(
    ("by_step", "outcome", "is_stopped"),
    [
        (True, "complete", True),
        (True, "diverged", False),  # its log is stored afterwards
        (True, "failed", False),  # its process may be spent and says so by raising
        (False, "complete", False),  # a worker group ends by itself
    ],
)
def test_the_last_report_of_a_complete_trial_frees_its_process(
    tmp_path: Path, by_step: bool, outcome: str, is_stopped: bool
) -> None:
    scheduler = Ends()
    jobs = jobs_of(scheduler, tmp_path, by_step=by_step)
    end = {"kind": "end", "signature": "s", "attempt": 1, "outcome": outcome}
    assert jobs.on_report("trial", end) is is_stopped
    assert scheduler.outcomes == [outcome]


@pytest.mark.parametrize(
    ("outcome", "stops", "is_stopped", "outcomes"),
    [
        (None, False, False, []),
        ("complete", False, True, ["complete"]),
        ("complete", True, True, []),  # early stopping was first, and has ended it
    ],
)
def test_a_last_epoch_ends_its_trial_where_nothing_follows(
    tmp_path: Path, outcome: str | None, stops: bool, is_stopped: bool, outcomes: list[str]
) -> None:
    scheduler = Ends(stops=stops)
    report = {"kind": "epoch", "epoch": 3, "signature": "s", "attempt": 1, "node": "n"}
    said = report | ({"outcome": outcome} if outcome else {})
    assert jobs_of(scheduler, tmp_path).on_report("trial", said) is is_stopped
    assert scheduler.outcomes == outcomes


def test_a_new_trial_is_asked_where_it_is_once_a_node_is_about_to_go(tmp_path: Path) -> None:
    jobs = jobs_of(Ends(), tmp_path)
    jobs.shapes = {"cnn3": (1.0, 0.0)}
    start = Mock(variant="cnn3", signature="s", attempt=1, resume_from=None, is_evaluated=False)
    start.config.to_dict.return_value = {}
    assert jobs._job(start).says_where is False
    jobs.draining = {"a node"}
    assert jobs._job(start).says_where is True


@pytest.mark.parametrize("is_local", [True, False])
def test_only_a_joined_clusters_trials_get_an_environment_of_their_own(
    is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With none they run in the processes that Ray has started in advance, as this one's children.

    What matters of ours is how long a trial may take to let go of its model.
    """
    from ray.tune.execution import class_cache

    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "30")
    for name in ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE"):
        monkeypatch.setattr(class_cache, name, getattr(class_cache, name).copy())
    ray_internals.set_trial_environment(is_local)

    class Trainable:
        pass

    cache = class_cache._ActorClassCache()  # type: ignore[no-untyped-call]
    options = cache.get(Trainable)._default_options  # type: ignore[no-untyped-call]
    if is_local:
        assert not options["runtime_env"]
    else:
        assert options["runtime_env"]["env_vars"]["TUNE_FUNCTION_THREAD_TIMEOUT_S"] == "30"
