"""Converts archives and image folders to memory-mapped Arrow files.

`known_datasets` is the table of known datasets, `archives` reads archives and folders, each module
of `sources` reads one kind of source, `prepare` runs the whole conversion, `prepared` writes, reads
and verifies its result, `share` copies it between hosts.
"""
