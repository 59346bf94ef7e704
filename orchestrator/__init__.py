"""Starts, watches, retries, records and reports trials; training itself is in `trainables`."""
