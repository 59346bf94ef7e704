"""A simulated sweep with a ledger, a folder and a tracker, and readers of its MLflow runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.clock import Clock
from orchestrator.ledger.ledger import Ledger
from orchestrator.plan.plan import Plan
from orchestrator.storage.paths import SweepPaths
from orchestrator.tracking.artifacts import Output
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.sweeps import metrics, new_ledger, plan, space
from trainables.config import TrainConfig
from trainables.metrics import METRIC_NAMES

MARK = "sweep.mark"


class Sweep:
    """A sweep's ledger, folder and tracker, with methods for the events of its trials."""

    def __init__(
        self, storage: Path, name: str, uri: str | None = None, clock: Clock | None = None
    ) -> None:
        self.paths = SweepPaths(storage, name)
        self.uri = uri or self.paths.default_tracking_uri
        self.clock = clock
        self.plan: Plan = plan(space(keep_best=2))
        self.ledger: Ledger = new_ledger(self.paths.ledger, self.plan, sweep_id=f"id-{name}")
        self.tracker = self.new_tracker()

    def new_tracker(self) -> Tracker:
        return Tracker(self.ledger, self.paths, self.uri, clock=self.clock)

    def start(self, number: int, *, micro: int = 0) -> str:
        """Start the next attempt at a trial, planned if it is new; return its signature."""
        config = self.config(number)
        key = config.signature()
        if key not in {trial.signature for trial in self.ledger.trials()}:
            self.ledger.plan_trial(
                signature=key,
                variant="cnn2",
                number=number,
                config=config.to_dict(),
                params={"lr": config.lr},
                seen_seq=self.ledger.seq,
            )
        attempt = self.ledger.start_attempt(key, resumed_from=None, micro_batch_size=micro)
        log = self.paths.root / f"trials/{key}/attempt_{attempt}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"log of attempt {attempt}\n")
        return key

    def config(self, number: int) -> TrainConfig:
        params = {"lr": 0.01, "dropout": 0.1, "batch_size": 32, "optimizer": "sgd"}
        return self.plan.train_config("cnn2", number, params)

    def epoch(self, key: str, epoch: int, value: float) -> None:
        attempt = self.ledger.attempts(key)[-1].attempt
        name = f"trials/{key}/attempt_{attempt}/epoch_{epoch:04d}"
        (self.paths.root / name).mkdir(parents=True, exist_ok=True)
        (self.paths.root / name / "model.safetensors").write_text(f"weights of {key} {epoch}")
        assert self.ledger.record_epoch(key, attempt, epoch, metrics(val_top1=value), name)

    def end(self, key: str, status: str, best: tuple[int, float] | None = None, **how: Any) -> None:
        outcome = how.pop("outcome", status)
        self.ledger.end_attempt(
            key,
            self.ledger.attempts(key)[-1].attempt,
            outcome=outcome,
            trial_status=status,  # type: ignore[arg-type]
            best=best,
            **how,
        )

    def run_trial(self, number: int, value: float) -> str:
        key = self.start(number)
        self.epoch(key, 0, value / 2)
        self.epoch(key, 1, value)
        self.end(key, "complete", (1, value))
        return key

    # Readers of MLflow.

    def forget(self) -> None:
        """Delete the mark of every trial's run."""
        for key, run in self.runs().items():
            if key != "sweep":
                self.client.delete_tag(run.info.run_id, MARK)

    @property
    def client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(tracking_uri=self.uri)

    def runs(self) -> dict[str, Any]:
        """Return the sweep's runs by signature, none of them twice; the parent is "sweep"."""
        experiment = self.client.get_experiment_by_name(self.paths.name)
        found = self.client.search_runs([experiment.experiment_id])
        by_key = {run.data.tags.get("sweep.signature", "sweep"): run for run in found}
        assert len(by_key) == len(found)
        return by_key

    def values(self, key: str, metric: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.runs()[key].info.run_id, metric)
        return sorted((item.step, item.value) for item in history)

    def files(self, key: str, folder: str | None = None) -> dict[str, str]:
        """Return a run's artifacts by path."""
        run_id = self.runs()[key].info.run_id
        found: dict[str, str] = {}
        for item in self.client.list_artifacts(run_id, folder):
            if item.is_dir:
                found |= self.files(key, item.path)
            else:
                with tempfile.TemporaryDirectory() as scratch:
                    path = self.client.download_artifacts(run_id, item.path, scratch)
                    found[item.path] = Path(path).read_text()
        return found

    def content(self) -> dict[str, Any]:
        """Return everything that MLflow has of the sweep, except times."""
        return {
            key: (
                *(run.info.status, run.info.run_name, run.data.params),
                *(run.data.tags, self.files(key)),
                {name: self.values(key, name) for name in run.data.metrics},
            )
            for key, run in self.runs().items()
        }


