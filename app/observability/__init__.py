"""Measurements and records of requests: metrics, stage times, audit log, drift, log lines."""
