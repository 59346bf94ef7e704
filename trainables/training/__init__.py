"""Trains one configuration.

`loop` is the training loop, `optim` optimizers and schedules, `checkpoint` saves and loads,
`device` sets a device up, `probe` measures a few steps.
"""
