"""The report of a sweep: one HTML page, Markdown and CSV.

`render` writes it from the facts in `facts`; `sections` holds one module per section, `document`
the blocks they consist of, `statistics` intervals and tests.
"""
