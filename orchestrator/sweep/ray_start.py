"""Starts or joins Ray for a sweep; where that fails, nothing of a new sweep is left."""

from __future__ import annotations

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.execution import cluster as clusters
from orchestrator.plan import machines
from orchestrator.processes import on_sudden_end
from orchestrator.sweep import opening, signals, summary
from orchestrator.sweep.context import SweepContext


def connect(context: SweepContext) -> clusters.Cluster:
    """Join or start Ray, and check that the trials can run there and find their checkpoints.

    Raises:
        UsageError: there is no cluster, or no trial of some variant fits on it.
    """
    plan, paths = context.plan, context.paths
    needs_state_api = plan.overrides.get("workers", 1) > 1
    limit = signals.EndLimit(context.interruption, context.clock)
    try:
        with on_sudden_end(lambda: _end_without_ray(context)):
            cluster = clusters.connect(
                context.config.address, needs_state_api=needs_state_api, must_end=limit.is_over
            )
    except OrchestratorError as error:
        if context.interruption.wanted.is_set():  # the signal may have ended Ray's processes, too
            raise KeyboardInterrupt from error
        if not isinstance(error, clusters.RayStartError):
            raise
        raise OrchestratorError(
            f"{error}\nThen run: {summary.same_command(context.config)}"
        ) from error
    signals.handle_signals(context.interruption)  # again: Ray's C++ library installs its own
    context.console.print(cluster.describe())
    try:
        machines.check_fit(plan, cluster.machines, context.options.get("gpus_per_trial"))
    except UsageError:
        clusters.disconnect()
        raise
    if cluster.may_have_many_nodes and not paths.remote:
        context.warn(
            f"{paths.root} is a folder on this machine, but trials also run on other machines. "
            "Unless all of them share this folder, a trial that moves to another machine starts "
            "again from its first epoch, and its weights stay where it ran. Choose a --storage "
            "that every machine can reach, such as s3://bucket/prefix."
        )
    return cluster


def _end_without_ray(context: SweepContext) -> None:
    """Print why this command ended while Ray started, after deleting a new sweep."""
    config = context.config
    again = summary.same_command(config)
    if context.backup:  # the ledger's copy elsewhere stays
        again = summary.resume_command(config)
    elif not config.resume:
        opening.delete_sweep(context.paths)
    context.fail(
        "This command ended while Ray started: it was killed (`kill -9`, or by the system when "
        f"memory ran out), or Ray's library ended it. {clusters.START_ADVICE}\nThen run: {again}"
    )
