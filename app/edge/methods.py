"""HEAD and OPTIONS, which routes do not have themselves (RFC 9110, 9.3.2 and 9.3.7)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Methods = Callable[[Scope], Collection[str]]  # request → the methods of its path, none without a route


def allowed(methods: Collection[str]) -> str:
    """Return the value of Allow for a path whose routes have these methods."""
    more = {"OPTIONS", *(["HEAD"] if "GET" in methods else [])}
    return ", ".join(sorted({*methods} | more))


class HeadAndOptions:
    """The middleware: HEAD is answered as GET, without the content, OPTIONS by 204 with Allow."""

    def __init__(self, app: ASGIApp, methods: Methods) -> None:
        self.app = app
        self.methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if method in ("HEAD", "OPTIONS") and (methods := self.methods(scope)):
            if method == "OPTIONS":
                await Response(status_code=204, headers={"Allow": allowed(methods)})(scope, receive, send)
                return
            if "GET" in methods:
                scope = {**scope, "method": "GET"}  # the server sends no content: it knows the request's own
        await self.app(scope, receive, send)
