"""Which requests are admitted, and how the others are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from app.edge.admission import Admission, AdmissionLimits, AdmissionRules
from app.edge.exchange import Exchange
from app.edge.routing import Routes
from app.errors import (
    BodyTimeout,
    LeukoError,
    MalformedRequest,
    NotReady,
    QueueFull,
    TooLarge,
    UnsupportedFormat,
)
from app.observability.request_context import RequestContext

STATUS: dict[type[LeukoError], int] = {
    MalformedRequest: 400,
    BodyTimeout: 408,
    TooLarge: 413,
    UnsupportedFormat: 415,
    QueueFull: 429,
    NotReady: 503,
}
Observed = tuple[str | None, str, int]


def problem(error: LeukoError, request_id: str) -> JSONResponse:
    retry_after = getattr(error, "retry_after", None)
    return JSONResponse(
        {"code": error.code, "request_id": request_id},
        STATUS[type(error)],
        None if retry_after is None else {"Retry-After": str(retry_after)},
    )


class Service:
    """A small application behind admission; /held waits until `go` is set."""

    def __init__(self, **options: Any) -> None:
        self.observed: list[Observed] = []
        self.ready = True
        self.bodies: list[bytes] = []
        self.arrived = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.admission = self.admit(self.application(), **options)

    def admit(self, application: FastAPI, **options: Any) -> Admission:
        rules = {name: options.pop(name) for name in ("queued", "check_queue") if name in options}
        limits = {
            "max_body_bytes": 100,
            "max_reserved_bytes": 1000,
            "max_requests": 10,
            "body_timeout_s": 1000.0,
            "linger_s": 0.0,
        }
        return Admission(
            application,
            AdmissionLimits(**limits | options),
            AdmissionRules(Routes(application).match, lambda: self.ready, **rules),
            problem,
            self.observe,
        )

    def observe(self, exchange: Exchange, route: str | None) -> None:
        self.observed.append((route, exchange.scope["method"], exchange.status))

    def application(self) -> FastAPI:
        application = FastAPI()

        @application.post("/raw/{name}")
        @application.post("/v2/models/{name}/infer")
        async def raw(request: Request) -> str:
            self.bodies.append(await request.body())
            return str(request.state.context.request_id)

        @application.post("/declared")
        async def declared(body: dict[str, int] = Body()) -> int:  # noqa: B008
            return len(body)

        @application.post("/held")
        async def held(request: Request) -> None:
            await request.body()
            self.arrived.release()
            await self.go.wait()

        @application.post("/lasting")
        async def lasting(request: Request) -> None:
            await request.body()
            request.state.context.holding.hold()  # as a thread does that goes on after the response

        @application.post("/broken")
        async def broken() -> None:
            raise ZeroDivisionError

        @application.get("/healthz")
        async def healthz() -> None:
            pass

        @application.exception_handler(LeukoError)
        async def render(request: Request, error: LeukoError) -> JSONResponse:
            return problem(error, request.state.context.request_id)

        return application

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.admission, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def call(admission: Admission, scope: Scope, receive: Receive) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await admission(scope, receive, send)
    return sent


def post(path: str, **headers: str) -> Scope:
    with_host = {"host": "service"} | headers
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in with_host.items()]
    version = {"type": "http", "http_version": "1.1"}
    return version | {"method": "POST", "path": path, "query_string": b"", "headers": raw}


async def disconnected() -> Message:
    return {"type": "http.disconnect"}


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


def test_an_admitted_request_reaches_the_application_with_its_id() -> None:
    async def scenario() -> None:
        service = Service()
        async with service.client() as client:
            response = await client.post("/raw/a", content=b"body", headers={"X-Request-ID": "mine"})
        assert (response.status_code, response.json(), response.headers["X-Request-ID"]) == (
            200,
            "mine",
            "mine",
        )
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert service.bodies == [b"body"]

    run(scenario)


def test_a_declared_body_over_the_limit_is_refused_before_it_is_read() -> None:
    async def scenario() -> None:
        service = Service()
        sent: list[Message] = []

        async def receive() -> Message:
            assert sent[0]["status"] == 413
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await service.admission(post("/raw/a", content_length="101"), receive, send)
        assert sent[0]["status"] == 413
        assert service.bodies == []

    run(scenario)


def test_a_body_of_exactly_the_limit_is_admitted() -> None:
    async def scenario() -> None:
        service = Service()
        async with service.client() as client:
            assert (await client.post("/raw/a", content=b"x" * 100)).status_code == 200
            assert (await client.post("/raw/a", content=chunks(b"x" * 50, b"x" * 50))).status_code == 200

    run(scenario)


@pytest.mark.parametrize("path", ["/raw/a", "/declared"])
def test_a_chunked_body_over_the_limit_is_413_however_the_route_reads_it(path: str) -> None:
    async def scenario() -> None:
        service = Service()
        async with service.client() as client:
            headers = {"Content-Type": "application/json"}
            response = await client.post(path, content=chunks(b"{", b"x" * 100, b"}"), headers=headers)
        assert (response.status_code, response.json()["code"]) == (413, "too_large")
        assert response.json()["request_id"] == response.headers["X-Request-ID"]

    run(scenario)


@pytest.mark.parametrize("path", ["/raw/a", "/declared"])
def test_a_slow_body_is_408_however_the_route_reads_it(path: str) -> None:
    async def scenario() -> None:
        service = Service(body_timeout_s=0.01)
        pieces = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> Message:
            if not pieces:
                await asyncio.Event().wait()
            return pieces.pop()

        slow = post(path, content_length="50", content_type="application/json")
        sent = await call(service.admission, slow, receive)
        assert sent[0]["status"] == 408
        assert (b"connection", b"close") in sent[0]["headers"]
        assert service.admission.budget.bytes == 0

    run(scenario)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "identity, gzip"])
def test_a_compressed_body_is_refused_except_under_v2(encoding: str) -> None:
    async def scenario() -> None:
        service = Service()
        headers = {"Content-Encoding": encoding}
        async with service.client() as client:
            assert (await client.post("/raw/a", content=b"x", headers=headers)).status_code == 415
            assert (await client.post("/v2/models/m/infer", content=b"x", headers=headers)).status_code == 200
            assert (await client.post("/v2/raw/a", content=b"x", headers=headers)).status_code == 404
            assert (await client.post("/raw/a", headers={"Content-Encoding": "identity"})).status_code == 200

    run(scenario)


def test_a_content_length_that_is_no_number_is_400() -> None:
    async def scenario() -> None:
        sent = await call(Service().admission, post("/raw/a", content_length="-1"), disconnected)
        assert sent[0]["status"] == 400

    run(scenario)


def test_while_not_ready_work_is_refused_with_retry_after_and_probes_are_answered() -> None:
    async def scenario() -> None:
        service = Service()
        service.ready = False
        async with service.client() as client:
            refusal = await client.post("/raw/a", content=b"x")
            assert (refusal.status_code, refusal.headers["Retry-After"]) == (503, "5")
            assert (await client.get("/healthz")).status_code == 200

    run(scenario)


def test_requests_in_flight_are_limited_but_probes_are_answered() -> None:
    async def scenario() -> None:
        service = Service(max_requests=1)
        async with service.client() as client:
            held = asyncio.create_task(client.post("/held"))
            await service.arrived.acquire()
            refusal = await client.post("/raw/a")
            assert (refusal.status_code, refusal.headers["Retry-After"]) == (429, "1")
            assert (await client.get("/healthz")).status_code == 200
            service.go.set()
            assert (await held).status_code == 200
            assert (await client.post("/raw/a")).status_code == 200
        assert service.admission.budget.requests == 0

    run(scenario)


class ArrivingBody:
    """A body whose pieces arrive when they are received. ends: False if the last piece never arrives."""

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        self.messages: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
        ]
        self.messages[-1]["more_body"] = not ends

    async def receive(self) -> Message:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)


def refuse_all(_: RequestContext) -> None:
    raise QueueFull("full", retry_after=7)


def test_a_full_queue_refuses_before_the_application_and_keeps_the_connection() -> None:
    async def scenario() -> None:
        service = Service(queued={"/raw/{name}"}, check_queue=refuse_all, linger_s=1000.0)
        body = ArrivingBody(b"some", b"body")
        start, last = await call(service.admission, post("/raw/a", content_length="8"), body.receive)
        headers = dict(start["headers"])
        assert (start["status"], headers[b"retry-after"]) == (429, b"7")
        assert b"connection" not in headers
        assert (last.get("more_body", False), body.messages, service.bodies) == (False, [], [])
        assert service.observed == [("/raw/{name}", "POST", 429)]
        async with service.client() as client:
            assert (await client.post("/declared", json={})).status_code == 200
            assert (await client.get("/healthz")).status_code == 200

    run(scenario)


@pytest.mark.parametrize(
    ("length", "expect", "ends"),
    [("8", None, False), ("8", "100-continue", True), (str(2**20 + 1), None, True)],
    ids=["slow", "asks first", "large"],
)
def test_a_refused_body_that_is_slow_or_large_or_expects_100_closes_the_connection(
    length: str, expect: str | None, ends: bool
) -> None:
    async def scenario() -> None:
        service = Service(
            queued={"/raw/{name}"},
            check_queue=refuse_all,
            linger_s=0.01,
            max_body_bytes=2**21,
            max_reserved_bytes=2**21,
        )
        body = ArrivingBody(b"some", b"body", ends=ends)
        scope = post("/raw/a", content_length=length)
        scope["headers"] += [] if expect is None else [(b"expect", expect.encode())]
        start, *_ = await call(service.admission, scope, body.receive)
        assert start["status"] == 429
        assert dict(start["headers"])[b"connection"] == b"close"

    run(scenario)


@pytest.mark.parametrize("body", [lambda data: data, chunks], ids=["declared", "chunked"])
def test_the_bytes_of_one_caller_in_flight_are_bounded(body: Callable[[bytes], Any]) -> None:
    async def scenario() -> None:
        service = Service(max_reserved_bytes=200)
        budget = service.admission.budget
        async with service.client() as client:
            held = asyncio.create_task(client.post("/held", content=body(b"x" * 100)))
            await service.arrived.acquire()
            assert budget.bytes == 100
            assert (await client.post("/raw/a", content=body(b"x" * 50))).status_code == 200
            assert (await client.post("/raw/a", content=body(b"x" * 51))).status_code == 429
            assert budget.bytes == 100
            service.go.set()
            await held
            assert (await client.post("/raw/a", content=body(b"x" * 100))).status_code == 200
        assert (budget.requests, budget.bytes) == (0, 0)

    run(scenario)


def test_a_body_of_unknown_length_reserves_what_has_arrived() -> None:
    async def scenario() -> None:
        service = Service()
        body = ArrivingBody(b"ab", b"cde", ends=False)
        reading = asyncio.create_task(
            call(service.admission, post("/raw/a", transfer_encoding="chunked"), body.receive)
        )
        while body.messages:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (service.admission.budget.requests, service.admission.budget.bytes) == (1, 5)
        reading.cancel()
        await asyncio.wait([reading])
        assert (service.admission.budget.requests, service.admission.budget.bytes) == (0, 0)

    run(scenario)


NO_BODY = [
    ("POST", "/healthz", 405),
    ("PUT", "/raw/a", 405),
    ("POST", "/nowhere", 404),
    ("GET", "/healthz", 200),
]


@pytest.mark.parametrize(("method", "path", "status"), NO_BODY)
def test_a_route_that_takes_no_body_reserves_nothing_for_one(method: str, path: str, status: int) -> None:
    async def scenario() -> None:
        service = Service(max_requests=1, linger_s=1000.0)
        leaving = asyncio.Event()
        sent: list[Message] = []
        started = asyncio.Event()
        body = [{"type": "http.request", "body": b"x", "more_body": True}]

        async def receive() -> Message:
            if body:
                return body.pop()
            await leaving.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            started.set()

        scope: Scope = {**post(path, transfer_encoding="chunked"), "method": method}
        lingering = asyncio.create_task(service.admission(scope, receive, send))
        await started.wait()
        assert sent[0]["status"] == status
        assert service.admission.budget.requests == 0
        async with service.client() as client:
            assert (await client.post("/raw/a", content=b"x")).status_code == 200
        leaving.set()
        await lingering

    run(scenario)


def test_nothing_is_held_while_the_rest_of_a_refused_body_is_discarded() -> None:
    async def scenario() -> None:
        service = Service(linger_s=1000.0)
        body, started = ArrivingBody(b"x" * 60, b"x" * 41, ends=False), asyncio.Event()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 413
            else:
                started.set()

        lingering = asyncio.create_task(
            service.admission(post("/raw/a", transfer_encoding="chunked"), body.receive, send)
        )
        await started.wait()
        assert (service.admission.budget.requests, service.admission.budget.bytes) == (0, 0)
        assert not lingering.done()
        lingering.cancel()
        await asyncio.wait([lingering])

    run(scenario)


def test_a_request_is_observed_before_the_rest_of_its_body_is_discarded() -> None:
    async def scenario() -> None:
        service = Service(linger_s=1000.0)
        service.ready = False
        discarding = asyncio.Event()

        async def receive() -> Message:
            discarding.set()
            await asyncio.Event().wait()
            raise NotImplementedError

        lingering = asyncio.create_task(call(service.admission, post("/raw/a", content_length="4"), receive))
        await discarding.wait()
        discarding.clear()
        lingering.cancel()  # the service ends, and so does its audit log
        await discarding.wait()
        assert service.observed == [("/raw/{name}", "POST", 503)]
        lingering.cancel()
        await asyncio.wait([lingering])
        assert len(service.observed) == 1

    run(scenario)


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "text/plain; application/json"]
)
def test_infer_takes_no_type_that_a_page_of_another_site_may_send_without_asking(kind: str) -> None:
    async def scenario() -> None:
        async with Service().client() as client:
            for path, status in (("/v2/models/m/infer", 415), ("/raw/a", 200)):
                sent = await client.post(path, content=b"x", headers={"content-type": kind})
                assert sent.status_code == status

    run(scenario)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/octet-stream"]
)
def test_infer_takes_json_octets_and_a_body_without_a_type(kind: str) -> None:
    async def scenario() -> None:
        async with Service().client() as client:
            for headers in ({"content-type": kind}, {}):
                sent = await client.post("/v2/models/m/infer", content=b"x", headers=headers)
                assert sent.status_code == 200

    run(scenario)


@pytest.mark.parametrize(
    "path", ["/raw/a\n", "/raw/a\0", "/healthz\x7f", "/nowhere\x85", "/\u2028", "/\ufffd"]
)
def test_a_control_character_in_the_path_is_400_before_anything_else(path: str) -> None:
    async def scenario() -> None:
        service = Service()
        service.ready = False
        start, *_ = await call(service.admission, post(path, content_length="1000"), disconnected)
        assert start["status"] == 400
        assert service.observed == [(None, "POST", 400)]

    run(scenario)


def test_a_compressed_body_reserves_what_it_may_expand_to() -> None:
    async def scenario() -> None:
        service = Service(max_reserved_bytes=1200)
        headers = {"Content-Encoding": "gzip"}
        async with service.client() as client:
            fits = await client.post("/v2/models/m/infer", content=b"x" * 100, headers=headers)
            assert fits.status_code == 200
        service = Service(max_reserved_bytes=1199)
        async with service.client() as client:
            never_fits = await client.post("/v2/models/m/infer", content=b"x" * 100, headers=headers)
            assert never_fits.status_code == 413

    run(scenario)


def test_one_body_of_the_maximum_size_is_always_admitted() -> None:
    async def scenario() -> None:
        service = Service(max_reserved_bytes=1)
        async with service.client() as client:
            assert (await client.post("/raw/a", content=chunks(b"x" * 100))).status_code == 200

    run(scenario)


def test_a_disconnect_releases_the_request_and_its_bytes() -> None:
    async def scenario() -> None:
        service = Service()
        disconnect = asyncio.Event()
        pieces = [{"type": "http.request", "body": b"body", "more_body": False}]

        async def receive() -> Message:
            if not pieces:
                await disconnect.wait()
                return {"type": "http.disconnect"}
            return pieces.pop()

        held = asyncio.create_task(call(service.admission, post("/held", content_length="4"), receive))
        await service.arrived.acquire()
        assert (service.admission.budget.requests, service.admission.budget.bytes) == (1, 4)
        disconnect.set()
        assert await held == []
        assert (service.admission.budget.requests, service.admission.budget.bytes) == (0, 0)
        assert service.observed == [("/held", "POST", 499)]

    run(scenario)


def test_work_that_goes_on_after_the_response_keeps_place_and_bytes_until_it_ends() -> None:
    async def scenario() -> None:
        service = Service()
        scope = post("/lasting", content_length="4")
        pieces = [{"type": "http.request", "body": b"body", "more_body": False}]

        async def receive() -> Message:
            if not pieces:
                await asyncio.Event().wait()
            return pieces.pop()

        assert (await call(service.admission, scope, receive))[0]["status"] == 200
        assert (service.admission.budget.requests, service.admission.budget.bytes) == (1, 4)
        scope["state"]["context"].holding.close()
        assert (service.admission.budget.requests, service.admission.budget.bytes) == (0, 0)

    run(scenario)


def test_each_request_is_observed_under_its_route_template_and_status() -> None:
    async def scenario() -> None:
        service = Service()
        async with service.client() as client:
            await client.post("/raw/patient-name")
            await client.get("/healthz")
            await client.get("/patient-name")
            await client.post("/broken")
            await client.post("/raw/a", content=b"x" * 101)
        assert service.observed == [
            ("/raw/{name}", "POST", 200),
            ("/healthz", "GET", 200),
            (None, "GET", 404),
            ("/broken", "POST", 500),
            ("/raw/{name}", "POST", 413),
        ]

    run(scenario)


def test_scopes_other_than_http_pass_unchanged() -> None:
    async def scenario() -> None:
        scopes: list[Scope] = []

        async def application(scope: Scope, _: Receive, __: Send) -> None:
            scopes.append(scope)

        service = Service()
        service.admission.app = application
        await call(service.admission, {"type": "lifespan"}, disconnected)
        assert scopes == [{"type": "lifespan"}]

    run(scenario)


@pytest.mark.parametrize("read", [True, False])
def test_a_request_that_is_under_way_when_the_service_ends_gets_503(read: bool) -> None:
    async def scenario() -> None:
        service = Service(body_timeout_s=60.0)
        arrived = asyncio.Event()

        async def receive() -> Message:
            if read and not arrived.is_set():
                arrived.set()
                return {"type": "http.request", "body": b"body"}
            arrived.set()
            await asyncio.Event().wait()
            raise NotImplementedError

        under_way = asyncio.create_task(call(service.admission, post("/held", content_length="4"), receive))
        await (service.arrived.acquire() if read else arrived.wait())
        under_way.cancel()
        async with asyncio.timeout(60):
            start, *bodies = await under_way
        assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"1")
        assert b"not_ready" in b"".join(body.get("body", b"") for body in bodies)
        assert not bodies[-1].get("more_body")
        assert service.observed == [("/held", "POST", 503)]

    run(scenario)
