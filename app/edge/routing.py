"""Which route a request belongs to, before anything is done for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from fastapi import FastAPI
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import Match
from starlette.types import Scope


@dataclass(frozen=True)
class Matched:
    """The route of a request.

    template: the route's whole path, such as /v1/predict or /problems/{code}; None: no route has the path.
    name: the route in metrics and logs, where /v1/predict is /predict; None for files and without a route.
    takes_body: whether the route reads a body when it is called by this method.
    """

    template: str | None
    name: str | None
    takes_body: bool


FILES = frozenset({"GET", "HEAD"})  # methods of mounted files
NOWHERE = Matched(None, None, False)


class Routes:
    """The routes of an application, asked in its own order and by their own `matches`.

    So authorization and routing cannot read a path differently. The table is made at the first request, or by
    `prepare` before: it takes 30 ms.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def prepare(self) -> None:
        """Make the table. Call when the application has all its routes."""
        self.match({"type": "http", "method": "GET", "path": "/", "headers": []})

    def match(self, scope: Scope) -> Matched:
        """Return the route that the application will choose, also if it does not have the method (405)."""
        other_method: Matched | None = None
        for context, matched in self._routes:
            match, _ = context.matches(scope)
            if match == Match.FULL:
                return matched
            if match == Match.PARTIAL and other_method is None:
                other_method = replace(matched, takes_body=False)
        return other_method or NOWHERE

    def methods(self, scope: Scope) -> set[str]:
        """Return the methods of all routes of the request's path."""
        contexts = [context for context, _ in self._routes if context.matches(scope)[0] != Match.NONE]
        return set().union(*(FILES if context.methods is None else context.methods for context in contexts))

    @cached_property
    def _routes(self) -> list[tuple[RouteContext, Matched]]:
        return list(_describe(self._app))


def _describe(app: FastAPI) -> Iterator[tuple[RouteContext, Matched]]:
    for context in iter_route_contexts(app.routes):
        methods = context.methods  # None: mounted files
        name = None if methods is None else getattr(context.original_route, "path", None)
        yield context, Matched(context.path, name, methods is not None and "POST" in methods)
