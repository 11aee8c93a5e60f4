"""From the start of the process to its end: loading, ready, draining."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from app.audit import Audit
from app.decoders import prepare
from app.drift import read_reference
from app.errors import LeukoError, NotReady, StartupError
from app.keys import Keys
from app.service import Service, batch_size
from app.settings import NONE, Settings
from app.telemetry import REFRESH_S, Telemetry
from app.threads import in_thread
from app.tracing import Tracer
from app.vision.classifier import Classifier

logger = logging.getLogger(__name__)

Load = Callable[[Settings], Classifier]
OnFailure = Callable[[Exception], object]

LOADING = "the model is being loaded"
WARMING = "the engine is warming up"
FAILED = "the model could not be loaded"
DRAINING = "the service is stopping"
RESTARTING = "the engine failed and is being started again"
UNAUDITED = "the audit log cannot be written"
RESTARTS = 3  # within RESTARTS_S; with one more the process gives up
RESTARTS_S = 3600.0


def end_process(_: Exception) -> None:
    """uvicorn closes in good order and then dies of the signal, so with a status that is not 0."""
    signal.raise_signal(signal.SIGTERM)


class Lifecycle:
    """An async context, entered by the application's lifespan; loading goes on behind it."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        load: Load,
        on_failure: OnFailure,
        tracer: Tracer | None = None,
    ) -> None:
        self.settings = settings
        self.telemetry = telemetry
        self.keys = None if settings.keys == NONE else Keys(Path(settings.keys))
        self.audit = None if settings.audit == NONE else Audit(Path(settings.audit))
        self._reference = None if settings.reference == NONE else read_reference(Path(settings.reference))
        self.obstacle: str | None = LOADING
        self.tracer = tracer
        self._load = load
        self._on_failure = on_failure
        self._service: Service | None = None
        self._settled = asyncio.Event()
        self._suspected = asyncio.Event()
        self._restarts: list[float] = []  # when, on the loop's clock
        self._running: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self.patient = False  # no connection is accepted before everything is loaded

    @property
    def ready(self) -> bool:
        """New traffic is welcome."""
        return self._missing is None

    @property
    def serving(self) -> bool:
        """Work is taken: while draining too, until the server closes, for balancers learn of it late."""
        return self._missing in (None, DRAINING) and self._service is not None

    @property
    def service(self) -> Service:
        """Raises NotReady."""
        if not self.serving or self._service is None:
            raise NotReady(self._missing or LOADING)
        return self._service

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
        self._running = asyncio.create_task(self._run(), name="running")
        if self.telemetry.shared:
            self._refreshing = asyncio.create_task(self._refresh(), name="refreshing")
        if self.patient:
            await self.settled()

    async def __aexit__(self, *_: object) -> None:
        self.drain()
        for task in (self._running, self._refreshing):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._service is not None:
            await self._service.stop()
        if self.audit is not None:
            self.audit.close()
        if self.tracer is not None:
            await in_thread(self.tracer.close)

    @property
    def _missing(self) -> str | None:
        if self.obstacle is None and (self._service is None or not self._service.batcher.alive):
            return RESTARTING
        if self.obstacle is None and self.audit is not None and self.audit.failing:
            self.audit.retry()
            return UNAUDITED if self.audit.failing else None
        return self.obstacle

    async def _run(self) -> None:
        """Loads, and loads again whenever the engine hangs, dies or is caught being wrong."""
        try:
            service = await self._start()
            while True:
                await self._failure(service)
                service.decoders.close()
                self._advance(RESTARTING)
                self._count_restart()
                service = await self._start()
        except Exception as error:
            self.obstacle = FAILED
            # What is wrong with a bundle or a setting is no defect of the code: no traceback.
            logger.critical(
                "cannot %s: %s",
                "go on" if self._restarts else "start",
                error,
                exc_info=not isinstance(error, LeukoError),
            )
            self._on_failure(error)
        finally:
            self._settled.set()

    async def _start(self) -> Service:
        forking = in_thread(prepare)
        classifier = await in_thread(lambda: self._load(self.settings))
        self._advance(WARMING)
        await in_thread(lambda: classifier.warm_up(batch_size(self.settings, classifier)))
        await forking
        service = await Service.start(self.settings, self.telemetry, classifier, self._suspected.set)
        self._service = service
        self._announce(classifier, service)
        self._settled.set()
        return service

    async def _failure(self, service: Service) -> None:
        """Returns once the service is of no use any more."""
        while service.batcher.alive:
            signs = [asyncio.create_task(sign) for sign in (service.batcher.died(), self._suspected.wait())]
            try:
                await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for sign in signs:
                    sign.cancel()
            if self._suspected.is_set() and not await self._is_right(service.classifier):
                service.batcher.abandon()
                await service.batcher.died()
            self._suspected.clear()

    async def _is_right(self, classifier: Classifier) -> bool:
        """Still gives the bundle's known answer: then it is the images that are to blame."""
        try:
            await asyncio.wait_for(in_thread(classifier.check), self.settings.engine_timeout_s)
        except Exception as error:  # whatever it is, it is not the known answer
            logger.error("the engine does not give the known answer any more: %r", error)
            return False
        return True

    def _count_restart(self) -> None:
        now = asyncio.get_running_loop().time()
        self._restarts = [when for when in self._restarts if now - when < RESTARTS_S] + [now]
        self.telemetry.count_restart()
        if len(self._restarts) > RESTARTS:
            raise StartupError(f"the engine failed {len(self._restarts)} times within {RESTARTS_S:g} s")

    async def _refresh(self) -> None:
        while True:
            self.telemetry.refresh()
            await asyncio.sleep(REFRESH_S)

    def _announce(self, classifier: Classifier, service: Service) -> None:
        bundle, batcher = classifier.bundle, service.batcher
        self.telemetry.describe_model(name=bundle.name, version=bundle.version, sha256=bundle.sha256)
        if (reference := self._reference or bundle.reference) is not None:
            self.telemetry.describe_reference(reference)
        self.telemetry.watch(
            depth=lambda: batcher.depth,
            capacity=batcher.capacity,
            ready=lambda: self.ready,
            keys_stale=lambda: self.keys is not None and self.keys.stale,
            audit_failing=lambda: self.audit is not None and self.audit.failing,
        )
        self._advance(None)
        engine = classifier.engine
        logger.info("ready: %s %s on %s, %s", bundle.name, bundle.version, engine.name, engine.device)

    def _advance(self, obstacle: str | None) -> None:
        # A drain that has begun is final.
        if self.obstacle != DRAINING:
            self.obstacle = obstacle
