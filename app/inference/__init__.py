"""From queued images to predictions: the queue, batches, worker threads and decoder processes."""
