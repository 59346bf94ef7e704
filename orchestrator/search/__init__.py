"""Which trial starts, stops and is retried.

`scheduler` is driven by the running sweep and keeps the queue; `decisions` are pure functions of
the ledger's rows. `sampler` suggests configurations, `early_stopping` stops trials at rungs,
`retry_policy` decides after a failure.
"""
