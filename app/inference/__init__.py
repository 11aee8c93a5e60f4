"""From queued bytes to predictions: the queue, batches, worker threads and decoder processes."""
