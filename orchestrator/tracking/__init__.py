"""Writes the ledger into MLflow.

`tracker` decides what to write, `runs` finds and creates runs and names their tags, `sweep_run` has
the contents of the sweep's own run, `artifacts` uploads files, `best_model` logs and registers the
best model, `client` retries calls and explains errors, `database` creates the local database.
"""
