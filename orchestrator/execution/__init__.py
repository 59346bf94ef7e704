"""Runs attempts of trials on Ray.

In the driver: `cluster` joins or starts Ray, `tune_adapter` runs trials with Ray Tune, `attempts`
translates between them and the scheduler, `capacity` knows how many fit the cluster, and `watchdog`
finds those that hang. In a trial's process: `worker` and `group` run an attempt, `uploads` copies
its files to the storage, `failure_class` classifies its error. `job` documents the messages between
both, and `ray_internals` holds every undocumented use of Ray.
"""
