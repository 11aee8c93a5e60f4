"""The served models, and replacing them at run time without failing a request."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.engine.bundle import CONFIG, FILES
from app.errors import BundleError, LeukoError, SettingsError, StartupError
from app.evaluation.answer_profile import AnswerProfile
from app.inference.pipeline import Result
from app.inference.runtime import Runtime
from app.inference.service import ignore_answer
from app.inference.threads import in_thread
from app.observability.drift import check_labels
from app.registry.fetch import hash_file, locate
from app.registry.https import without_secrets
from app.registry.lineup import Lineup, RunnerKey
from app.registry.model_runner import LOADING, ModelRunner
from app.registry.models_file import ModelEntry, parse_models
from app.registry.shadow import Shadow
from app.regular_file import Refused, open_trusted
from app.settings import NONE, Settings
from app.watched_file import WatchedFile

logger = logging.getLogger(__name__)

REREAD_S = 1.0  # between two checks of the models file
PATIENCE_S = 30.0  # for the disk of a bundle to respond


class ModelRegistry:
    """Serve the models of the LEUKO_MODELS file, or of LEUKO_BUNDLE if there is no file.

    When the file changes, its new models are loaded beside the served ones; then the new lineup replaces the
    served one as a whole, or, after any error, not at all.

    Rollback window: for LEUKO_PROBATION_S after new models are first served, the previous lineup stays
    loaded. If the engine of a new model fails within that time, the previous lineup is served again at once.

    Only `_serve` changes the served and the previous lineup. stale: the file does not list what is served.
    """

    def __init__(self, runtime: Runtime, reference: AnswerProfile | None = None) -> None:
        """reference: replaces the default bundle's own answer profile. Raise SettingsError."""
        self.stale = False
        self._runtime = runtime
        self._settings = settings = runtime.settings
        self._telemetry = runtime.telemetry
        self.reread_s = REREAD_S
        self.patience_s = PATIENCE_S
        self._reference = reference
        self._file = None if settings.models == NONE else WatchedFile(Path(settings.models))
        self._entries = (ModelEntry(settings.bundle),) if self._file is None else _read_first(self._file)
        self.served = Lineup()
        self._previous = Lineup()  # what a rollback restores; empty outside the rollback window
        self._rollback_until = 0.0  # end of the rollback window, on the loop's clock
        self._loaded: set[ModelRunner] = set()  # started, or starting, and not stopped yet
        self._shadows: dict[ModelRunner, Shadow] = {}
        # Runners that gave up while they were served, with their errors; `run` raises them.
        self._failures: asyncio.Queue[tuple[ModelRunner, Exception]] = asyncio.Queue()
        # Tasks that stop runners and shadows; the event loop itself keeps only weak references.
        self._background: set[asyncio.Task[None]] = set()
        self._last_error = ""  # last reason logged, so that an unreadable file is logged once

    @property
    def obstacle(self) -> str | None:
        """Return the default model's obstacle, or during the first load any model's; None: no obstacle."""
        if self.served.members:
            return self.served.default.obstacle
        return next((runner.obstacle for runner in self._loaded if runner.obstacle), LOADING)

    async def start(self) -> None:
        """Load and serve the first lineup; raise what loading raises."""
        await self._switch_to(self._entries)

    async def run(self) -> None:
        """Follow the models file; raise the error of a live model that gives up, also while new ones load."""
        tasks = [asyncio.create_task(self._raise_failures(), name="model failures")]
        if self._file is not None:
            tasks.append(asyncio.create_task(self._follow_file(), name="models file"))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def reread(self) -> None:
        """If the file has changed, serve its models; if that fails, log why and set `stale`."""
        assert self._file is not None
        try:
            if not self._file.changed:
                return
            entries = _read(self._file)
        except OSError as error:  # the only error that repeats at every check
            if (reason := _unreadable(self._file, error)) != self._last_error:
                self._reject(reason)
        except SettingsError as error:
            self._reject(error.detail)
        else:
            await self._try(entries)

    async def stop(self) -> None:
        """Finish admitted requests, for drain_s at most, and stop all models."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*(shadow.stop() for shadow in self._shadows.values()))
        await asyncio.gather(*(runner.stop() for runner in self._loaded))

    async def _raise_failures(self) -> None:
        while True:
            runner, error = await self._failures.get()
            if runner in self.served.live:  # else it was replaced in the meantime
                raise error

    async def _follow_file(self) -> None:
        while True:
            await asyncio.sleep(self.reread_s)
            await self.reread()
            if self._previous.members and asyncio.get_running_loop().time() >= self._rollback_until:
                self._serve(self.served, Lineup())

    async def _try(self, entries: Sequence[ModelEntry]) -> None:
        try:
            await self._switch_to(entries)
        except Exception as error:  # no error of a new model may end the service
            self._reject(str(error), None if isinstance(error, LeukoError) else error)
        else:
            self.stale, self._last_error = False, ""

    def _reject(self, reason: str, defect: Exception | None = None) -> None:
        logger.error("models file rejected; keeping the current models: %s", reason, exc_info=defect)
        self.stale, self._last_error = True, reason

    async def _switch_to(self, entries: Sequence[ModelEntry]) -> None:
        """Load the entries' new models and serve all; if anything fails, raise and change nothing."""
        lineup = await self._prepare(entries)
        new = [runner for runner in lineup.runners if runner not in self._loaded]
        try:
            for runner in new:
                self._loaded.add(runner)
                await runner.start()
            lineup.check_names()
            self._check_usable(lineup, new)
            if self._reference is not None:
                check_labels(self._reference, lineup.default.bundle.labels)
        except BaseException:
            for runner in new:
                await self._retire(runner)
            raise
        # A rollback restores the last lineup that outlasted its window, not one that is itself unproven.
        proven = self._previous if self._previous.members else self.served
        unproven = {*lineup.live} - {*proven.runners}
        if unproven - {*self.served.live}:
            self._rollback_until = asyncio.get_running_loop().time() + self._settings.probation_s
        self._serve(lineup, proven if unproven else Lineup())

    async def _prepare(self, entries: Iterable[ModelEntry]) -> Lineup:
        """Return the lineup of the entries, with loaded runners reused and new ones not started."""
        members = []
        for index, entry in enumerate(entries):
            settings = replace(self._settings, bundle=entry.bundle)
            folder, sha256 = await self._find(settings)
            key = RunnerKey(entry, sha256, default=index == 0)
            runner = self.served.get(key) or self._previous.get(key)
            if runner is None or runner.failed:
                runner = self._new_runner(key, replace(settings, bundle=str(folder)))
            members.append((key, runner))
        return Lineup(tuple(members))

    async def _find(self, settings: Settings) -> tuple[Path, str | None]:
        """Return the bundle's folder and the sha256 of its config.json. Raise BundleError.

        The disk may never respond: its thread is then abandoned.
        """
        remote = "://" in settings.bundle  # a download has time limits of its own
        try:
            async with asyncio.timeout(None if remote else self.patience_s):
                folder = await in_thread(lambda: locate(settings))
            async with asyncio.timeout(self.patience_s):
                return folder, await in_thread(lambda: _config_sha256(folder))
        except TimeoutError:
            shown = without_secrets(settings.bundle)
            raise BundleError(f"{shown} cannot be read: no response after {self.patience_s:g} s") from None

    def _new_runner(self, key: RunnerKey, settings: Settings) -> ModelRunner:
        return ModelRunner(
            replace(self._runtime, settings=settings),
            on_engine_failed=self._restart_or_roll_back,
            on_failure=self._report_failure,
            on_answer=self._on_answer if key.default else ignore_answer,
            counted=not key.entry.shadow,
        )

    def _check_usable(self, lineup: Lineup, new: Sequence[ModelRunner]) -> None:
        """Raise StartupError if a runner failed, or was retired, while others were loading."""
        usable = {*self.served.runners, *self._previous.runners, *new}
        for runner in lineup.runners:
            if runner.failed or runner not in usable:
                raise StartupError(f"the engine of {runner.bundle.name} {runner.bundle.version} has failed")

    def _serve(self, served: Lineup, previous: Lineup) -> None:
        """Set the served and the previous lineup, and retire the runners that are in neither."""
        unused = {*self.served.runners, *self._previous.runners} - {*served.runners, *previous.runners}
        changed = served is not self.served
        self.served, self._previous = served, previous
        if changed:
            self._on_lineup_change()
        for runner in unused:
            self._in_background(self._retire(runner))

    def _restart_or_roll_back(self, failed_runner: ModelRunner) -> bool:
        """Return whether to restart a failed engine; if its model is new, roll back and return False."""
        previous = self._previous.live
        is_new = failed_runner in self.served.live and failed_runner not in previous
        if not previous or not is_new or any(runner.failed for runner in previous):
            return True
        bundle = failed_runner.bundle
        message = f"rolled back to the previous models: the engine of {bundle.name} {bundle.version} failed"
        logger.error(message)
        self.stale, self._last_error = True, message
        self._serve(self._previous, Lineup())
        return False

    def _report_failure(self, runner: ModelRunner, error: Exception) -> None:
        if runner in self.served.live:
            self._failures.put_nowait((runner, error))
        else:  # no request needs it
            logger.error("shadow or retired model failed: %s", error)

    async def _retire(self, runner: ModelRunner) -> None:
        try:
            await runner.retire()
        finally:
            self._loaded.discard(runner)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="retiring")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _on_answer(self, image: bytes, answer: Result) -> None:
        for cell in answer.cells:
            prediction = cell.prediction
            self._telemetry.observe_prediction(
                prediction.label, prediction.confidence, prediction.ood_score, prediction.review_reasons
            )
        for shadow in self._shadows.values():
            shadow.offer(image, answer)

    def _on_lineup_change(self) -> None:
        """Start and stop shadows, set the metrics, and log what is served."""
        shares = self.served.shadows
        for runner in self._shadows.keys() - shares.keys():
            self._in_background(self._shadows.pop(runner).stop())
        for runner in shares.keys() - self._shadows.keys():
            self._shadows[runner] = Shadow(runner, shares[runner], self._telemetry, self._is_busy)
        bundles = [runner.bundle for runner in self.served.live]
        self._telemetry.describe_models(
            [(one.name, one.version, one.sha256, one.site.name if one.site else "") for one in bundles]
        )
        self._telemetry.describe_reference(self._reference or bundles[0].reference, bundles[0].labels)
        self._telemetry.queue_capacity.set(self.served.capacity)
        logger.info("serving: %s", ", ".join(f"{bundle.name} {bundle.version}" for bundle in bundles))

    def _is_busy(self) -> bool:
        return any(not runner.service.batcher.idle for runner in self.served.live)


def _read_first(file: WatchedFile) -> tuple[ModelEntry, ...]:
    try:
        return _read(file)
    except OSError as error:
        raise SettingsError(_unreadable(file, error)) from None


def _read(file: WatchedFile) -> tuple[ModelEntry, ...]:
    """Raise SettingsError or OSError."""
    try:
        return parse_models(file.read())
    except UnicodeDecodeError:
        raise SettingsError(f"models file {file.path}: not UTF-8") from None
    except SettingsError as error:
        raise SettingsError(f"models file {file.path}: {error.detail}") from None


def _unreadable(file: WatchedFile, error: OSError) -> str:
    return f"models file {file.path} cannot be read: {error.strerror}"


def _config_sha256(folder: Path) -> str | None:
    """Return None if the file cannot be read: loading the bundle then raises the error.

    Raise BundleError for files that are not regular: reading a FIFO never ends.
    """
    try:
        for name in FILES:
            with suppress(FileNotFoundError):
                os.close(open_trusted(folder / name))
        return hash_file(folder / CONFIG)
    except Refused as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from None
    except OSError:
        return None
