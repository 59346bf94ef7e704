"""Where sweeps are stored.

`paths` names every file, `store` reads and writes a local or S3 storage with the retries of
`retry`, `sweeps` finds a sweep by name and fetches its files, `locks` and `lease` keep a second
driver out, `arguments` adds the command-line arguments that say where things are.
"""
