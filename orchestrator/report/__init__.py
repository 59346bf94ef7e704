"""The report of a sweep: one HTML page, Markdown and CSV.

`render` writes it from the `SweepData` of `facts`; `sections` has one module per section,
`document` the blocks they are made of, `statistics` the intervals and tests, `deviations` the
deviations from the recipe.
"""
