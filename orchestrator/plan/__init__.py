"""The plan of a sweep, made before anything starts.

`options` holds the options of a command, `resolve` makes a `plan` from them, and `resume` compares
it with that of an existing sweep. `machines`, `disk` and `budget` tell what fits, `forecast` how
long it takes.
"""
