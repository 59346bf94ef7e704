"""Runs attempts of trials on Ray.

Driver side: `cluster` joins or starts Ray, `tune_adapter` runs trials with Ray Tune, `attempts`
follows them, `watchdog` ends silent ones. Worker side: `worker`, `group`, `job`, `uploads`,
`failure_class`. Private calls into Ray are in `ray_internals`.
"""
