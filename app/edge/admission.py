"""Admission: an ASGI middleware that refuses requests which cannot be served, before their body is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.budget import Budget, Cost
from app.edge.content_encoding import EXPANSION
from app.edge.exchange import Exchange
from app.edge.keys import Key
from app.edge.paths import INFER
from app.edge.routing import Matched
from app.errors import Forbidden, LeukoError, NotReady, QueueFull, TooLarge, UnsupportedFormat
from app.observability.request_context import RequestContext

Problem = Callable[[LeukoError, str], ASGIApp]  # error, request id → response
Observe = Callable[[Exchange, str | None], None]  # finished exchange, template of its route or None
Match = Callable[[Scope], Matched]
# Template of the route, headers → key. Raises Unauthenticated, Forbidden or CrossSite.
Authorize = Callable[[str | None, Headers], Key | None]

# Of the Open Inference Protocol's `infer`; its clients may also send none. A browser asks for leave (CORS)
# before it sends these two for another site's page, but not before text/plain or a form.
INFER_TYPES = ("", "application/json", "application/octet-stream")


@dataclass(frozen=True)
class AdmissionLimits:
    """Limits on bodies and requests in flight.

    Only a request for a route that takes a body counts among max_requests, and reserves memory: for its
    declared length at once, or for what has arrived if the length is unknown or the body is slow; in bytes
    that its kind of body takes in memory. All this is given back when it is answered and no thread works on
    it any more. body_timeout_s runs from the start of the request; linger_s is how long an unread body is
    read and discarded before closing.
    """

    max_body_bytes: int
    max_reserved_bytes: int
    max_requests: int
    body_timeout_s: float
    linger_s: float = 2.0


@dataclass(frozen=True)
class AdmissionRules:
    """What admission asks the application.

    match: the route of a request. authorize: called before any other rule. Both are called before anything is
    reserved or read of the body.
    ready: whether work is accepted.
    queued: templates of routes that put images into the queue; for these check_queue raises if that has no
    room for the caller, so that a refusal under overload costs little more than reading the head.
    cost: bytes of memory that a body takes, by its route's template, media type and size; most: the same for
    the most expensive kind.
    """

    match: Match
    ready: Callable[[], bool]
    authorize: Authorize = lambda _template, _headers: None
    queued: Collection[str] = ()
    check_queue: Callable[[RequestContext], object] = lambda _context: None
    cost: Callable[[str, str, int], int] = lambda _template, _media_type, size: size
    most: Cost = int


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
        # One body of the maximum size must fit into an idle service, or its client would retry for ever.
        self.budget = Budget(
            max_requests=limits.max_requests,
            max_bytes=limits.max_reserved_bytes,
            largest=rules.most(limits.max_body_bytes),
        )

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
            await self._respond(exchange)
        except Exception:
            await exchange.finish()
            raise
        await exchange.finish()

    async def _respond(self, exchange: Exchange) -> None:
        """Respond and observe; not later, since at the end the audit log does not wait for unread bodies."""
        try:
            await self._serve(exchange)
        except asyncio.CancelledError:  # by uvicorn, once the time for requests under way has passed
            if exchange.started:
                raise
            await self._refuse(exchange, NotReady("The service is stopping.", retry_after=1))
        finally:
            self.observe(exchange, exchange.route.name)

    async def _serve(self, exchange: Exchange) -> None:
        try:
            exchange.check_path()
            exchange.route = self.rules.match(exchange.scope)
            exchange.check_host()
            self._identify(exchange)
            if exchange.route.takes_body:
                await self._work(exchange)
            else:  # 404 and 405 as well; probes and metrics are answered under any load
                await self._forward(exchange)
        except LeukoError as error:
            if exchange.started:
                raise
            if exchange.failure is None:
                exchange.failure = error
                if isinstance(error, QueueFull | NotReady):  # the client will retry on this connection
                    await exchange.discard()
        if exchange.failure is not None and not exchange.started:
            await self._refuse(exchange, exchange.failure)

    async def _refuse(self, exchange: Exchange, error: LeukoError) -> None:
        response = self.problem(error, exchange.context.request_id)
        await response(exchange.scope, exchange.receive, exchange.respond)

    def _identify(self, exchange: Exchange) -> None:
        try:
            key = self.rules.authorize(exchange.route.template, exchange.headers)
        except Forbidden as error:
            exchange.key_id = error.key_id
            raise
        if key is not None:
            exchange.key_id = key.id
            exchange.context.caller, exchange.context.weight = f"key:{key.id}", key.weight

    async def _work(self, exchange: Exchange) -> None:
        self._check_body(exchange)
        if exchange.surplus:
            raise NotReady("Too many connections are open.", retry_after=1)
        if not self.rules.ready():
            raise NotReady("The service is starting or stopping.")
        reservation = self.budget.admit(exchange.context.caller, self._cost(exchange))
        try:
            reservation.cover(exchange.declared or 0)
            if exchange.route.template in self.rules.queued:
                self.rules.check_queue(exchange.context)
            exchange.reservation = exchange.context.holding = reservation
            await self._forward(exchange)
        finally:
            reservation.close()

    async def _forward(self, exchange: Exchange) -> None:
        async with exchange.while_connected():
            await self.app(exchange.scope, exchange.receive, exchange.send)

    def _check_body(self, exchange: Exchange) -> None:
        infer = exchange.route.template in INFER
        if exchange.encoded and not infer:
            raise UnsupportedFormat("Compressed bodies are not accepted: send it without Content-Encoding.")
        if infer and any(kind not in INFER_TYPES for kind in exchange.media_types):
            raise UnsupportedFormat("Send application/json or application/octet-stream.")
        if exchange.declared is not None and exchange.declared > self.limits.max_body_bytes:
            raise TooLarge(f"The body is over {self.limits.max_body_bytes} bytes.")

    def _cost(self, exchange: Exchange) -> Cost:
        """Return what a body takes in memory; of several media types, the most expensive one counts."""
        template, kinds = exchange.route.template or "", exchange.media_types or [""]

        def cost(size: int) -> int:
            return max(self.rules.cost(template, kind, size) for kind in kinds)

        if exchange.encoded:
            return lambda size: size + cost(EXPANSION * size)
        return cost
