"""The Prometheus instruments; every label comes from a bounded set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONFIDENCE_BUCKETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Batch(Protocol):
    """What `observe_batch` reads of a `batching.BatchStats`."""

    @property
    def size(self) -> int: ...
    @property
    def waits(self) -> Sequence[float]: ...


class Telemetry:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        latency = partial(Histogram, buckets=LATENCY_BUCKETS, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)

        self.http_request_duration = latency(
            "leuko_http_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            ["route", "method", "code"],
        )
        self.queue_depth = gauge("leuko_queue_depth", "Images waiting.")
        self.queue_capacity = gauge("leuko_queue_capacity", "Images that may wait.")
        self.queue_wait = latency("leuko_queue_wait_seconds", "Wait of an image in the queue.")
        self.stage_duration = latency("leuko_stage_duration_seconds", "One stage of the work.", ["stage"])
        self.batch_size = histogram("leuko_batch_size", "Images in a batch.", buckets=SIZE_BUCKETS)
        self.images = counter("leuko_images_total", "Images, by `ok` or an error's code.", ["outcome"])
        self.rejected = counter("leuko_rejected_total", "Requests refused, by an error's code.", ["reason"])
        self.predictions = counter("leuko_predictions_total", "Predictions, by class.", ["label"])
        self.prediction_confidence = histogram(
            "leuko_prediction_confidence",
            "Calibrated probability of the predicted class.",
            buckets=CONFIDENCE_BUCKETS,
        )
        self.model = Info("leuko_model", "The bundle that answers.", registry=self.registry)
        self.model_ready = gauge("leuko_model_ready", "1 when requests are welcome.")

    def watch(self, *, depth: Callable[[], int], capacity: int, ready: Callable[[], bool]) -> None:
        """Has the gauges read the live values at each scrape."""
        self.queue_depth.set_function(depth)
        self.queue_capacity.set(capacity)
        self.model_ready.set_function(ready)

    def describe_model(self, *, name: str, version: str, sha256: str) -> None:
        self.model.info({"name": name, "version": version, "sha256": sha256})

    def observe_request(self, route: str | None, method: str, code: int, seconds: float) -> None:
        """route: the template that matched, None when none did; never a path that a client chose."""
        bounded = method if method in METHODS else "other"
        self.http_request_duration.labels(route or "unmatched", bounded, str(code)).observe(seconds)

    def observe_batch(self, batch: Batch) -> None:
        self.batch_size.observe(batch.size)
        for wait in batch.waits:
            self.queue_wait.observe(wait)

    def observe_prediction(self, label: str, confidence: float) -> None:
        self.predictions.labels(label).inc()
        self.prediction_confidence.observe(confidence)

    def stage(self, name: str) -> AbstractContextManager[object]:
        return self.stage_duration.labels(name).time()

    def count_image(self, outcome: str = "ok") -> None:
        self.images.labels(outcome).inc()

    def count_rejected(self, reason: str) -> None:
        self.rejected.labels(reason).inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)
