"""The record of a sweep, from which everything else is derived.

`ledger` reads and writes it, `records` are its rows, `backup` copies it to the storage,
`snapshot` opens a copy, `ranking` says which trial is best, `retention` which checkpoints are
kept.
"""
