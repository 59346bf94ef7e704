"""Runs attempts of trials on Ray.

In the driver: `address` chooses the cluster, `cluster` joins or starts Ray and knows how many
trials fit, `tune_adapter` runs them with Ray Tune, `attempts` translates between them and the
scheduler, and `watchdog` finds those that hang. In a trial's process: `worker` and `group` run an
attempt, `uploads` copies its files to the storage, `failure_class` classifies its error. `job`
documents the messages between both, and `ray_internals` holds every undocumented use of Ray.
"""
