"""One running sweep command.

`arguments` reads the command line, `opening` creates or opens the ledger, `driver` runs the trials,
`signals`, `display`, `summary`, `measure`, `outputs` and the threads do one thing each.
"""
