"""Run one bundle: load it, warm it up, and restart its engine when it hangs, dies or gives wrong results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.engine.bundle import Bundle
from app.engine.classifier import Classifier
from app.errors import BundleError, NotReady, StartupError
from app.inference.fork_server import prepare
from app.inference.runtime import Runtime
from app.inference.service import OnAnswer, Service, batch_size, ignore_answer
from app.inference.threads import in_thread
from app.settings import Settings

logger = logging.getLogger(__name__)

# Obstacles: why a model takes no requests. Clients read them in the detail of a 503.
LOADING = "the model is being loaded"
WARMING = "the engine is warming up"
FAILED = "the model could not be loaded"
RESTARTING = "the engine failed and is restarting"
UNDECODABLE = "no decoder process can be started"
RESTARTS = 3  # allowed within RESTARTS_S; at the next one the runner gives up
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
        self._restarts: list[float] = []  # times on the loop's clock
        self._watch_task: asyncio.Task[None] | None = None
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def settings(self) -> Settings:
        return self._runtime.settings

    @property
    def obstacle(self) -> str | None:
        """Return why the model takes no requests, or None if it takes them."""
        if self._obstacle is not None:
            return self._obstacle
        if self._service is None or not self._service.batcher.alive:
            return RESTARTING
        return UNDECODABLE if self._service.decoders.obstacle is not None else None

    @property
    def failed(self) -> bool:
        """Return whether the runner has given up."""
        return self._obstacle == FAILED

    @property
    def service(self) -> Service:
        """Return the service; raise NotReady before the first load has finished."""
        if self._service is None:
            raise NotReady(self._obstacle or LOADING)
        return self._service

    @property
    def bundle(self) -> Bundle:
        return self.service.classifier.bundle

    @contextmanager
    def use(self) -> Iterator[Service]:
        """Return the service, and delay `retire` while it is used. Raise NotReady."""
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
        """Load the bundle and watch its engine; raise what loading raises."""
        service = await self._start()
        self._watch_task = asyncio.create_task(self._watch(service), name="runner")

    async def retire(self) -> None:
        """Stop after the last `use` has ended, so that requests that began with this model are answered."""
        await self._unused.wait()
        await self.stop()

    async def stop(self) -> None:
        """Finish admitted requests, for drain_s at most, and stop."""
        if self._watch_task is not None:
            self._watch_task.cancel()
            await asyncio.wait([self._watch_task])
            # The task's traceback refers to this runner: a reference cycle, never collected after gc.freeze.
            self._watch_task = None
        if self._service is not None:
            await self._service.stop()

    async def _watch(self, service: Service) -> None:
        try:
            while True:
                await self._wait_for_failure(service)
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
            raise BundleError(f"{self.settings.bundle} holds a different bundle than the one that is served")
        service = await Service.start(
            self._runtime, classifier, self._suspected.set, self._on_answer, counted=self._counted
        )
        self._service = service
        self._obstacle = None
        bundle, engine = classifier.bundle, classifier.engine
        logger.info("ready: %s %s on %s, %s", bundle.name, bundle.version, engine.name, engine.device)
        return service

    async def _wait_for_failure(self, service: Service) -> None:
        """Return once the batcher has died; stop it if the engine no longer gives the known answer."""
        while service.batcher.alive:
            died, suspected = service.batcher.died(), self._suspected.wait()
            events = [asyncio.create_task(event) for event in (died, suspected)]
            try:
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for event in events:
                    event.cancel()
            if self._suspected.is_set() and not await self._gives_known_answer(service.classifier):
                service.batcher.abandon()
                await service.batcher.died()
            self._suspected.clear()

    async def _gives_known_answer(self, classifier: Classifier) -> bool:
        """Return whether the bundle's known answer still comes out; then the images cause the failures."""
        try:
            await asyncio.wait_for(in_thread(classifier.check), self.settings.engine_timeout_s)
        except Exception as error:  # any error means that the known answer was not given
            logger.error("the engine no longer gives the known answer: %r", error)
            return False
        return True

    def _count_restart(self) -> None:
        now = asyncio.get_running_loop().time()
        self._restarts = [when for when in self._restarts if now - when < RESTARTS_S] + [now]
        if self._counted:
            self._runtime.telemetry.count_restart()
        if len(self._restarts) > RESTARTS:
            raise StartupError(f"the engine failed {len(self._restarts)} times within {RESTARTS_S:g} s")
