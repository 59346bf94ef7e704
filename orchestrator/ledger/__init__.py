"""The record of a sweep, from which everything else can be rebuilt.

`ledger` reads and writes it, `database` is its SQLite file, `header` and `records` are its facts
and rows. `backup` copies it to the storage, `snapshot` opens a copy. `ranking` finds the best
trials, `leaderboard` makes tables of them, `retention` deletes checkpoints that are not needed.
"""
