"""Checks a sweep's ledger, checkpoints, decisions and MLflow runs.

`check` runs all checks and prints them.
"""
