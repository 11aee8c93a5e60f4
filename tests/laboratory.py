"""An application with several models, whose loading and engines a test can block and break."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI

from app.api.application import create_app
from app.engine.bundle import CLASSES
from app.engine.classifier import Classifier, Prediction
from app.errors import BundleError, EngineError
from app.imaging.framing import Cell
from app.registry.model_runner import ModelRunner
from app.registry.registry import ModelRegistry
from app.settings import Settings
from tests.fake_classifier import png
from tests.fakes import PATIENCE_S, HeldClassifier, caller
from tests.own_labels import FIVE

REREAD_S = 0.02  # between two looks at the models file

IMAGE = {"content-type": "image/png"}


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(test(*arguments, **fixtures))

    return run


class Named(HeldClassifier):
    """Named by its folder: `wbc-2` is version 2 of wbc.

    `turned` has the classes in another order, `own` those of a laboratory.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        name, _, version = Path(folder).name.partition("-")
        labels = {"turned": CLASSES[1:] + CLASSES[:1], "own": FIVE}.get(name, CLASSES)
        self.bundle = replace(self.bundle, name=name, version=version, sha256=folder, labels=labels)

    def classify(self, cells: Sequence[Cell], *, exclusive: bool = True) -> list[Prediction | EngineError]:
        if self.bundle.name == "poor":
            raise RuntimeError("no engine")
        found = super().classify(cells, exclusive=exclusive)
        return [one if isinstance(one, EngineError) else self._renamed(one) for one in found]

    def _renamed(self, answer: Prediction) -> Prediction:
        labels = self.bundle.labels
        label = labels[CLASSES.index(answer.label)]
        others = (0.0,) * (len(labels) - len(CLASSES))
        return replace(answer, label=label, probabilities=(*answer.probabilities, *others))


@dataclass
class Laboratory:
    """An application, its models file, and every classifier that it has loaded."""

    app: FastAPI
    file: Path
    loaded: dict[str, list[Named]] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    faults: dict[str, Exception] = field(default_factory=dict)  # the error that loading a folder raises
    gates: dict[str, threading.Event] = field(
        default_factory=dict
    )  # the event that loading a folder waits for
    replaced: dict[str, str] = field(default_factory=dict)  # new content of a folder
    loading: list[str] = field(default_factory=list)  # the folder of each load that has begun

    def load(self, settings: Settings) -> Classifier:
        folder = settings.bundle
        self.loading.append(folder)
        if folder in self.gates:
            assert self.gates[folder].wait(PATIENCE_S)
        if folder == "broken":
            raise BundleError("model.safetensors was changed")
        if folder in self.faults:
            raise self.faults[folder]
        self.loaded.setdefault(folder, []).append(Named(self.replaced.get(folder, folder)))
        return cast(Classifier, self.loaded[folder][-1])

    @property
    def models(self) -> ModelRegistry:
        models: ModelRegistry = self.app.state.lifecycle.models
        return models

    @contextmanager
    def held(self, folder: str) -> Iterator[None]:
        """Block loading the folder until the context ends."""
        gate = self.gates[folder] = threading.Event()
        try:
            yield
        finally:
            gate.set()

    async def until_loading(self, folder: str) -> None:
        await self.until(lambda: folder in self.loading)

    def write(self, *models: str) -> None:
        """Write the models file. models: folders; `folder*` is a shadow, `folder*0.25` one with a share."""
        tables = []
        for folder, star, share in (one.partition("*") for one in models):
            shadow = share or str(bool(star)).lower()
            tables.append(f'[[models]]\nbundle = "{folder}"\nshadow = {shadow}')
        draft = self.file.with_suffix(".draft")
        draft.write_text("\n".join(tables))
        draft.replace(self.file)

    async def version(self, query: str = "", image: bytes = png(32)) -> str:
        async with caller(self.app) as client:
            answer = await client.post(f"/predict{query}", content=image, headers=IMAGE)
        assert answer.status_code == 200, answer.text
        model = answer.json()["model"]
        return f"{model['name']}-{model['version']}"

    async def metric(self, line: str) -> float:
        async with caller(self.app) as client:
            text = (await client.get("/metrics")).text
        found = [row for row in text.splitlines() if row.startswith(line + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    async def until(self, holds: Callable[[], bool | Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not (await found if inspect.isawaitable(found := holds()) else found):
                await asyncio.sleep(0.01)

    async def until_served(self, version: str) -> None:
        async def holds() -> bool:
            return await self.version() == version

        await self.until(holds)

    async def serve(self, *models: str) -> None:
        """Write the models file, and wait until its first model answers."""
        self.write(*models)
        await self.until_served(models[0])

    async def until_default(self, version: str) -> None:
        """Wait for the default without sending requests: an engine that has just died refuses them."""

        def holds() -> bool:
            bundle = self.models.served.default.bundle
            return f"{bundle.name}-{bundle.version}" == version

        await self.until(holds)
        assert await self.version() == version

    async def until_metric(self, line: str, value: float) -> None:
        async def holds() -> bool:
            return await self.metric(line) == value

        await self.until(holds)


def kill(runner: ModelRunner) -> None:
    """Stop the runner's engine, as if it had died."""
    runner.service.batcher.abandon()


@asynccontextmanager
async def laboratory(folder: Path, *models: str, **settings: Any) -> AsyncIterator[Laboratory]:
    file = folder / "models.toml"
    found = Laboratory(FastAPI(), file)
    found.write(*models)
    chosen: dict[str, Any] = {"max_batch": 4, "decode_workers": 1, "models": str(file)} | settings
    found.app = create_app(Settings(**chosen), found.load, found.failures.append)
    found.models.reread_s = REREAD_S
    async with found.app.router.lifespan_context(found.app):
        await found.app.state.lifecycle.settled()
        yield found
