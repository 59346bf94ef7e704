"""Names of MLflow tags and artifact folders that this project writes."""

from __future__ import annotations

_SWEEP, _SIGNATURE, _OUTCOME = "sweep.id", "sweep.signature", "sweep.outcome"
_MARK, _PARENT = "sweep.mark", "mlflow.parentRunId"
# What a run's folder of weights holds: "epoch N", or nothing for sure; none is without the tag.
_WEIGHTS_TAG, _UNSURE, _NONE = "sweep.weights", "incomplete", ""
_WEIGHTS = "weights"
# MLflow's word for each way a trial stands; `sweep.outcome` holds ours.
_STATUS = {
    "complete": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "planned": "SCHEDULED",
}
