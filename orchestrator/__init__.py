"""Starts, watches, retries, records and reports trials; knows no tensor."""
