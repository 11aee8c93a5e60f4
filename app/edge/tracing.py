"""OpenTelemetry traces: one span per request and per stage interval, created after the response."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from app import __version__
from app.edge.exchange import Exchange
from app.errors import SettingsError
from app.observability.metrics import METHODS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

# https://opentelemetry.io/docs/specs/semconv/http/http-spans/: a server span with 4xx is not an error.
SERVER_ERROR = 500


class Tracer(Protocol):
    def record(self, exchange: Exchange, route: str | None) -> str:
        """Record a finished exchange; return the trace id in hexadecimal."""
        ...

    def close(self) -> None:
        """Export the spans that are left."""
        ...


def open_tracer(exporter: SpanExporter | None = None) -> Tracer:
    """Return a tracer. Raise SettingsError if OpenTelemetry is not installed.

    exporter: by default OTLP over HTTP, as the OTEL_EXPORTER_OTLP_… variables configure it. Sampling,
    limits and further resource attributes also come from OTEL_… variables.
    """
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise SettingsError(
            "LEUKO_TRACES=otlp needs OpenTelemetry: run `make install EXTRAS=otel` in Leuko's checkout"
        )
    return _OpenTelemetry(exporter)


class _OpenTelemetry:
    def __init__(self, exporter: SpanExporter | None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import (
            SERVICE_NAME,
            SERVICE_VERSION,
            OTELResourceDetector,
            Resource,
        )
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        defaults = {SERVICE_NAME: "leuko", SERVICE_VERSION: __version__}
        # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
        configured = OTELResourceDetector().detect().attributes
        resource = Resource.create({**defaults, **configured})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("leuko", __version__)
        self._extract = TraceContextTextMapPropagator().extract

    def record(self, exchange: Exchange, route: str | None) -> str:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        exchange.context.stages.respond()
        offset_ns = time.time_ns() - time.monotonic_ns()
        traceparent = exchange.context.traceparent
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        method = exchange.scope["method"] if exchange.scope["method"] in METHODS else "_OTHER"
        span = self._tracer.start_span(
            f"{method} {route}" if route else method,
            self._extract(carrier),
            SpanKind.SERVER,
            start_time=_unix_ns(exchange.context.stages.began, offset_ns),
        )
        if span.is_recording():
            span.set_attributes(_attributes(exchange, method, route))
            if exchange.status >= SERVER_ERROR:
                span.set_status(Status(StatusCode.ERROR))
            context = set_span_in_context(span)
            for name, intervals in exchange.context.stages.intervals().items():
                for began, ended in intervals:
                    child = self._tracer.start_span(name, context, start_time=_unix_ns(began, offset_ns))
                    child.end(_unix_ns(ended, offset_ns))
        span.end()
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        self._provider.shutdown()


def _attributes(exchange: Exchange, method: str, route: str | None) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "http.response.status_code": exchange.status,
        "leuko.request_id": exchange.context.request_id,
    }
    if route is not None:
        attributes["http.route"] = route
    if "model_sha256" in exchange.context.findings:
        attributes["leuko.model.sha256"] = exchange.context.findings["model_sha256"]
    if "images" in exchange.context.findings:
        attributes["leuko.images"] = len(exchange.context.findings["images"])
    return attributes


def _unix_ns(monotonic_s: float, offset_ns: int) -> int:
    return int(monotonic_s * 1e9) + offset_ns
