"""Which trials failed, and why."""

from __future__ import annotations

import collections

from orchestrator.ledger.records import Attempt
from orchestrator.report.document.blocks import Block, Column, Section, Table, text
from orchestrator.report.facts import Record, SweepData
from orchestrator.search import retry_policy

_LONGEST_LINE = 300


def failed(facts: SweepData) -> Section:
    """Return failed and diverged attempts, those that failed alike together."""
    groups: dict[tuple[str, str, str], list[tuple[Record, Attempt]]] = collections.defaultdict(list)
    for record in facts.records:
        for attempt in record.attempts:
            if attempt.outcome in ("failed", "diverged", "lost"):
                words = attempt.failure_text or ""
                kind = attempt.failure_class or attempt.outcome
                groups[attempt.outcome, kind, retry_policy.fingerprint(words)].append(
                    (record, attempt)
                )
    title = "What failed and why"
    if not groups:
        only = text("No attempt failed, diverged or was lost.")
        return Section(name="failures", title=title, blocks=(only,))
    rows = []
    for (outcome, kind, _), found in sorted(groups.items(), key=lambda item: -len(item[1])):
        record, attempt = found[0]
        given_up = {r.trial.signature for r, _ in found if r.trial.status in ("failed", "diverged")}
        rows.append(
            [
                *(outcome, kind, _reason(attempt), len(found)),
                len({r.trial.signature for r, _ in found}),
                len(given_up),
                ", ".join(sorted({r.trial.variant for r, _ in found})),
                f"{record.name} ({record.trial.signature})",
                attempt.log,
            ]
        )
    space = str(facts.said.get("space", facts.plan["space"]["name"]))
    again = space if facts.name == facts.plan["space"]["name"] else f"{space} --name {facts.name}"
    blocks: list[Block] = [
        Table(
            name="failures",
            title="Attempts that did not end well, grouped by what they said",
            columns=(
                Column("outcome", "outcome"),
                Column("class", "class"),
                Column("reason", "last line"),
                Column("attempts", "attempts", "count"),
                Column("trials", "trials", "count"),
                Column("given_up", "ended by it", "count"),
                Column("variants", "variants"),
                Column("example", "first one"),
                Column("log", "its log"),
            ),
            rows=rows,
            note="Attempts alike in their traceback's frames and last line are one group. A lost "
            "attempt ended with its driver; it is nobody's failure. A diverged trial had a loss "
            "that is not finite: it is a result, not an error, and is not tried again.",
        ),
        text(f"Failed trials are tried again by: python -m orchestrator.sweep {again} --resume"),
    ]
    return Section(name="failures", title=title, blocks=tuple(blocks))


def _reason(attempt: Attempt) -> str:
    said = retry_policy.last_line(attempt.failure_text or "").strip()[:_LONGEST_LINE]
    if said:
        return said
    return {"diverged": "the loss was not finite", "lost": "its driver ended"}.get(
        attempt.outcome or "", "no word"
    )
