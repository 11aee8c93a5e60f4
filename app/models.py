"""The bundles that are served, and how others take their place without a request noticing."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.bundles import CONFIG, locate
from app.catalogue import Entry, parse_models
from app.errors import LeukoError, SettingsError, StartupError, UnknownModel
from app.pipeline import Answer
from app.runner import LOADING, Load, Runner
from app.service import Service, nobody
from app.settings import NONE, Settings
from app.shadow import Shadow
from app.telemetry import Telemetry
from app.threads import in_thread
from app.vision.reference import Reference
from app.watched import WatchedFile

logger = logging.getLogger(__name__)

REREAD_S = 1.0


@dataclass(frozen=True)
class Place:
    """What a runner was made for; bundles of one address but other files are others."""

    entry: Entry
    config_sha256: str | None
    default: bool


class Models:
    """With LEUKO_MODELS the file's, else LEUKO_BUNDLE alone. Shadows answer nobody."""

    def __init__(
        self, settings: Settings, telemetry: Telemetry, load: Load, reference: Reference | None = None
    ) -> None:
        """reference: in place of the default bundle's own. Raises SettingsError."""
        self.stale = False
        self._settings = settings
        self._telemetry = telemetry
        self._load = load
        self._reference = reference
        self._file = None if settings.models == NONE else WatchedFile(Path(settings.models))
        self._entries = (Entry(settings.bundle),) if self._file is None else _read(self._file)
        self._runners: dict[Place, Runner] = {}
        self._before: dict[Place, Runner] = {}  # loaded still, for as long as those after are on probation
        self._shadows: dict[Place, Shadow] = {}
        self._started = False
        self._failures: asyncio.Queue[Exception] = asyncio.Queue()
        self._loaded: set[Runner] = set()  # and not stopped yet
        self._new: list[Runner] = []  # on probation
        self._probation: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._complaint = ""

    @property
    def obstacle(self) -> str | None:
        """Why no work is taken: the default model's, and before all are loaded, any one's."""
        if self._started:
            return self.default.obstacle
        obstacles = [runner.obstacle for runner in self._runners.values() if runner.obstacle]
        return obstacles[0] if obstacles else LOADING

    @property
    def default(self) -> Runner:
        """Raises NotReady before any bundle was found."""
        return self._answering[0]

    @property
    def depth(self) -> int:
        return sum(runner.service.batcher.depth for runner in self._answering) if self._started else 0

    @property
    def capacity(self) -> int:
        return sum(runner.service.batcher.capacity for runner in self._answering)

    def check_room(self) -> None:
        """Raises QueueFull where no model has room; what is for one of several is known later."""
        *others, last = [runner.service.batcher for runner in self._answering]
        if not any(batcher.depth < batcher.capacity for batcher in others):
            last.check_room()

    @contextmanager
    def use(self, name: str | None = None, version: str | None = None) -> Iterator[Service]:
        """None: the default. Raises NotReady, UnknownModel."""
        with self.find(name, version).use() as service:
            yield service

    def find(self, name: str | None = None, version: str | None = None) -> Runner:
        """The first of the name, where no version is given. Raises UnknownModel."""
        if name is None:
            return self.default
        named = [runner for runner in self._answering if runner.bundle.name == name]
        if not named:
            raise UnknownModel("There is no model of this name.")
        found = [runner for runner in named if version in (None, runner.bundle.version)]
        if not found:
            raise UnknownModel(f"The model {name} has no such version.")
        return found[0]

    def versions(self, name: str) -> list[str]:
        return [runner.bundle.version for runner in self._answering if runner.bundle.name == name]

    async def start(self) -> None:
        """Raises what loading raises."""
        self._runners = await self._prepare(self._entries)
        await self._load_all(self._runners, [*self._runners.values()])
        self._started = True
        self._describe()

    async def run(self) -> None:
        """Follows the file. Raises what a model that answers gives up with."""
        while True:
            try:
                async with asyncio.timeout(REREAD_S if self._file is not None else None):
                    raise await self._failures.get()
            except TimeoutError:
                await self._follow()

    async def stop(self) -> None:
        """Finishes what was admitted, for drain_s at most."""
        for task in (*self._retiring, *([self._probation] if self._probation else [])):
            task.cancel()
        await asyncio.gather(*(shadow.stop() for shadow in self._shadows.values()))
        await asyncio.gather(*(runner.stop() for runner in self._loaded))

    @property
    def _answering(self) -> list[Runner]:
        return [runner for place, runner in self._runners.items() if not place.entry.shadow]

    async def _follow(self) -> None:
        assert self._file is not None
        try:
            if not self._file.changed:
                return
            await self._change(_read(self._file))
        except OSError as error:
            self._complain(error.strerror or str(error))
        except Exception as error:  # whatever is wrong with those that are new, those before go on
            self._complain(str(error), None if isinstance(error, LeukoError) else error)
        else:
            self.stale, self._complaint = False, ""

    def _complain(self, what: str, defect: Exception | None = None) -> None:
        if what != self._complaint:
            logger.error("the models stay as they were: %s", what, exc_info=defect)
        self.stale, self._complaint = True, what

    async def _change(self, entries: Sequence[Entry]) -> None:
        if self._probation is not None:
            self._probation.cancel()  # what is served stays the same while something is made of it
        try:
            after = await self._prepare(entries)
            new = [runner for runner in after.values() if runner not in self._loaded]
            await self._load_all(after, new)
        except BaseException:
            self._begin_probation()
            raise
        gone = {*self._before.values()} - {*self._runners.values(), *after.values()}
        self._before, self._runners = self._runners, after
        self._new = [runner for runner in self._answering if runner in new]
        self._retire(gone)
        self._describe()
        self._begin_probation()

    def _begin_probation(self) -> None:
        self._probation = asyncio.create_task(self._prove(), name="probation")

    async def _load_all(self, runners: dict[Place, Runner], new: Sequence[Runner]) -> None:
        try:
            for runner in new:
                self._loaded.add(runner)
                await runner.start()
            _check_names(runners)
        except BaseException:
            for runner in new:
                await self._end(runner)
            raise

    async def _prepare(self, entries: Iterable[Entry]) -> dict[Place, Runner]:
        """Those that are loaded already, and new ones that are not yet."""
        found = {}
        for index, entry in enumerate(entries):
            settings = replace(self._settings, bundle=entry.bundle)
            folder = await in_thread(lambda settings=settings: locate(settings))  # type: ignore[misc]
            place = Place(entry, _config_sha256(folder), default=index == 0)
            runner = self._runners.get(place) or self._before.get(place)
            hear = self._hear if place.default else nobody
            found[place] = runner or Runner(
                replace(settings, bundle=str(folder)), self._telemetry, self._load, self._give_up, hear
            )
        return found

    async def _prove(self) -> None:
        """Those before go once the new ones have held; where one of these falters, those before are back."""
        signs = [asyncio.create_task(runner.faltered.wait()) for runner in self._new]
        try:
            if signs:
                await asyncio.wait(
                    signs, timeout=self._settings.probation_s, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for sign in signs:
                sign.cancel()
        if any(runner.faltered.is_set() for runner in self._new):
            self._complain("the engine of a new one failed, and those before are back")
            self._runners, self._before = self._before, self._runners
            self._describe()
        gone = {*self._before.values()} - {*self._runners.values()}
        self._before, self._new = {}, []
        self._retire(gone)

    def _retire(self, gone: Iterable[Runner]) -> None:
        for runner in gone:
            self._later(self._end(runner))

    async def _end(self, runner: Runner) -> None:
        await runner.retire()
        self._loaded.discard(runner)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="retiring")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _give_up(self, runner: Runner, error: Exception) -> None:
        if runner in self._answering and runner not in self._new:
            self._failures.put_nowait(error)
        else:  # a shadow, or one that others replace: nobody misses it
            logger.error("a model that answers nobody has failed: %s", error)

    def _hear(self, image: bytes, answer: Answer) -> None:
        found = answer.prediction
        self._telemetry.observe_prediction(found.label, found.confidence, found.ood_score, found.review)
        for shadow in self._shadows.values():
            shadow.offer(image, answer)

    def _describe(self) -> None:
        """What is served has changed."""
        for place in self._shadows.keys() - self._runners.keys():
            self._later(self._shadows.pop(place).stop())
        for place, runner in self._runners.items():
            if place.entry.shadow and place not in self._shadows:
                self._shadows[place] = Shadow(runner, place.entry.shadow, self._telemetry, self._is_busy)
        bundles = [runner.bundle for runner in self._answering]
        self._telemetry.describe_models([(one.name, one.version, one.sha256) for one in bundles])
        self._telemetry.describe_reference(self._reference or bundles[0].reference, bundles[0].labels)
        self._telemetry.queue_capacity.set(self.capacity)
        logger.info("serving: %s", ", ".join(f"{one.name} {one.version}" for one in bundles))

    def _is_busy(self) -> bool:
        return any(not runner.service.batcher.idle for runner in self._answering)


def _read(file: WatchedFile) -> tuple[Entry, ...]:
    try:
        return parse_models(file.read())
    except OSError as error:
        raise SettingsError(f"the models in {file.path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the models in {file.path} cannot be used: they are not UTF-8") from None
    except SettingsError as error:
        raise SettingsError(f"the models in {file.path} cannot be used: {error.detail}") from None


def _config_sha256(folder: Path) -> str | None:
    with suppress(OSError):  # loading says what is missing
        return hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    return None


def _check_names(runners: dict[Place, Runner]) -> None:
    answering = [runner.bundle for place, runner in runners.items() if not place.entry.shadow]
    names = [(bundle.name, bundle.version) for bundle in answering]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise StartupError(f"two bundles are called {' '.join(twice[0])}")
