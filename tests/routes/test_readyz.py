from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

from starlette.testclient import TestClient

from app.errors import EngineError
from app.main import create_app
from app.settings import Settings
from app.vision.classifier import Classifier, Prediction
from app.vision.framing import Cell
from tests.fake_classifier import FakeClassifier, png
from tests.fakes import wait_ready


class Slow(FakeClassifier):
    """Warms up when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.warming = threading.Event()
        self.go = threading.Event()

    def warm_up(self, max_batch: int) -> None:
        super().warm_up(max_batch)
        self.warming.set()
        assert self.go.wait(30)


class Collapse(BaseException):
    """Nothing that an engine should raise."""


class Fatal(FakeClassifier):
    def classify(self, cells: Sequence[Cell], *, alone: bool = True) -> list[Prediction | EngineError]:
        raise Collapse(f"{len(cells)} too many, alone: {alone}")


def test_a_service_is_not_ready_before_it_is_warm() -> None:
    slow = Slow()
    app = create_app(Settings(), lambda _: cast(Classifier, slow))
    with TestClient(app) as client:
        assert slow.warming.wait(30)
        while client.get("/readyz").json()["detail"] != "the engine is warming up":
            pass
        slow.go.set()
        wait_ready(client, app)
        assert client.get("/readyz").status_code == 200


def test_a_service_whose_batcher_has_died_is_not_ready() -> None:
    app = create_app(Settings(), lambda _: cast(Classifier, Fatal()))
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_ready(client, app)
        headers = {"content-type": "image/png"}
        assert client.post("/predict", content=png(1), headers=headers).status_code == 503
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["detail"]) == (503, "the batcher has died")
        assert client.get("/healthz").status_code == 200
