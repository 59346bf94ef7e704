"""Writes the ledger into MLflow.

`tracker` decides what to write, `runs` finds and creates runs and names their tags, `artifacts`
uploads files, `client` retries calls and explains errors, `database` creates the local database.
"""
