"""The bundles that are served, and how others take their place without a request noticing."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.errors import LeukoError, SettingsError, StartupError
from app.evaluation.answer_profile import AnswerProfile
from app.inference.pipeline import Answer
from app.inference.runtime import Runtime
from app.inference.service import ignore_answer
from app.inference.threads import in_thread
from app.registry.fetch import CONFIG, locate
from app.registry.lineup import Lineup, Place
from app.registry.model_runner import LOADING, ModelRunner
from app.registry.models_file import ModelEntry, parse_models
from app.registry.shadow import Shadow
from app.settings import NONE, Settings
from app.watched_file import WatchedFile

logger = logging.getLogger(__name__)

REREAD_S = 1.0  # between two looks at the models file


class ModelRegistry:
    """With LEUKO_MODELS the file's, else LEUKO_BUNDLE alone. Shadows answer nobody.

    A change is loaded beside what is served, and takes over all at once or not at all. What is served, and
    what may be gone back to, change in `_serve` alone.
    """

    def __init__(self, runtime: Runtime, reference: AnswerProfile | None = None) -> None:
        """reference: in place of the default bundle's own. Raises SettingsError."""
        self.stale = False
        self._runtime = runtime
        self._settings = settings = runtime.settings
        self._telemetry = runtime.telemetry
        self.reread_s = REREAD_S
        self._reference = reference
        self._file = None if settings.models == NONE else WatchedFile(Path(settings.models))
        self._entries = (ModelEntry(settings.bundle),) if self._file is None else _read_first(self._file)
        self.served = Lineup()
        self._before = Lineup()  # what has held; empty, and nobody is on probation
        self._until = 0.0  # the probation's end, on the loop's clock
        self._loaded: set[ModelRunner] = set()  # and not stopped yet
        self._shadows: dict[ModelRunner, Shadow] = {}
        self._failures: asyncio.Queue[tuple[ModelRunner, Exception]] = asyncio.Queue()
        self._ending: set[asyncio.Task[None]] = set()
        self._complaint = ""

    @property
    def obstacle(self) -> str | None:
        """Why no work is taken: the default model's, and before all are loaded, any one's."""
        if self.served.places:
            return self.served.default.obstacle
        return next((runner.obstacle for runner in self._loaded if runner.obstacle), LOADING)

    async def start(self) -> None:
        """Raises what loading raises."""
        await self._change(self._entries)

    async def run(self) -> None:
        """Follows the file. Raises what a model that answers gives up with, while others load too."""
        works = [asyncio.create_task(self._heed(), name="heeding")]
        if self._file is not None:
            works.append(asyncio.create_task(self._follow(), name="following"))
        try:
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            for work in done:
                work.result()
        finally:
            for work in works:
                work.cancel()
            await asyncio.wait(works)

    async def reread(self) -> None:
        """Has what the file lists take over, where it is another file; says what hinders that."""
        assert self._file is not None
        try:
            if not self._file.changed:
                return
            entries = _read(self._file)
        except OSError as error:  # the only one that comes again each second
            if (what := _unreadable(self._file, error)) != self._complaint:
                self._complain(what)
        except SettingsError as error:
            self._complain(error.detail)
        else:
            await self._try(entries)

    async def stop(self) -> None:
        """Finishes what was admitted, for drain_s at most."""
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*(shadow.stop() for shadow in self._shadows.values()))
        await asyncio.gather(*(runner.stop() for runner in self._loaded))

    async def _heed(self) -> None:
        while True:
            runner, error = await self._failures.get()
            if runner in self.served.answering:  # else another has taken its place since
                raise error

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.reread_s)
            await self.reread()
            if self._before.places and asyncio.get_running_loop().time() >= self._until:
                self._serve(self.served, Lineup())

    async def _try(self, entries: Sequence[ModelEntry]) -> None:
        try:
            await self._change(entries)
        except Exception as error:  # whatever is wrong with those that are new, those before go on
            self._complain(str(error), None if isinstance(error, LeukoError) else error)
        else:
            self.stale, self._complaint = False, ""

    def _complain(self, what: str, defect: Exception | None = None) -> None:
        logger.error("the models stay as they were: %s", what, exc_info=defect)
        self.stale, self._complaint = True, what

    async def _change(self, entries: Sequence[ModelEntry]) -> None:
        after = await self._prepare(entries)
        new = [runner for runner in after.runners if runner not in self._loaded]
        try:
            for runner in new:
                self._loaded.add(runner)
                await runner.start()
            after.check_names()
            self._check_sound(after, new)
        except BaseException:
            for runner in new:
                await self._end(runner)
            raise
        held = self._before if self._before.places else self.served
        unproven = {*after.answering} - {*held.runners}
        if unproven - {*self.served.answering}:
            self._until = asyncio.get_running_loop().time() + self._settings.probation_s
        self._serve(after, held if unproven else Lineup())

    async def _prepare(self, entries: Iterable[ModelEntry]) -> Lineup:
        """Those that are loaded already, and new ones that are not yet."""
        places = []
        for index, entry in enumerate(entries):
            settings = replace(self._settings, bundle=entry.bundle)
            folder = await in_thread(lambda settings=settings: locate(settings))  # type: ignore[misc]
            place = Place(entry, _config_sha256(folder), default=index == 0)
            kept = self.served.at(place) or self._before.at(place)
            if kept is None or kept.failed:
                kept = self._runner(place, replace(settings, bundle=str(folder)))
            places.append((place, kept))
        return Lineup(tuple(places))

    def _runner(self, place: Place, settings: Settings) -> ModelRunner:
        return ModelRunner(
            replace(self._runtime, settings=settings),
            on_engine_failed=self._is_kept,
            on_failure=self._give_up,
            on_answer=self._on_answer if place.default else ignore_answer,
            counted=not place.entry.shadow,
        )

    def _check_sound(self, after: Lineup, new: Sequence[ModelRunner]) -> None:
        """Raises StartupError where one of them has failed while another was loaded."""
        kept = {*self.served.runners, *self._before.runners, *new}
        for runner in after.runners:
            if runner.failed or runner not in kept:
                raise StartupError(f"the engine of {runner.bundle.name} {runner.bundle.version} has failed")

    def _serve(self, served: Lineup, before: Lineup) -> None:
        """All that changes what is served, or what may be gone back to; what is neither is ended."""
        gone = {*self.served.runners, *self._before.runners} - {*served.runners, *before.runners}
        others = served is not self.served
        self.served, self._before = served, before
        if others:
            self._describe()
        for runner in gone:
            self._later(self._end(runner))

    def _is_kept(self, failed_runner: ModelRunner) -> bool:
        """False where it was on probation, and those before are back."""
        held = self._before.answering
        on_probation = failed_runner in self.served.answering and failed_runner not in held
        if not held or not on_probation or any(runner.failed for runner in held):
            return True
        self._complain("the engine of a new one failed, and those before are back")
        self._serve(self._before, Lineup())
        return False

    def _give_up(self, runner: ModelRunner, error: Exception) -> None:
        if runner in self.served.answering:
            self._failures.put_nowait((runner, error))
        else:  # a shadow, or one that others replace: nobody misses it
            logger.error("a model that answers nobody has failed: %s", error)

    async def _end(self, runner: ModelRunner) -> None:
        try:
            await runner.retire()
        finally:
            self._loaded.discard(runner)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="ending")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _on_answer(self, image: bytes, answer: Answer) -> None:
        found = answer.prediction
        self._telemetry.observe_prediction(found.label, found.confidence, found.ood_score, found.review)
        for shadow in self._shadows.values():
            shadow.offer(image, answer)

    def _describe(self) -> None:
        """What is served has changed."""
        shares = self.served.shadows
        for runner in self._shadows.keys() - shares.keys():
            self._later(self._shadows.pop(runner).stop())
        for runner in shares.keys() - self._shadows.keys():
            self._shadows[runner] = Shadow(runner, shares[runner], self._telemetry, self._is_busy)
        bundles = [runner.bundle for runner in self.served.answering]
        self._telemetry.describe_models([(one.name, one.version, one.sha256) for one in bundles])
        self._telemetry.describe_reference(self._reference or bundles[0].reference, bundles[0].labels)
        self._telemetry.queue_capacity.set(self.served.capacity)
        logger.info("serving: %s", ", ".join(f"{one.name} {one.version}" for one in bundles))

    def _is_busy(self) -> bool:
        return any(not runner.service.batcher.idle for runner in self.served.answering)


def _read_first(file: WatchedFile) -> tuple[ModelEntry, ...]:
    try:
        return _read(file)
    except OSError as error:
        raise SettingsError(_unreadable(file, error)) from None


def _read(file: WatchedFile) -> tuple[ModelEntry, ...]:
    """Raises SettingsError, OSError."""
    try:
        return parse_models(file.read())
    except UnicodeDecodeError:
        raise SettingsError(f"the models in {file.path} cannot be used: they are not UTF-8") from None
    except SettingsError as error:
        raise SettingsError(f"the models in {file.path} cannot be used: {error.detail}") from None


def _unreadable(file: WatchedFile, error: OSError) -> str:
    return f"the models in {file.path} cannot be read: {error.strerror}"


def _config_sha256(folder: Path) -> str | None:
    with suppress(OSError):  # loading says what is missing
        return hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    return None
