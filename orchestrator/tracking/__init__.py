"""Writes the ledger into MLflow.

`tracker` decides what to write, `runs` finds and creates runs, `artifacts` uploads files, `tags`
has the names of tags, `client` retries calls and explains errors, `database` creates the local
database.
"""
