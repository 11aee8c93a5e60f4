"""uvicorn with an orderly end: not ready first, then no new connections, then no process."""

from __future__ import annotations

import gc
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Protocol, cast

import uvicorn
from starlette.types import ASGIApp

from app.api import problem_responses
from app.api.application import create_app
from app.edge.connection import Bounds, Connection
from app.edge.descriptors import most_connections, raise_file_limit
from app.inference.runtime import Load
from app.inference.service import Service
from app.observability.metrics import Telemetry
from app.settings import Settings

logger = logging.getLogger(__name__)

GRACE_S = 1.0  # between not ready and no new connections
BACKLOG = 2048  # connections not accepted yet
KEEP_ALIVE_S = 65  # longer than a load balancer's usual 60, or it would meet closed connections


@dataclass(frozen=True)
class Launch:
    """What each process of a service is started with; pickled for all but the first.

    load: how a bundle becomes a classifier; tests put a fake in its place.
    """

    settings: Settings
    load: Load
    listener: socket.socket


def run(launch: Launch, on_ready: Callable[[Service], object], *, accept_when_ready: bool = False) -> int:
    """Serve until a signal, then return 0; return 1 if the application fails.

    accept_when_ready: accept no connection before the application is ready.
    """
    raise_file_limit()
    failures: list[Exception] = []
    settings = launch.settings
    app = create_app(settings, launch.load, on_failure=failures.append)
    lifecycle = app.state.lifecycle
    lifecycle.accept_when_ready = accept_when_ready

    def ready() -> None:
        # What is loaded by now stays: going through it all, again and again, would hold up requests.
        gc.collect()
        gc.freeze()
        on_ready(lifecycle.service)

    server = Server(
        configure(app, settings, connections(settings, lifecycle.telemetry)),
        lifecycle,
        grace_s=GRACE_S,
        failed=lambda: bool(failures),
        on_ready=ready,
    )
    server.run([launch.listener])
    return 1 if failures else 0


def connections(settings: Settings, telemetry: Telemetry) -> Callable[..., Connection]:
    bounds = Bounds(
        connections=most_connections(settings.max_connections),
        head_s=settings.head_timeout_s,
        stall_s=settings.stall_timeout_s,
        problem=problem_responses.answer,
        observe=lambda status: telemetry.observe_request(None, "other", status, 0),
    )
    return partial(Connection, bounds=bounds)


def configure(app: ASGIApp, settings: Settings, http: Callable[..., Connection]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=cast(type[Connection], http),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # it warns of bytes that are no HTTP, with which anybody could fill the log
        access_log=False,  # it would hold queries; `app.observability.metrics` counts requests
        server_header=False,
        proxy_headers=False,  # nothing here depends on who asks
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )


def announce(service: Service, address: str) -> None:
    bundle, engine = service.classifier.bundle, service.classifier.engine
    say(f"{bundle.name} {bundle.version} on {engine.name} ({engine.device})", address)


def say(what: str, address: str) -> None:
    if sys.stdout.isatty():
        hints = f"Try it: {address}  API: {address}/docs  Stop: Ctrl-C"
        print(f"Leuko serves {what} at {address}\n{hints}", flush=True)
    else:
        logger.info("serving at %s", address)


class Readiness(Protocol):
    """What the server has to know of the application's lifecycle."""

    @property
    def ready(self) -> bool: ...

    def drain(self) -> None: ...


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT drains for `grace_s`, then stops; a second ends the process at once.

    uvicorn itself would close its listeners while a load balancer still sends requests, and would
    die of the signal once done. Before the application was ready there is nothing to wait for.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        readiness: Readiness,
        *,
        grace_s: float,
        failed: Callable[[], bool],
        on_ready: Callable[[], None],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__(config)
        self._readiness = readiness
        self._grace_s = grace_s
        self._failed = failed
        self._on_ready = on_ready
        self._end = end
        self._was_ready = False
        self._signalled = False
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's)
        if self._signalled:
            self._end(128 + sig)
        elif not self._was_ready:
            self._end(0)  # a thread that is loading weights cannot be stopped
        self._signalled = True

    async def on_tick(self, counter: int) -> bool:
        if not self._was_ready and self._readiness.ready:
            self._was_ready = True
            self._on_ready()
        if self._signalled and self._stop_at is None:
            self._stop_at = time.monotonic() + self._grace_s
            self._readiness.drain()
        if self._failed() or (self._stop_at is not None and time.monotonic() >= self._stop_at):
            self.should_exit = True
        return await super().on_tick(counter)
