"""Which trial starts, stops and is tried again.

`sampler` suggests configurations, `early_stopping` stops trials, `retry_policy` decides after a
failure, `scheduler` combines them.
"""
