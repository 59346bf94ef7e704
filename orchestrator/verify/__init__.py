"""Checks what a sweep has left: ledger, checkpoints, decisions, MLflow.

`check` runs all checks and prints them.
"""
