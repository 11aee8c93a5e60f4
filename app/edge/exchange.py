"""One request and its response, between server and application: request id, body limits, disconnects."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv6Address, IPv6Network
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from app.edge.budget import Reservation
from app.edge.prefix import prefix_of
from app.edge.routing import NOWHERE
from app.errors import BodyTimeout, LeukoError, MalformedRequest, TooLarge
from app.observability.request_context import RequestContext
from app.units import MIB

# RFC 3986, section 3.2: a name or an IPv4 or IPv6 address, optionally with a port.
HOST = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")
# https://www.w3.org/TR/trace-context/#traceparent-header, version 00
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# Control characters (ASCII, C1), separators of lines and paragraphs, and what stands for bytes that are not
# UTF-8: the regular expressions of routers and proxies treat some of them as the end of a path.
UNSAFE_PATH = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]")
SMALL_BODY = MIB  # largest body in bytes that is read and discarded to keep its connection open
GRACE_S = 2.0  # how far a declared body may lag behind an even pace that completes it in body_timeout_s
PIECE = 2**16  # bytes of a response that are sent at once: uvicorn waits when more than that are unsent
CLIENT_GONE = 499  # nginx's status for a client that disconnected before the response


class Exchange:
    """Wrap `receive` and `send` of one request; `failure` is why it was refused or its body not received.

    max_body_bytes is checked as the body arrives. body_timeout_s runs from the start of the request.
    linger_s is how long the rest of an unread body is read and discarded before closing.

    route: what the request was matched to. reservation: of a request with a body; it grows as bytes arrive,
    and before a response that is larger. A response is sent in pieces, so that the request, and with it its
    reservation, lasts until the client has taken all of it but the last pieces.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        linger_s: float,
    ) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.failure: LeukoError | None = None
        self.route = NOWHERE
        self.reservation: Reservation | None = None
        self.started = False
        self.status = 500
        self.key_id: str | None = None
        self.trace_id: str | None = None
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._linger_s = linger_s
        self._received = 0
        self._complete = False
        self._unfinished = False  # the response lacks its end
        self._disconnected = asyncio.Event()
        self._work = asyncio.timeout(None)
        self._watcher: asyncio.Task[None] | None = None
        self.context = RequestContext(
            _match(REQUEST_ID, self.headers.get("x-request-id")) or uuid4().hex,
            arrived=asyncio.get_running_loop().time(),
            caller=_address(scope),
            traceparent=_match(TRACEPARENT, self.headers.get("traceparent")),
            prefix=prefix_of(scope),
        )
        scope.setdefault("state", {})["context"] = self.context

    @property
    def elapsed(self) -> float:
        """Return the seconds since the start of the request."""
        return asyncio.get_running_loop().time() - self.context.arrived

    @property
    def path(self) -> str:
        """Return the path without the root path."""
        path: str = self.scope["path"]
        return path.removeprefix(self.scope.get("root_path", ""))

    @property
    def surplus(self) -> bool:
        """Return whether the connection is over the limit, so that it must be closed after the response."""
        return bool(self.scope["state"].get("surplus"))

    @property
    def encoded(self) -> bool:
        """Return whether the body is compressed."""
        return any(value.lower() != "identity" for value in self.headers.getlist("content-encoding"))

    @property
    def media_types(self) -> list[str]:
        """Return each Content-Type in lower case, without parameters."""
        return [value.partition(";")[0].strip().lower() for value in self.headers.getlist("content-type")]

    @property
    def declared(self) -> int | None:
        """Return the declared length of the body in bytes, None if it is chunked. Raise MalformedRequest."""
        if "transfer-encoding" in self.headers:
            return None
        length = _match(CONTENT_LENGTH, self.headers.get("content-length", "0"))
        if length is None:
            raise MalformedRequest("Content-Length is not a number of bytes.")
        return int(length)

    def check_path(self) -> None:
        """Raise MalformedRequest for a path that others may read differently."""
        if UNSAFE_PATH.search(self.scope["path"]):
            raise MalformedRequest("The path contains a control character, or bytes that are not UTF-8.")

    def check_host(self) -> None:
        """Raise MalformedRequest unless there is exactly one valid Host (RFC 9112, section 3.2).

        HTTP/1.0 requests may have none.
        """
        hosts = self.headers.getlist("host")
        if len(hosts) == 1 and HOST.fullmatch(hosts[0]):
            return
        if hosts or self.scope["http_version"] != "1.0":
            raise MalformedRequest("The request needs one Host header with a name or an address.")

    @asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Cancel the work inside if the client disconnects before the response has started."""
        try:
            async with self._work:
                yield
        except (TimeoutError, ClientDisconnect):
            if not self._disconnected.is_set():
                raise
        finally:
            if self._watcher is not None:
                self._watcher.cancel()

    async def receive(self) -> Message:
        """Return the next message; after the whole body, wait for the disconnect.

        Raise TooLarge or BodyTimeout, and keep it as `failure`.
        """
        if self.failure is not None:
            raise self.failure
        if self._complete:
            await self._disconnected.wait()
            return {"type": "http.disconnect"}
        message = await self._receive_in_time()
        if message["type"] == "http.disconnect":
            self._on_disconnect()
            return message
        self._received += len(message.get("body", b""))
        if self._received > self._max_body_bytes:
            self.failure = TooLarge(f"The body is over {self._max_body_bytes} bytes.")
            raise self.failure
        self._reserve()
        if not message.get("more_body", False):
            self._complete = True
            self._watcher = asyncio.create_task(self._watch())
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self.failure is None:
            self._reserve_response(Headers(raw=message["headers"]))
        # If reading a body fails, FastAPI responds 400; drop that: admission responds with `failure`.
        if self.failure is None or self.started:
            await self.respond(message)

    async def respond(self, message: Message) -> None:
        """Send a message of the response, whether or not the body failed."""
        if message["type"] == "http.response.start":
            self.started = True
            self.status = CLIENT_GONE if self._disconnected.is_set() else message["status"]
            self._put_headers(MutableHeaders(scope=message))
        elif message["type"] == "http.response.body" and self._unread and not message.get("more_body"):
            message, self._unfinished = {**message, "more_body": True}, True
        if len(message.get("body", b"")) > PIECE:
            await self._send_pieces(message["body"], message.get("more_body", False))
        else:
            await self._send(message)

    async def finish(self) -> None:
        """Read and discard an unread body after the response, then end it: closing sooner could lose it.

        To be called when nothing of the request is held any more.
        """
        if self._unfinished:
            self._unfinished = False
            await self._linger()
            await self._send({"type": "http.response.body"})

    async def discard(self) -> None:
        """Read and discard a small body, so that its connection can serve the next request."""
        length = _match(CONTENT_LENGTH, self.headers.get("content-length"))
        if length is None or int(length) > SMALL_BODY or {"expect", "transfer-encoding"} & {*self.headers}:
            return
        await self._linger()

    @property
    def _unread(self) -> bool:
        expects_body = "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"
        return expects_body and not self._complete

    def _put_headers(self, headers: MutableHeaders) -> None:
        headers["X-Request-ID"] = self.context.request_id
        headers["X-Content-Type-Options"] = "nosniff"
        headers.setdefault("Cache-Control", "no-store")  # pages and scripts set their own
        if self.context.traceparent is not None:
            headers["traceparent"] = self.context.traceparent
        if self._unread or self.surplus or isinstance(self.failure, MalformedRequest):
            headers["Connection"] = "close"

    def _reserve(self) -> None:
        if self.reservation is None:
            return
        try:
            self.reservation.cover(self._received)
        except LeukoError as error:
            self.failure = error
            raise

    def _reserve_response(self, headers: Headers) -> None:
        """Reserve what the response takes; without room for it, refuse instead with `failure`."""
        size = int(headers.get("content-length", "0"))  # a stream has none: its events come as they are made
        if self.reservation is None or size <= PIECE:
            return
        try:
            self.reservation.reserve(size)
        except LeukoError as error:
            self.failure = error

    async def _send_pieces(self, body: bytes, more_body: bool) -> None:
        """Send bytes as the client takes them. Pieces are copies: the last ones outlive the request."""
        for start in range(0, len(body), PIECE):
            if self._disconnected.is_set():
                return
            end = start + PIECE
            await self._send(
                {
                    "type": "http.response.body",
                    "body": bytes(body[start:end]),
                    "more_body": more_body or end < len(body),
                }
            )

    async def _receive_in_time(self) -> Message:
        deadline = self.context.arrived + self._body_timeout_s
        if self._reserved_ahead and (late := self._late) < deadline:
            try:
                async with asyncio.timeout_at(late):
                    return await self._receive()
            except TimeoutError:
                # Its sender has stopped, or will not be done in time: others can use the memory meanwhile.
                assert self.reservation is not None
                self.reservation.keep(self._received)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._receive()
        except TimeoutError:
            self.failure = BodyTimeout(f"The body was not complete within {self._body_timeout_s:g} s.")
            raise self.failure from None

    @property
    def _reserved_ahead(self) -> bool:
        return self.reservation is not None and self.reservation.covers(self._received + 1)

    @property
    def _late(self) -> float:
        """Return when a declared body will be late if none of it arrives until then, on the loop's clock."""
        pace = self._body_timeout_s * self._received / (self.declared or 1)
        return self.context.arrived + GRACE_S + pace

    async def _watch(self) -> None:
        await self._receive()  # after the whole body, only a disconnect can follow
        self._on_disconnect()
        if not self.started:
            self._work.reschedule(asyncio.get_running_loop().time())

    def _on_disconnect(self) -> None:
        self._complete = True
        self._disconnected.set()
        if not self.started:
            self.status = CLIENT_GONE

    async def _linger(self) -> None:
        """Read and discard the body for linger_s."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._linger_s):
                while not self._complete:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        self._on_disconnect()
                    self._complete = not message.get("more_body", False)


def _address(scope: Scope) -> str:
    """Return the caller that a request without a key counts as; of an IPv6 address only the network, /64.

    One customer usually has a whole /64 (RFC 6177), and could else be as many callers as he likes.
    """
    host = (scope.get("client") or ("unknown",))[0]
    if ":" not in host:
        return f"address:{host}"
    address = IPv6Address(host)
    network = IPv6Network((int(address) >> 64 << 64, 64))
    return f"address:{address.ipv4_mapped or network}"


def _match(pattern: re.Pattern[str], value: str | None) -> str | None:
    return value if value is not None and pattern.fullmatch(value) else None
