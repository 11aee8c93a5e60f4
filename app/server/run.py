"""uvicorn with a graceful shutdown: first not ready, then no new connections, then exit."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Protocol, cast

import uvicorn
from starlette.types import ASGIApp

from app.api import problem_responses
from app.api.application import create_app
from app.edge.connection import Connection, ConnectionLimits
from app.edge.descriptors import most_connections, raise_file_limit
from app.inference.runtime import Load
from app.inference.service import Service
from app.observability.metrics import Telemetry
from app.printable import printable
from app.private import release_memory
from app.server.listener import BACKLOG
from app.server.signals import insists, stopping
from app.settings import Settings

logger = logging.getLogger(__name__)

GRACE_S = 1.0  # time between not ready and no new connections
KEEP_ALIVE_S = 65  # longer than a load balancer's usual 60, which would else reuse closed connections


@dataclass(frozen=True)
class Launch:
    """What each process is started with; pickled for the processes of a supervisor.

    load: loads the classifier from a bundle; tests replace it with a fake.
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
        # Exclude what is loaded by now from garbage collection, whose pauses would delay requests.
        gc.collect()
        release_memory()
        gc.freeze()
        on_ready(lifecycle.service)

    server = Server(
        configure(app, settings, connection_factory(settings, lifecycle.telemetry)),
        lifecycle,
        grace_s=GRACE_S,
        failed=lambda: bool(failures),
        on_ready=ready,
    )
    server.run([launch.listener])
    return 1 if failures else 0


def connection_factory(settings: Settings, telemetry: Telemetry) -> Callable[..., Connection]:
    limits = ConnectionLimits(
        connections=most_connections(settings.max_connections),
        head_s=settings.head_timeout_s,
        stall_s=settings.stall_timeout_s,
        problem=problem_responses.render,
        observe=lambda status: telemetry.observe_request(None, "other", status, 0),
    )
    return partial(Connection, limits=limits)


def configure(app: ASGIApp, settings: Settings, http: Callable[..., Connection]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=cast(type[Connection], http),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # a warning per invalid request would let any client fill the log
        access_log=False,  # it would contain query strings; `app.edge.request_log` logs requests
        server_header=False,
        proxy_headers=False,  # any client could choose the address that it counts as without a key
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_s),
    )


def announce(service: Service, address: str) -> None:
    """Announce one process that is ready."""
    bundle, engine = service.classifier.bundle, service.classifier.engine
    print_address(f"{bundle.name} {bundle.version} on {engine.name} ({engine.device})", address)


def print_address(summary: str, address: str) -> None:
    """Print what is served, and where, to a terminal; without one, log the address."""
    if sys.stdout.isatty():
        hints = f"Try it: {address}  API: {address}/docs  Stop: Ctrl-C"
        print(f"Leuko serves {printable(summary)} at {address}\n{hints}", flush=True)
    else:
        logger.info("serving at %s", address)


class Readiness(Protocol):
    """What `Server` uses of the application's lifecycle."""

    @property
    def ready(self) -> bool: ...

    def drain(self) -> None: ...


class Server(uvicorn.Server):
    """uvicorn's server. The first signal that stops it drains for grace_s; a second exits at once.

    uvicorn alone would close its listeners while a load balancer still sends requests, and would raise
    the signal again at the end. A signal before the application is ready exits at once with status 0.

    failed: whether the application has failed. on_ready: called once. end: ends the process; a fake in tests.
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

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle more signals than uvicorn does."""
        with stopping(self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's signature)
        if self._signalled:
            if insists(sig):
                self._end(128 + sig)
        elif not self._was_ready:
            self._end(0)  # do not wait: the thread that loads the weights cannot be stopped
        self._signalled = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        # What a client has not read by now is lost. uvloop closes a transport that still has bytes with a
        # warning; as an error, that would keep the loop, and so the process, from ending.
        for connection in list(self.server_state.connections):
            cast(Connection, connection).transport.abort()
        await asyncio.sleep(0)  # each connection is lost in the next turn

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
