"""Traces for OpenTelemetry: one span a request, and one for each of its stages, made when it is over."""

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

SERVER_ERROR = (
    500  # https://opentelemetry.io/docs/specs/semconv/http/http-spans/: 4xx is no error of a server
)


class Tracer(Protocol):
    def record(self, exchange: Exchange, route: str | None) -> str:
        """The trace's id, in hexadecimal."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


def open_tracer(exporter: SpanExporter | None = None) -> Tracer:
    """exporter: in place of OTLP over HTTP to where the OTEL_EXPORTER_OTLP_… variables say.

    Sampling, limits and more attributes of the service are those of the OTEL_… variables, too.
    """
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise SettingsError("LEUKO_TRACES is otlp, but OpenTelemetry is absent: install the extra `otel`")
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

        ours = {SERVICE_NAME: "leuko", SERVICE_VERSION: __version__}
        given = OTELResourceDetector().detect().attributes  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
        self._provider = TracerProvider(resource=Resource.create({**ours, **given}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("leuko", __version__)
        self._extract = TraceContextTextMapPropagator().extract

    def record(self, exchange: Exchange, route: str | None) -> str:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        exchange.context.stages.respond()
        offset = time.time_ns() - time.monotonic_ns()
        parent = {} if exchange.context.traceparent is None else {"traceparent": exchange.context.traceparent}
        method = exchange.scope["method"] if exchange.scope["method"] in METHODS else "_OTHER"
        span = self._tracer.start_span(
            f"{method} {route}" if route else method,
            self._extract(parent),
            SpanKind.SERVER,
            start_time=_nanoseconds(exchange.context.stages.began, offset),
        )
        if span.is_recording():
            span.set_attributes(_attributes(exchange, method, route))
            if exchange.status >= SERVER_ERROR:
                span.set_status(Status(StatusCode.ERROR))
            context = set_span_in_context(span)
            for name, intervals in exchange.context.stages.intervals().items():
                for began, ended in intervals:
                    child = self._tracer.start_span(name, context, start_time=_nanoseconds(began, offset))
                    child.end(_nanoseconds(ended, offset))
        span.end()
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        self._provider.shutdown()


def _attributes(exchange: Exchange, method: str, route: str | None) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "http.request.method": method,
        "http.response.status_code": exchange.status,
        "leuko.request_id": exchange.context.request_id,
    }
    if route is not None:
        found["http.route"] = route
    if "model_sha256" in exchange.context.findings:
        found["leuko.model.sha256"] = exchange.context.findings["model_sha256"]
    if "images" in exchange.context.findings:
        found["leuko.images"] = len(exchange.context.findings["images"])
    return found


def _nanoseconds(moment: float, offset: int) -> int:
    return int(moment * 1e9) + offset
