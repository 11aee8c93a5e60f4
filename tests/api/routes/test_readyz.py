from __future__ import annotations

import threading
from typing import cast

from starlette.testclient import TestClient

from app.api.application import create_app
from app.engine.classifier import Classifier
from app.settings import Settings
from tests.fake_classifier import FakeClassifier
from tests.fakes import LOCAL, wait_ready


class Slow(FakeClassifier):
    """A classifier whose warm-up waits for `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.warming = threading.Event()
        self.go = threading.Event()

    def warm_up(self, max_batch: int) -> None:
        super().warm_up(max_batch)
        self.warming.set()
        assert self.go.wait(30)


def test_a_service_is_not_ready_before_it_is_warm() -> None:
    slow = Slow()
    app = create_app(Settings(), lambda _: cast(Classifier, slow))
    with TestClient(app, LOCAL) as client:
        assert slow.warming.wait(30)
        while client.get("/readyz").json()["detail"] != "the engine is warming up":
            pass
        slow.go.set()
        wait_ready(client, app)
        assert client.get("/readyz").status_code == 200
