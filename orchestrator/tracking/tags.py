"""Names of MLflow tags and artifact folders that this project writes."""

from __future__ import annotations

SWEEP_ID, SIGNATURE, OUTCOME = "sweep.id", "sweep.signature", "sweep.outcome"
MARK, PARENT_RUN_ID = "sweep.mark", "mlflow.parentRunId"
# What a run's folder of weights holds: "epoch N", or nothing for sure; none is without the tag.
WEIGHTS_TAG, INCOMPLETE, NO_WEIGHTS = "sweep.weights", "incomplete", ""
WEIGHTS_FOLDER = "weights"
# MLflow's word for each way a trial stands; `sweep.outcome` holds ours.
RUN_STATUS = {
    "complete": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "planned": "SCHEDULED",
}
