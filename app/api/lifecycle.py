"""The lifecycle of the application: loading, ready, draining, stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from app.edge.keys import REREAD_S, Keys
from app.edge.request_log import RequestLog
from app.edge.tracing import Tracer
from app.errors import LeukoError, NotReady
from app.inference.fair_queue import Caller
from app.inference.runtime import Runtime
from app.inference.service import Service
from app.inference.threads import in_thread
from app.observability.audit import AuditLog
from app.observability.drift import read_reference
from app.observability.metrics import REFRESH_S
from app.observability.request_context import RequestContext
from app.registry.model_runner import FAILED, LOADING
from app.registry.registry import ModelRegistry
from app.settings import NONE

logger = logging.getLogger(__name__)

OnFailure = Callable[[Exception], object]

DRAINING = "the service is stopping"
UNAUDITED = "the audit log cannot be written"


def end_process(_: Exception) -> None:
    """Send SIGTERM to this process: uvicorn shuts down and raises it again, so the status is not 0."""
    signal.raise_signal(signal.SIGTERM)


class Lifecycle:
    """The async context of the application's lifespan; loading runs in the background.

    obstacle: why the service is not ready, besides the models' own obstacle.
    """

    def __init__(
        self,
        runtime: Runtime,
        on_failure: OnFailure,
        tracer: Tracer | None = None,
    ) -> None:
        self.settings = settings = runtime.settings
        self.telemetry = runtime.telemetry
        self.keys = None if settings.keys == NONE else Keys(Path(settings.keys))
        self.audit = None if settings.audit == NONE else AuditLog(Path(settings.audit))
        reference = None if settings.reference == NONE else read_reference(Path(settings.reference))
        self.models = ModelRegistry(runtime, reference)
        self.obstacle: str | None = None
        self.tracer = tracer
        self.request_log = RequestLog(self.telemetry, self.audit, tracer, keyed=self.keys is not None)
        self._on_failure = on_failure
        self._settled = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._watching_keys: asyncio.Task[None] | None = None
        self.accept_when_ready = False  # delay the lifespan, and so all connections, until loading has ended

    @property
    def ready(self) -> bool:
        """Return whether load balancers may send new requests."""
        return self._unready_reason is None

    @property
    def serving(self) -> bool:
        """Return whether work is accepted; also while draining, since load balancers notice it late."""
        return self._unready_reason in (None, DRAINING) and self.models.obstacle is None

    @property
    def service(self) -> Service:
        """Return the service of the default model. Raise NotReady."""
        self.check_serving()
        return self.models.served.default.service

    def use(self, name: str | None = None, version: str | None = None) -> AbstractContextManager[Service]:
        """Keep a model loaded during the context; None: the default. Raise NotReady or UnknownModel."""
        self.check_serving()
        return self.models.served.use(name, version)

    def check_room(self, context: RequestContext) -> None:
        """Raise QueueFull if no model's queue has room for the caller, NotReady if no work is accepted."""
        self.check_serving()
        self.models.served.check_room(Caller.of(context))

    def check_serving(self) -> None:
        """Raise NotReady if no work is accepted."""
        if not self.serving:
            raise NotReady(self._unready_reason or self.models.obstacle or LOADING)

    def check_ready(self) -> None:
        """Raise NotReady, with the reason, if the service is not ready."""
        if (reason := self._unready_reason) is not None:
            raise NotReady(reason)

    def drain(self) -> None:
        """Become not ready, but continue to accept work. Call at SIGTERM, before the listeners close."""
        self.obstacle = DRAINING

    async def settled(self) -> None:
        """Wait until loading has succeeded or failed."""
        await self._settled.wait()

    async def __aenter__(self) -> None:
        self.telemetry.watch(
            depth=lambda: self.models.served.depth,
            callers=lambda: self.models.served.callers,
            ready=lambda: self.ready,
            keys_stale=lambda: self.keys is not None and self.keys.stale,
            models_stale=lambda: self.models.stale,
            audit_failing=lambda: self.audit is not None and self.audit.failing,
        )
        self._running = asyncio.create_task(self._run(), name="running")
        if self.telemetry.shared:
            self._refreshing = asyncio.create_task(self._refresh(), name="refreshing")
        if self.keys is not None:
            self._watching_keys = asyncio.create_task(_watch(self.keys), name="watching keys")
        if self.accept_when_ready:
            await self.settled()

    async def __aexit__(self, *_: object) -> None:
        self.drain()
        for task in (self._running, self._refreshing, self._watching_keys):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        try:
            await self.models.stop()
        finally:
            self.request_log.flush()
            if self.audit is not None:
                await in_thread(self.audit.close)
            if self.tracer is not None:
                await in_thread(self.tracer.close)

    @property
    def _unready_reason(self) -> str | None:
        obstacle = self.obstacle or self.models.obstacle
        if obstacle is None and self.audit is not None and self.audit.failing:
            return UNAUDITED
        return obstacle

    async def _run(self) -> None:
        try:
            await self.models.start()
            self._settled.set()
            await self.models.run()
        except Exception as error:
            self.obstacle = FAILED
            # No traceback for a LeukoError: a wrong bundle or setting is not a defect of the code.
            logger.critical(
                "cannot %s: %s",
                "continue" if self._settled.is_set() else "start",
                error,
                exc_info=not isinstance(error, LeukoError),
            )
            self._on_failure(error)
        finally:
            self._settled.set()

    async def _refresh(self) -> None:
        while True:
            self.telemetry.refresh()
            await asyncio.sleep(REFRESH_S)


async def _watch(keys: Keys) -> None:
    """Reread the key file in time also while no request asks for a key."""
    while True:
        keys.check()
        await asyncio.sleep(REREAD_S)
