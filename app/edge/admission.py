"""Admission: an ASGI middleware that refuses requests which cannot be served, before their body is read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.content_encoding import EXPANSION
from app.edge.exchange import Exchange
from app.edge.keys import Key
from app.edge.paths import is_open_inference
from app.errors import Forbidden, LeukoError, NotReady, QueueFull, TooLarge, UnsupportedFormat
from app.observability.request_context import RequestContext

Problem = Callable[[LeukoError, str], ASGIApp]  # error, request id → response
Observe = Callable[[Exchange, str | None], None]  # finished exchange, template of its route or None
Authorize = Callable[[str, Headers], Key | None]  # path, headers → key; raises Unauthenticated, Forbidden


@dataclass(frozen=True)
class AdmissionLimits:
    """Limits on bodies and requests in flight.

    Until its request is answered, a body reserves its declared length, or what it may expand to if it is
    compressed, or max_body_bytes if its length is unknown. body_timeout_s runs from the start of the request;
    linger_s is how long an unread body is read and discarded before closing.
    """

    max_body_bytes: int
    max_reserved_bytes: int
    max_requests: int
    body_timeout_s: float
    linger_s: float = 2.0


@dataclass(frozen=True)
class AdmissionRules:
    """What admission asks the application.

    authorize: called before any other rule.
    ready: whether work is accepted.
    queued: whether a POST to a path puts images into the queue; then check_queue raises if that has no room
    for the caller, so that a refusal under overload costs little more than reading the head.
    named: paths under which a refused request is observed, although it reached no route.
    """

    ready: Callable[[], bool]
    authorize: Authorize = lambda _path, _headers: None
    queued: Callable[[str], bool] = lambda _path: False
    check_queue: Callable[[RequestContext], object] = lambda _context: None
    named: Collection[str] = ()


class Admission:
    """The middleware. problem: renders a refusal. observe: called with each finished exchange."""

    def __init__(
        self,
        app: ASGIApp,
        limits: AdmissionLimits,
        rules: AdmissionRules,
        problem: Problem,
        observe: Observe,
    ) -> None:
        self.app = app
        self.limits = limits
        self.rules = rules
        self.problem = problem
        self.observe = observe
        # One body of the maximum size must always fit, or its client would retry for ever.
        self.max_reserved_bytes = max(limits.max_reserved_bytes, limits.max_body_bytes)
        self.requests = 0
        self.reserved_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(
            scope,
            receive,
            send,
            max_body_bytes=self.limits.max_body_bytes,
            body_timeout_s=self.limits.body_timeout_s,
            linger_s=self.limits.linger_s,
        )
        try:
            await self._serve(exchange)
        finally:
            path = exchange.path
            route = getattr(scope.get("route"), "path", path if path in self.rules.named else None)
            self.observe(exchange, route)

    async def _serve(self, exchange: Exchange) -> None:
        try:
            exchange.check_host()
            self._identify(exchange)
            self._check_body(exchange)
            # Only POST carries work; probes and metrics are answered under any load.
            if exchange.scope["method"] == "POST":
                await self._work(exchange)
            else:
                await self._forward(exchange)
        except LeukoError as error:
            if exchange.started:
                raise
            if exchange.failure is None:
                exchange.failure = error
                if isinstance(error, QueueFull | NotReady):  # the client will retry on this connection
                    await exchange.discard()
        if exchange.failure is not None and not exchange.started:
            response = self.problem(exchange.failure, exchange.context.request_id)
            await response(exchange.scope, exchange.receive, exchange.respond)

    def _identify(self, exchange: Exchange) -> None:
        try:
            key = self.rules.authorize(exchange.path, exchange.headers)
        except Forbidden as error:
            exchange.key_id = error.key_id
            raise
        context = exchange.context
        if key is None:
            context.caller = f"address:{exchange.address}"
            return
        exchange.key_id = key.id
        context.caller, context.weight = f"key:{key.id}", key.weight

    async def _work(self, exchange: Exchange) -> None:
        size = self.limits.max_body_bytes if exchange.declared is None else exchange.declared
        if exchange.encoded:
            size = min(EXPANSION * size, self.limits.max_body_bytes)
        if exchange.surplus:
            raise NotReady("Too many connections are open.", retry_after=1)
        self._check_room(size)
        if self.rules.queued(exchange.path):
            self.rules.check_queue(exchange.context)
        self.requests += 1
        self.reserved_bytes += size
        try:
            await self._forward(exchange)
        finally:
            self.requests -= 1
            self.reserved_bytes -= size

    async def _forward(self, exchange: Exchange) -> None:
        async with exchange.while_connected():
            await self.app(exchange.scope, exchange.receive, exchange.send)

    def _check_body(self, exchange: Exchange) -> None:
        if exchange.encoded and not is_open_inference(exchange.path):
            raise UnsupportedFormat("Compressed bodies are not accepted: send it without Content-Encoding.")
        if exchange.declared is not None and exchange.declared > self.limits.max_body_bytes:
            raise TooLarge(f"The body is over {self.limits.max_body_bytes} bytes.")

    def _check_room(self, size: int) -> None:
        if not self.rules.ready():
            raise NotReady("The service is starting or stopping.")
        if self.requests >= self.limits.max_requests:
            raise QueueFull("Too many requests are in flight.")
        if self.reserved_bytes + size > self.max_reserved_bytes:
            raise QueueFull("The bodies of all requests in flight are too large in total.")
