"""Names of MLflow tags and artifact folders that this project writes."""

from __future__ import annotations

SWEEP_ID, SIGNATURE, OUTCOME = "sweep.id", "sweep.signature", "sweep.outcome"
MARK, PARENT_RUN_ID = "sweep.mark", "mlflow.parentRunId"
# The state of a run's folder of weights: "epoch N" (from 1) once all files are there, INCOMPLETE
# while they change. A run without weights has no such tag, which reads as NO_WEIGHTS.
WEIGHTS_TAG, INCOMPLETE, NO_WEIGHTS = "sweep.weights", "incomplete", ""
WEIGHTS_FOLDER = "weights"
# MLflow's status for each outcome of a trial; the tag `sweep.outcome` holds the outcome itself.
RUN_STATUS = {
    "complete": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "planned": "SCHEDULED",
}
