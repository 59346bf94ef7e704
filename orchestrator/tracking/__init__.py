"""Writes the ledger into MLflow.

`tracker` decides what to write, `runs` finds and creates runs, `artifacts` uploads files, `tags`
are the names in MLflow, `client` handles errors and addresses, `database` creates the local
database.
"""
