"""What is measured and kept of requests: metrics, stage times, audit log, drift, log lines."""
