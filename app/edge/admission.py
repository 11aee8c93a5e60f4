"""Pure ASGI in front of the application: refuses, before a body is read, what cannot be served."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.content_encoding import EXPANSION
from app.edge.exchange import Exchange
from app.edge.keys import Key
from app.edge.paths import is_open_inference
from app.errors import Forbidden, LeukoError, NotReady, QueueFull, TooLarge, UnsupportedFormat

Problem = Callable[[LeukoError, str], ASGIApp]  # error, request id → the answer
Observe = Callable[[Exchange, str | None], None]  # what was answered, the route's template
Authorize = Callable[[str, Headers], Key | None]  # path, headers → the key that was shown; raises


class Admission:
    """`problem` renders what is refused, `ready` says whether work is taken, `observe` hears of each request.

    `authorize` comes before all else. What is refused before it reaches a route is observed under its path
    where that is one of `named`. `check_queue` raises when nothing more may wait; it is asked for paths
    that are `queued`, so that an overload costs little more than reading it. A body reserves its declared
    length, what a compressed one may expand to, else max_body_bytes, until its request is answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        problem: Problem,
        ready: Callable[[], bool],
        observe: Observe,
        max_body_bytes: int,
        max_reserved_bytes: int,
        max_requests: int,
        body_timeout_s: float,
        linger_s: float = 2.0,
        authorize: Authorize = lambda _path, _headers: None,
        named: Collection[str] = (),
        queued: Callable[[str], bool] = lambda _path: False,
        check_queue: Callable[[], object] = lambda: None,
    ) -> None:
        self.app = app
        self.problem = problem
        self.ready = ready
        self.observe = observe
        self.authorize = authorize
        self.named = named
        self.queued = queued
        self.check_queue = check_queue
        self.max_body_bytes = max_body_bytes
        # One body of the greatest size must always find room, or its client would try again for ever.
        self.max_reserved_bytes = max(max_reserved_bytes, max_body_bytes)
        self.max_requests = max_requests
        self.requests = 0
        self.reserved_bytes = 0
        self._exchange = partial(
            Exchange, max_body_bytes=max_body_bytes, body_timeout_s=body_timeout_s, linger_s=linger_s
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = self._exchange(scope, receive, send)
        try:
            await self._serve(exchange)
        finally:
            path = exchange.path
            route = getattr(scope.get("route"), "path", path if path in self.named else None)
            self.observe(exchange, route)

    async def _serve(self, exchange: Exchange) -> None:
        try:
            exchange.check_host()
            self._identify(exchange)
            self._check_body(exchange)
            # Only POST carries work; probes and metrics answer under any load.
            if exchange.scope["method"] == "POST":
                await self._work(exchange)
            else:
                await self._forward(exchange)
        except LeukoError as error:
            if exchange.started:
                raise
            if exchange.failure is None:
                exchange.failure = error
                if isinstance(error, QueueFull | NotReady):  # the client will be back
                    await exchange.discard()
        if exchange.failure is not None and not exchange.started:
            answer = self.problem(exchange.failure, exchange.context.request_id)
            await answer(exchange.scope, exchange.receive, exchange.answer)

    def _identify(self, exchange: Exchange) -> None:
        try:
            key = self.authorize(exchange.path, exchange.headers)
        except Forbidden as error:
            exchange.key_id = error.key_id
            raise
        exchange.key_id = key.id if key else None

    async def _work(self, exchange: Exchange) -> None:
        size = self.max_body_bytes if exchange.declared is None else exchange.declared
        if exchange.encoded:
            size = min(EXPANSION * size, self.max_body_bytes)
        if exchange.crowded:
            raise NotReady("Too many connections are open.", retry_after=1)
        self._check_room(size)
        if self.queued(exchange.path):
            self.check_queue()
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
        if exchange.declared is not None and exchange.declared > self.max_body_bytes:
            raise TooLarge(f"The body is over {self.max_body_bytes} bytes.")

    def _check_room(self, size: int) -> None:
        if not self.ready():
            raise NotReady("The service is starting or stopping.")
        if self.requests >= self.max_requests:
            raise QueueFull("Too many requests are in flight.")
        if self.reserved_bytes + size > self.max_reserved_bytes:
            raise QueueFull("The bodies in flight are too large together.")
