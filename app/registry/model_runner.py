"""One bundle at work: loaded, warm, and loaded again whenever its engine hangs, dies or is wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.engine.bundle import Bundle
from app.engine.classifier import Classifier
from app.errors import BundleError, NotReady, StartupError
from app.inference.decode_pool import prepare
from app.inference.runtime import Runtime
from app.inference.service import OnAnswer, Service, batch_size, ignore_answer
from app.inference.threads import in_thread
from app.settings import Settings

logger = logging.getLogger(__name__)

LOADING = "the model is being loaded"
WARMING = "the engine is warming up"
FAILED = "the model could not be loaded"
RESTARTING = "the engine failed and is being started again"
RESTARTS = 3  # within RESTARTS_S; with one more the runner gives up
RESTARTS_S = 3600.0


class ModelRunner:
    """Keep one bundle loaded and warm; restart its engine when it fails.

    on_engine_failed: called when the engine has failed; returns whether to restart it.
    on_failure: called with the error when the runner gives up.
    on_answer: called with each image and its answer.
    counted: whether its runs and restarts are in the metrics.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        on_engine_failed: Callable[[ModelRunner], bool],
        on_failure: Callable[[ModelRunner, Exception], object],
        on_answer: OnAnswer = ignore_answer,
        counted: bool = True,
    ) -> None:
        self._runtime = runtime
        self._obstacle: str | None = LOADING
        self.on_engine_failed = on_engine_failed
        self.on_failure = on_failure
        self._on_answer = on_answer
        self._counted = counted
        self._service: Service | None = None
        self._suspected = asyncio.Event()
        self._restarts: list[float] = []  # when, on the loop's clock
        self._watching: asyncio.Task[None] | None = None
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def settings(self) -> Settings:
        return self._runtime.settings

    @property
    def obstacle(self) -> str | None:
        """Why it takes no work."""
        if self._obstacle is None and (self._service is None or not self._service.batcher.alive):
            return RESTARTING
        return self._obstacle

    @property
    def failed(self) -> bool:
        """It has given up."""
        return self._obstacle == FAILED

    @property
    def service(self) -> Service:
        """Raises NotReady before it is loaded for the first time."""
        if self._service is None:
            raise NotReady(self._obstacle or LOADING)
        return self._service

    @property
    def bundle(self) -> Bundle:
        return self.service.classifier.bundle

    @contextmanager
    def use(self) -> Iterator[Service]:
        """While it is used it is not retired. Raises NotReady."""
        if self.obstacle is not None:
            raise NotReady(self.obstacle)
        self._users += 1
        self._unused.clear()
        try:
            yield self.service
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def start(self) -> None:
        """Raises what loading raises."""
        service = await self._start()
        self._watching = asyncio.create_task(self._watch(service), name="runner")

    async def retire(self) -> None:
        """Stops once nobody uses it; whoever got hold of it before is answered."""
        await self._unused.wait()
        await self.stop()

    async def stop(self) -> None:
        """Finishes what was admitted, for drain_s at most."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            # Its traceback holds this runner: a circle, which nobody collects after gc.freeze.
            self._watching = None
        if self._service is not None:
            await self._service.stop()

    async def _watch(self, service: Service) -> None:
        try:
            while True:
                await self._failure(service)
                service.decoders.close()
                self._obstacle = RESTARTING
                if not self.on_engine_failed(self):
                    return
                self._count_restart()
                service = await self._start()
        except Exception as error:
            self._obstacle = FAILED
            self.on_failure(self, error)

    async def _start(self) -> Service:
        forking = in_thread(prepare)
        classifier = await in_thread(lambda: self._runtime.load(self.settings))
        self._obstacle = WARMING
        await in_thread(lambda: classifier.warm_up(batch_size(self.settings, classifier)))
        await forking
        if self._service is not None and classifier.bundle.sha256 != self.bundle.sha256:
            raise BundleError(f"{self.settings.bundle} holds another bundle than the one that is served")
        service = await Service.start(
            self._runtime, classifier, self._suspected.set, self._on_answer, counted=self._counted
        )
        self._service = service
        self._obstacle = None
        bundle, engine = classifier.bundle, classifier.engine
        logger.info("ready: %s %s on %s, %s", bundle.name, bundle.version, engine.name, engine.device)
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
        if self._counted:
            self._runtime.telemetry.count_restart()
        if len(self._restarts) > RESTARTS:
            raise StartupError(f"the engine failed {len(self._restarts)} times within {RESTARTS_S:g} s")
