"""From an archive or image folder to memory-mapped Arrow files.

`known` is the table of known datasets, `sources` reads one kind of archive each, `prepare` runs
the whole conversion, `prepared` is what it writes, `share` lets hosts fetch it once.
"""
