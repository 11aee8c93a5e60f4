"""A route that answers most requests itself, past FastAPI's injection and serialisation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Answer = Callable[[Request], Awaitable[Response]]


def direct_route(answer: Answer) -> type[APIRoute]:
    """Return the class of a route that answers a POST without a query by `answer`.

    All its parameters then have their defaults, so that nothing is to be validated. FastAPI's part would cost
    the event loop as much as all else of a request with one image. `answer` must return what FastAPI would.
    """

    class DirectRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] == "POST" and not scope["query_string"]:
                response = await answer(Request(scope, receive, send))
                await response(scope, receive, send)
            else:
                await super().handle(scope, receive, send)

    return DirectRoute
