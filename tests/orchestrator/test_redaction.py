"""Secrets do not reach logs, the ledger or MLflow."""

from __future__ import annotations

import pytest

from orchestrator.redaction import redacted


def test_redacted_removes_secrets_from_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    monkeypatch.setenv("HARMLESS", "visible")
    text = "visible 1: correct horse, hf_abcdef, postgresql://ann:pw@db/x and http://host/a@b"
    assert redacted(text) == (
        "visible 1: [redacted], [redacted], postgresql://[redacted]@db/x and http://host/a@b"
    )
