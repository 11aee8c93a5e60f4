"""The whole application around a classifier that a test can hold, break and look into."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any, cast
from zipfile import ZipFile

import httpx
import numpy as np
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.api.application import create_app
from app.engine.classifier import Classifier, Prediction
from app.errors import EngineError
from app.imaging.framing import Cell
from app.settings import Settings
from tests.fake_classifier import FakeClassifier, png

PATIENCE_S = 60
LOCAL = "http://localhost"  # without keys, the service answers under no other name
GREYS = (32, 96, 160, 224)  # one of each class, in the order of the labels
POISON = 3  # the grey at which the engine raises
CUT = png(32)[:50]  # an image that cannot be decoded


class HeldClassifier(FakeClassifier):
    """`hold` stops the engine at its next batch; `busy` returns when a batch has reached it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self._busy = threading.Semaphore(0)
        self._go = threading.Event()
        self._go.set()

    def classify(self, cells: Sequence[Cell], *, exclusive: bool = True) -> list[Prediction | EngineError]:
        self.batches.append(len(cells))
        self._busy.release()
        assert self._go.wait(PATIENCE_S)
        if any(np.median(cell.pixels) == POISON for cell in cells):
            raise RuntimeError("poison")
        found = zip(cells, super().classify(cells, exclusive=exclusive), strict=True)
        return [_mapped(answer) if cell.cam else answer for cell, answer in found]

    def hold(self) -> None:
        self._go.clear()

    def go(self) -> None:
        self._go.set()

    def busy(self) -> None:
        assert self._busy.acquire(timeout=PATIENCE_S)


@contextmanager
def serving(classifier: FakeClassifier | None = None, **settings: Any) -> Iterator[TestClient]:
    """A client of a service that is ready."""
    app = build(classifier or HeldClassifier(), **settings)
    with TestClient(app, LOCAL, raise_server_exceptions=False) as client:
        wait_ready(client, app)
        yield client


def build(classifier: FakeClassifier, **settings: Any) -> FastAPI:
    def load(_: Settings) -> Classifier:
        return cast(Classifier, classifier)

    def fail(error: Exception) -> None:
        raise AssertionError("loading a fake failed") from error

    return create_app(Settings(**{"max_batch": 4, "decode_workers": 1} | settings), load, fail)


@asynccontextmanager
async def started(classifier: FakeClassifier | None = None, **settings: Any) -> AsyncIterator[FastAPI]:
    """A ready application on the running loop."""
    app = build(classifier or HeldClassifier(), **settings)
    async with app.router.lifespan_context(app):
        await app.state.lifecycle.settled()
        yield app


def caller(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=LOCAL)


def metric(client: TestClient, line: str) -> float:
    """The value of a metric, named with its labels as in the text; 0 where it was never counted."""
    found = [row for row in client.get("/metrics").text.splitlines() if row.startswith(line + " ")]
    return float(found[0].split()[-1]) if found else 0.0


def wait_ready(client: TestClient, app: FastAPI) -> None:
    assert client.portal is not None
    client.portal.call(app.state.lifecycle.settled)


def zipped(entries: dict[str, bytes]) -> bytes:
    file = BytesIO()
    with ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def _mapped(answer: Prediction | EngineError) -> Prediction | EngineError:
    if isinstance(answer, EngineError):
        return answer
    return replace(answer, cam=np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7))
