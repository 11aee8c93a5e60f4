"""From the start of the process to its end: loading, ready, draining."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar, cast

from app.errors import LeukoError, NotReady
from app.service import Service, batch_size
from app.settings import Settings
from app.telemetry import REFRESH_S, Telemetry
from app.vision.classifier import Classifier, load_classifier

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Load = Callable[[Settings], Classifier]
OnFailure = Callable[[Exception], object]

LOADING = "the model is being loaded"
WARMING = "the engine is warming up"
FAILED = "the model could not be loaded"
DRAINING = "the service is stopping"
BROKEN = "the batcher has died"


def load(settings: Settings) -> Classifier:
    return load_classifier(settings.bundle, settings.engine, settings.threads)


def end_process(_: Exception) -> None:
    """uvicorn closes in good order and then dies of the signal, so with a status that is not 0."""
    signal.raise_signal(signal.SIGTERM)


class Lifecycle:
    """An async context, entered by the application's lifespan; loading goes on behind it."""

    def __init__(self, settings: Settings, telemetry: Telemetry, load: Load, on_failure: OnFailure) -> None:
        self.settings = settings
        self.telemetry = telemetry
        self.obstacle: str | None = LOADING
        self._load = load
        self._on_failure = on_failure
        self._service: Service | None = None
        self._loading: asyncio.Task[None] | None = None
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
        if self._loading is not None:
            await asyncio.wait([self._loading])

    async def __aenter__(self) -> None:
        self._loading = asyncio.create_task(self._start(), name="loading")
        if self.telemetry.shared:
            self._refreshing = asyncio.create_task(self._refresh(), name="refreshing")
        if self.patient:
            await self.settled()

    async def __aexit__(self, *_: object) -> None:
        self.drain()
        for task in (self._loading, self._refreshing):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._service is not None:
            await self._service.stop()

    @property
    def _missing(self) -> str | None:
        if self.obstacle is None and (self._service is None or not self._service.batcher.alive):
            return BROKEN
        return self.obstacle

    async def _start(self) -> None:
        try:
            classifier = await in_daemon_thread(lambda: self._load(self.settings))
            self._advance(WARMING)
            await in_daemon_thread(lambda: classifier.warm_up(batch_size(self.settings, classifier)))
            self._service = await Service.start(self.settings, self.telemetry, classifier)
        except Exception as error:
            self.obstacle = FAILED
            # What is wrong with a bundle or a setting is no defect of the code: no traceback.
            logger.critical("cannot start: %s", error, exc_info=not isinstance(error, LeukoError))
            self._on_failure(error)
        else:
            self._announce(classifier, self._service)

    async def _refresh(self) -> None:
        while True:
            self.telemetry.refresh()
            await asyncio.sleep(REFRESH_S)

    def _announce(self, classifier: Classifier, service: Service) -> None:
        bundle, batcher = classifier.bundle, service.batcher
        self.telemetry.describe_model(name=bundle.name, version=bundle.version, sha256=bundle.sha256)
        self.telemetry.watch(depth=lambda: batcher.depth, capacity=batcher.capacity, ready=lambda: self.ready)
        self._advance(None)
        engine = classifier.engine
        logger.info("ready: %s %s on %s, %s", bundle.name, bundle.version, engine.name, engine.device)

    def _advance(self, obstacle: str | None) -> None:
        # A drain that has begun is final.
        if self.obstacle != DRAINING:
            self.obstacle = obstacle


def in_daemon_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """As asyncio.to_thread, but the end of the process does not wait for it."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: Exception | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(cast(Result, result))
        else:
            outcome.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    Thread(target=run, name="loading", daemon=True).start()
    return outcome
