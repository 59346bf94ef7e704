"""Where sweeps are stored.

`paths` names every file, `store` reads and writes a local or S3 storage, `sweeps` finds a sweep
by name, `checkpoints` fetches one, `locks` and `lease` keep a second driver out.
"""