def story(sweep: Sweep) -> list[Callable[[], Any]]:
    """Return the events of a sweep in parts; tests sync with MLflow between them."""

    def fail() -> None:
        key = sweep.start(2)
        sweep.end(key, "failed", failure_class="bug", failure_text="ValueError: no\n")

    def begin() -> None:
        sweep.run_trial(0, 0.5)
        sweep.epoch(sweep.start(1), 0, 0.3)

    def resume() -> None:
        key = sweep.config(1).signature()
        sweep.epoch(key, 1, 0.6)
        sweep.end(key, "complete", (1, 0.6))
        sweep.run_trial(3, 0.9)  # displaces the first

    return [begin, fail, resume]


def output(sweep: Sweep, key: str) -> Output:
    """Return an exported model with the files that tests read back."""
    folder = sweep.paths.root / "model"
    (folder / "data" / "classifier").mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").write_text(f"model of {key}")
    (folder / "data" / "classifier" / "model.json").write_text(key)
    return Output("model", folder, f"{key} epoch 2")


def finish(sweep: Sweep, key: str, name: str | None = None) -> Tracker:
    """End a sweep whose best trial is `key`, in a command of its own."""
    tracker = sweep.new_tracker()
    tracker.outputs, tracker.register_as = [output(sweep, key)], name
    tracker.finish("complete", {})
    return tracker


def logged(sweep: Sweep) -> list[Any]:
    experiment = sweep.client.get_experiment_by_name(sweep.paths.name)
    return list(sweep.client.search_logged_models([experiment.experiment_id]))


def versions(sweep: Sweep, name: str) -> list[Any]:
    return sorted(
        sweep.client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version)
    )


def outputs_of(sweep: Sweep, key: str) -> list[str]:
    run = sweep.client.get_run(sweep.runs()[key].info.run_id)
    return [model.model_id for model in run.outputs.model_outputs] if run.outputs else []


def without_identity(content: dict[str, Any]) -> dict[str, Any]:
    """Return a content without what differs between two sweeps with the same trials."""
    own = ("sweep.id", MARK, "mlflow.parentRunId", "mlflow.runName")
    return {
        key: (
            *(status, name if key != "sweep" else None, params),
            *({k: v for k, v in tags.items() if k not in own}, files, values),
        )
        for key, (status, name, params, tags, files, values) in content.items()
    }


def assert_all_there_once(client: Any, name: str, ledger: Ledger) -> None:
    """Check for one run per trial, one value per metric and epoch, and no status RUNNING."""
    experiment = client.get_experiment_by_name(name).experiment_id
    own = f"tags.`sweep.id` = '{ledger.facts()['sweep_id']}'"
    runs = client.search_runs([experiment], own, max_results=1000)
    trials = {trial.signature: trial for trial in ledger.trials()}
    found = [run.data.tags.get("sweep.signature", "") for run in runs]
    assert sorted(found) == sorted(["", *trials])
    for run in runs:
        key = run.data.tags.get("sweep.signature", "")
        assert run.info.status != "RUNNING", (key, run.data.tags)
        if not key:
            continue
        rows = ledger.epochs(key)
        for metric in METRIC_NAMES:
            history = client.get_metric_history(run.info.run_id, metric)
            expected = [(r.epoch + 1, r.metrics[metric]) for r in rows if metric in r.metrics]
            assert sorted((m.step, m.value) for m in history) == expected, (key, metric)
        assert run.data.tags["sweep.outcome"] in (trials[key].status, "interrupted")
