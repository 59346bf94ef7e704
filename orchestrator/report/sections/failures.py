"""Failures: which attempts failed, and why."""

from __future__ import annotations

import collections
import shlex
import sys
from pathlib import Path
from typing import Any

from orchestrator.command import program, sweep_command
from orchestrator.ledger.records import Attempt
from orchestrator.report.document.blocks import Column, Section, Table
from orchestrator.report.facts import Record, SweepData
from orchestrator.search import retry_policy

_LONGEST_LINE = 300


def failures(sweep: SweepData) -> Section:
    """Return failed, diverged and lost attempts, those with the same error in one row."""
    groups: dict[tuple[str, str, str], list[tuple[Record, Attempt]]] = collections.defaultdict(list)
    for record in sweep.records:
        for attempt in record.attempts:
            if attempt.outcome in ("failed", "diverged", "lost"):
                fingerprint = retry_policy.fingerprint(attempt.failure_text or "")
                key = (attempt.outcome, attempt.failure_class or attempt.outcome, fingerprint)
                groups[key].append((record, attempt))
    if not groups:
        return Section.of("failures", "Failures")
    rows: list[list[Any]] = []
    for (outcome, kind, _), found in sorted(groups.items(), key=lambda item: -len(item[1])):
        record, attempt = found[0]
        trials = {r.trial.signature: r.trial for r, _ in found}.values()
        given_up = [trial for trial in trials if trial.status in ("failed", "diverged")]
        variants = ", ".join(sorted({trial.variant for trial in trials}))
        counts = (len(found), len(trials), len(given_up))
        first = f"{record.name} ({record.trial.signature})"
        rows.append([outcome, kind, _reason(attempt), *counts, variants, first, attempt.log])
    table = Table(
        name="failures",
        title="Unsuccessful attempts by error",
        columns=(
            *(Column("outcome", "outcome"), Column("class", "failure class")),
            Column("reason", "last line of the error"),
            *Column.of("count", attempts="attempts", trials="trials", given_up="trials ended"),
            *Column.of(variants="variants", example="first trial", log="its log"),
        ),
        rows=rows,
        note="Attempts whose tracebacks have the same frames and the same last line are in one "
        "row. A lost attempt ended because its driver stopped; it does not count as a failure. A "
        "diverged trial had a non-finite loss: that is a result and not an error, and the trial is "
        "not retried.",
    )
    retry = [f"To retry failed trials: {_resume_command(sweep)}"]
    has_failed = any(record.trial.status == "failed" for record in sweep.records)
    return Section.of("failures", "Failures", table, *(retry if has_failed else ()))


def _resume_command(sweep: SweepData) -> str:
    """Return a command that resumes the sweep from any folder."""
    header = sweep.header
    space = header.space or sweep.plan.space.name
    if space.endswith(".py") or "/" in space:
        space = str(Path(header.folder, space))
    name = "" if sweep.name == Path(space).stem else sweep.name
    flags = {"--name": name, "--storage": sweep.storage, "--data-dir": header.data_dir}
    words = [word for flag, value in flags.items() if value for word in (flag, value)]
    # Without an activated environment there may be no `python`, or another one.
    python = "python" if program("python") == "python" else shlex.quote(sys.executable)
    return python + sweep_command(space, *words, "--resume").removeprefix("python")


def _reason(attempt: Attempt) -> str:
    if line := retry_policy.last_line(attempt.failure_text or "").strip():
        return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} …"
    known = {"diverged": "the loss was not finite", "lost": "the driver stopped"}
    return known.get(attempt.outcome or "", "no error message")
