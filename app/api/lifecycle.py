"""From the start of the process to its end: loading, ready, draining."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from app.edge.keys import Keys
from app.edge.tracing import Tracer
from app.errors import LeukoError, NotReady
from app.inference.runtime import Runtime
from app.inference.service import Service
from app.inference.threads import in_thread
from app.observability.audit import AuditLog
from app.observability.drift import read_reference
from app.observability.metrics import REFRESH_S
from app.registry.model_runner import FAILED, LOADING
from app.registry.registry import ModelRegistry
from app.settings import NONE

logger = logging.getLogger(__name__)

OnFailure = Callable[[Exception], object]

DRAINING = "the service is stopping"
UNAUDITED = "the audit log cannot be written"


def end_process(_: Exception) -> None:
    """uvicorn closes in good order and then dies of the signal, so with a status that is not 0."""
    signal.raise_signal(signal.SIGTERM)


class Lifecycle:
    """An async context, entered by the application's lifespan; loading goes on behind it."""

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
        self._on_failure = on_failure
        self._settled = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self.accept_when_ready = False  # no connection is accepted before everything is loaded

    @property
    def ready(self) -> bool:
        """New traffic is welcome."""
        return self._missing is None

    @property
    def serving(self) -> bool:
        """Work is taken: while draining too, until the server closes, for balancers learn of it late."""
        return self._missing in (None, DRAINING) and self.models.obstacle is None

    @property
    def service(self) -> Service:
        """Of the default model. Raises NotReady."""
        self.check_serving()
        return self.models.served.default.service

    def use(self, name: str | None = None, version: str | None = None) -> AbstractContextManager[Service]:
        """A model that stays while it is used, None for the default. Raises NotReady, UnknownModel."""
        self.check_serving()
        return self.models.served.use(name, version)

    def check_room(self) -> None:
        """Raises QueueFull, NotReady."""
        self.check_serving()
        self.models.served.check_room()

    def check_serving(self) -> None:
        if not self.serving:
            raise NotReady(self._missing or self.models.obstacle or LOADING)

    def check_ready(self) -> None:
        if self._missing is not None:
            raise NotReady(self._missing)

    def drain(self) -> None:
        """Call at SIGTERM, some time before the listeners close: readiness turns, work goes on."""
        self.obstacle = DRAINING

    async def settled(self) -> None:
        """Returns once loading has succeeded or failed."""
        await self._settled.wait()

    async def __aenter__(self) -> None:
        self.telemetry.watch(
            depth=lambda: self.models.served.depth,
            ready=lambda: self.ready,
            keys_stale=lambda: self.keys is not None and self.keys.stale,
            models_stale=lambda: self.models.stale,
            audit_failing=lambda: self.audit is not None and self.audit.failing,
        )
        self._running = asyncio.create_task(self._run(), name="running")
        if self.telemetry.shared:
            self._refreshing = asyncio.create_task(self._refresh(), name="refreshing")
        if self.accept_when_ready:
            await self.settled()

    async def __aexit__(self, *_: object) -> None:
        self.drain()
        for task in (self._running, self._refreshing):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        try:
            await self.models.stop()
        finally:
            if self.audit is not None:
                self.audit.close()
            if self.tracer is not None:
                await in_thread(self.tracer.close)

    @property
    def _missing(self) -> str | None:
        obstacle = self.obstacle or self.models.obstacle
        if obstacle is None and self.audit is not None and self.audit.failing:
            self.audit.retry()
            return UNAUDITED if self.audit.failing else None
        return obstacle

    async def _run(self) -> None:
        try:
            await self.models.start()
            self._settled.set()
            await self.models.run()
        except Exception as error:
            self.obstacle = FAILED
            # What is wrong with a bundle or a setting is no defect of the code: no traceback.
            logger.critical(
                "cannot %s: %s",
                "go on" if self._settled.is_set() else "start",
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
