from __future__ import annotations

import asyncio
import gzip
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app.edge.exchange import Exchange
from app.edge.tracing import open_tracer
from app.observability.stages import MOST
from tests.fake_classifier import png
from tests.fakes import zipped
from tests.running import FAKE, running

STAGES = {"receive", "queue", "decode", "infer", "respond"}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
OTHER_TRACE = TRACE[::-1]


@contextmanager
def collecting() -> Iterator[tuple[str, list[Span], list[dict[str, str]]]]:
    """Run a collector for OTLP over HTTP; yield its address, the spans and the resources that it receives."""
    spans: list[Span] = []
    resources: list[dict[str, str]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            for group in request.resource_spans:
                resources.append({pair.key: pair.value.string_value for pair in group.resource.attributes})
                spans.extend(span for scope in group.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", spans, resources
        finally:
            server.shutdown()
            thread.join()


def attributes(span: Span) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


@dataclass(frozen=True)
class Traced:
    spans: list[Span]
    resources: list[dict[str, str]]
    log: str


@pytest.fixture(scope="module")
def traced() -> Traced:
    """What a collector and the log got of requests that their callers trace, and of one that none does."""
    archive = zipped({f"monocyte/{number}.png": png(number) for number in range(5 * MOST)})
    with collecting() as (address, spans, resources):
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_RESOURCE_ATTRIBUTES": "site=east"}
        with running(FAKE, "--traces", "otlp", "--max-batch", "2", environ=environ) as service:
            with service.client() as client:
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
                files = [("files", ("doe-jane.png", png(64))), ("files", ("doe-jane.png", png(1)))]
                assert client.post("/predict", files=files, headers=headers).status_code == 200
                assert client.get("/healthz").status_code == 200
                assert client.get("/doe-jane").status_code == 404
                headers = {"traceparent": f"00-{OTHER_TRACE}-{PARENT}-01"}
                sent = client.post("/evaluate", files={"archive": ("a.zip", archive)}, headers=headers)
                assert sent.status_code == 200
            assert service.end() == 0  # and sends what it has
    return Traced(spans, resources, "".join(service.log))


def test_a_request_arrives_at_a_collector_with_its_stages_and_under_its_callers_trace(traced: Traced) -> None:
    spans, resources = traced.spans, traced.resources
    assert (resources[0]["service.name"], resources[0]["site"]) == ("leuko", "east")
    [request] = [span for span in spans if span.name == "POST /predict"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/predict",
        "leuko.request_id": "mine",
        "leuko.model.sha256": "f" * 64,
        "leuko.images": 2,
    }
    children = [span for span in spans if span.parent_span_id == request.span_id]
    assert {span.name for span in children} == STAGES
    for span in children:
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= request.end_time_unix_nano
    [unknown] = [span for span in spans if not span.parent_span_id]
    assert unknown.name == "GET"
    assert "doe-jane" not in str(spans)
    assert f'"trace_id":"{TRACE}"' in traced.log


def test_an_evaluation_has_a_few_spans_of_each_stage_however_many_its_images_are(traced: Traced) -> None:
    spans = traced.spans
    [request] = [span for span in spans if span.name == "POST /evaluate"]
    counts = Counter(span.name for span in spans if span.parent_span_id == request.span_id)
    assert counts.keys() == STAGES
    assert max(counts.values()) <= MOST
    assert counts["respond"] == 1


def test_a_span_with_status_500_is_an_error_and_one_with_422_is_not() -> None:
    exporter = InMemorySpanExporter()
    tracer = open_tracer(exporter)

    async def record(status: int) -> None:
        async def nothing(*_: Any) -> Any: ...

        scope = {"type": "http", "method": "BREW", "path": "/", "headers": []}
        exchange = Exchange(scope, nothing, nothing, max_body_bytes=1, body_timeout_s=1, linger_s=1)
        exchange.status = status
        tracer.record(exchange, "/predict")

    for status in (500, 422):
        asyncio.run(record(status))
    tracer.close()
    first, second = exporter.get_finished_spans()
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert (first.name, first.kind) == ("_OTHER /predict", SpanKind.SERVER)


def test_an_unreachable_collector_delays_no_request() -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with running(FAKE, "--traces", "otlp", environ=environ) as service:
        with service.client() as client:
            for _ in range(20):
                response = client.post("/predict", content=png(1), headers={"content-type": "image/png"})
                assert response.status_code == 200
        assert service.end() == 0
    assert "Traceback" not in "".join(line for line in service.log if '"exception"' not in line)


def test_a_trace_that_is_not_sampled_is_not_exported_but_its_id_is_logged() -> None:
    with collecting() as (address, spans, _):
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_TRACES_SAMPLER": "always_off"}
        with running(FAKE, "--traces", "otlp", environ=environ) as service:
            with service.client() as client:
                assert client.get("/model").status_code == 200
            assert service.end() == 0
    assert spans == []
    assert '"trace_id"' in "".join(service.log)
