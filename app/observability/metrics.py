"""Prometheus metrics; every label has a bounded set of values.

Several processes behind one port share a folder, whose path must be in the environment variable SHARED before
this module is imported. The client library keeps the values of each process there, in files, so that any
process can render the sums.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.evaluation.answer_profile import CONFIDENCE_EDGES, OOD_EDGES, AnswerProfile
from app.observability import shared_values
from app.observability.shared_folder import SHARED

REFRESH_S = 1.0  # maximum age of another process's gauges

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class Batch(Protocol):
    """The fields of a `batcher.BatchStats` that `observe_batch` reads."""

    @property
    def size(self) -> int: ...
    @property
    def waits(self) -> Sequence[float]: ...
    @property
    def first_waits(self) -> Sequence[float]: ...


class Telemetry:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._folder = os.environ.get(SHARED)
        if self._folder is not None:
            shared_values.install()
        # A folder that was deleted: this process serves its own metrics.
        self.shared = self._folder is not None and Path(self._folder).is_dir()
        self._models: set[tuple[str, str, str, str]] = set()
        self._labels: dict[str, None] = {}  # of every model that answered requests
        self._refresh: Callable[[], None] = lambda: None
        latency = partial(Histogram, buckets=LATENCY_BUCKETS, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        total = partial(Gauge, registry=self.registry, multiprocess_mode="livesum")
        any_of = partial(Gauge, registry=self.registry, multiprocess_mode="livemax")
        all_of = partial(Gauge, registry=self.registry, multiprocess_mode="livemin")

        self.http_request_duration = latency(
            "leuko_http_request_duration_seconds",
            "Time from the head of a request to the end of its response.",
            ["route", "method", "code"],
        )
        self.queue_depth = total("leuko_queue_depth", "Images in the queue.")
        self.queue_capacity = total("leuko_queue_capacity", "Most images that the queue holds.")
        self.queue_wait = latency("leuko_queue_wait_seconds", "Time that an image spent in the queue.")
        self.queue_first_wait = latency(
            "leuko_queue_first_wait_seconds",
            "Time in the queue of images whose caller had no other image in it.",
        )
        self.queue_callers = total(
            "leuko_queue_callers", "Callers (keys, or addresses without one) with images in the queue."
        )
        self.queue_share_refused = counter(
            "leuko_queue_share_refused_total",
            "Requests refused because the queue was full and their caller had its share of it.",
        )
        self.stage_duration = latency(
            "leuko_stage_duration_seconds", "Time spent in a stage of a request.", ["stage"]
        )
        self.batch_size = histogram("leuko_batch_size", "Images in a batch.", buckets=SIZE_BUCKETS)
        self.images = counter(
            "leuko_images_total", "Images processed; `outcome` is `ok` or an error code.", ["outcome"]
        )
        self.rejected = counter(
            "leuko_rejected_total", "Requests rejected; `reason` is an error code.", ["reason"]
        )
        self.predictions = counter("leuko_predictions_total", "Predictions by class.", ["label"])
        self.prediction_confidence = histogram(
            "leuko_prediction_confidence",
            "Calibrated probability of the predicted class.",
            buckets=CONFIDENCE_EDGES,
        )
        self.ood_score = histogram(
            "leuko_ood_score",
            "Out-of-distribution score: distance from the training cells, about 1 for those.",
            buckets=OOD_EDGES,
        )
        self.reviews = counter("leuko_reviews_total", "Predictions flagged for review.")
        self.review_reasons = counter(
            "leuko_review_reasons_total", "Reasons for review; a prediction may have several.", ["reason"]
        )
        self.reference_share = any_of(
            "leuko_reference_share", "Share of each class in the drift reference; NaN without one.", ["label"]
        )
        self.reference_confidence = any_of(
            "leuko_reference_confidence", "Mean confidence in the drift reference; NaN without one."
        )
        self.reference_ood_score = any_of(
            "leuko_reference_ood_score", "Mean ood_score in the drift reference; NaN without one."
        )
        self.reference_review = any_of(
            "leuko_reference_review_share",
            "Share flagged for review in the drift reference; NaN without one.",
        )
        self.model = any_of(
            "leuko_model_info",
            "1 for each bundle that answers requests, 0 for one that did; `verified_for`: the laboratory that"
            " it was verified for, or empty.",
            ["name", "version", "sha256", "verified_for"],
        )
        self.model_ready = all_of("leuko_model_ready", "1 if the service is ready for requests.")
        self.restarts = counter("leuko_engine_restarts_total", "Engine restarts.")
        self.decoder_losses = counter(
            "leuko_decoders_lost_total", "Decoder processes that crashed, hung or were killed."
        )
        self.keys_stale = any_of(
            "leuko_keys_stale",
            "1 if the key file cannot be used; if invalid, the previous keys stay valid, if absent, none.",
        )
        self.models_stale = any_of(
            "leuko_models_stale", "1 if the file LEUKO_MODELS was rejected; the previous models keep serving."
        )
        self.shadow_images = counter(
            "leuko_shadow_images_total",
            "Images for a shadow model; `outcome` is agreed, disagreed, failed or skipped.",
            ["name", "version", "outcome"],
        )
        self.shadow_disagreements = counter(
            "leuko_shadow_disagreements_total",
            "Images for which the shadow (`shadow_label`) disagreed with the response (`label`).",
            ["name", "version", "label", "shadow_label"],
        )
        self.audit_failing = any_of(
            "leuko_audit_failing", "1 if the audit log cannot be written; requests then get 503."
        )
        self.metrics_unshared = any_of(
            "leuko_metrics_unshared",
            "1 if the metrics of a process are missing in the sums of all: the temporary folder is full.",
        )
        self._exposed = CollectorRegistry() if self.shared else self.registry
        parent = parent_process()
        if self.shared:
            MultiProcessCollector(self._exposed)  # type: ignore[no-untyped-call]
        if self.shared and parent is not None and parent.pid is not None:
            _Processes(parent.pid, self._exposed)
        else:
            ProcessCollector(registry=self._exposed)
        PlatformCollector(registry=self._exposed)

    def watch(
        self,
        *,
        depth: Callable[[], int],
        ready: Callable[[], bool],
        callers: Callable[[], int] = lambda: 0,
        keys_stale: Callable[[], bool] = lambda: False,
        models_stale: Callable[[], bool] = lambda: False,
        audit_failing: Callable[[], bool] = lambda: False,
    ) -> None:
        """Set the functions that each `refresh` reads the gauges from."""

        def refresh() -> None:
            self.queue_depth.set(depth())
            self.queue_callers.set(callers())
            self.model_ready.set(ready())
            self.keys_stale.set(keys_stale())
            self.models_stale.set(models_stale())
            self.audit_failing.set(audit_failing())

        self._refresh = refresh

    def refresh(self) -> None:
        """Update the gauges. Each scrape does so; with several processes, call it every REFRESH_S as well."""
        self._refresh()
        if self._folder is not None:
            shared_values.check()
        self.metrics_unshared.set(self._folder is not None and shared_values.unshared(self._folder))

    def describe_models(self, models: Collection[tuple[str, str, str, str]]) -> None:
        """Set 1 for each model that answers requests, and 0 for earlier ones.

        models: name, version, sha256, and the laboratory that it was verified for, or "".
        """
        self._models |= {*models}
        for model in self._models:
            self.model.labels(*model).set(model in models)

    def describe_reference(self, reference: AnswerProfile | None, labels: Sequence[str]) -> None:
        """Set the expected distribution of predictions; NaN without a reference.

        labels: of the served model. Those of a model before it have the share 0: NaN would silence the alert
        on the sum over all classes.
        """
        self._labels |= dict.fromkeys(labels)
        for label in self._labels:
            self.predictions.labels(label)  # from 0: Prometheus ignores a counter's first value
            share = math.nan if reference is None else reference.share(label) if label in labels else 0.0
            self.reference_share.labels(label).set(share)
        self.reference_confidence.set(reference.confidence.mean if reference else math.nan)
        self.reference_ood_score.set(reference.ood_score.mean if reference else math.nan)
        self.reference_review.set(reference.review_share if reference else math.nan)

    def observe_request(self, route: str | None, method: str, code: int, seconds: float) -> None:
        """route: the template that matched, or None; never the path itself, which the client chooses."""
        bounded = method if method in METHODS else "other"
        self.http_request_duration.labels(route or "unmatched", bounded, str(code)).observe(seconds)

    def observe_batch(self, batch: Batch) -> None:
        self.batch_size.observe(batch.size)
        for wait in batch.waits:
            self.queue_wait.observe(wait)
        for wait in batch.first_waits:
            self.queue_first_wait.observe(wait)

    def observe_prediction(
        self, label: str, confidence: float, ood_score: float, review_reasons: Sequence[str]
    ) -> None:
        self.predictions.labels(label).inc()
        self.prediction_confidence.observe(confidence)
        self.ood_score.observe(ood_score)
        if review_reasons:
            self.reviews.inc()
        for reason in review_reasons:
            self.review_reasons.labels(reason).inc()

    def stage(self, name: str) -> AbstractContextManager[object]:
        return self.stage_duration.labels(name).time()

    def count_image(self, outcome: str = "ok") -> None:
        self.images.labels(outcome).inc()

    def count_shadow(self, name: str, version: str, outcome: str) -> None:
        self.shadow_images.labels(name, version, outcome).inc()

    def count_disagreement(self, name: str, version: str, label: str, shadow_label: str) -> None:
        self.shadow_disagreements.labels(name, version, label, shadow_label).inc()

    def count_share_refusal(self) -> None:
        self.queue_share_refused.inc()

    def count_restart(self) -> None:
        self.restarts.inc()

    def count_decoder_loss(self) -> None:
        self.decoder_losses.inc()

    def count_rejected(self, reason: str) -> None:
        self.rejected.labels(reason).inc()

    def render(self) -> bytes:
        self.refresh()
        return generate_latest(self._exposed)


class _Processes(Collector):
    """The metrics of ProcessCollector, summed over a process and its children; on Linux only."""

    def __init__(self, parent: int, registry: CollectorRegistry) -> None:
        self._parent = parent
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        totals: dict[str, Metric] = {}
        for pid in self._pids():
            for metric in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                if metric.name not in totals:
                    totals[metric.name] = metric
                    continue
                [total], [sample] = totals[metric.name].samples, metric.samples
                least = metric.name in ("process_start_time_seconds", "process_max_fds")
                value = min(total.value, sample.value) if least else total.value + sample.value
                totals[metric.name].samples = [total._replace(value=value)]
        return totals.values()

    def _pids(self) -> list[int]:
        try:
            children = Path(f"/proc/{self._parent}/task/{self._parent}/children").read_text()
        except OSError:
            return []
        return [self._parent, *map(int, children.split())]
