"""The event loop answers others while one request is heavy; benchmarks.stalls has the figures."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from app.api.routes import images
from benchmarks.stalls import corrupt_images, probing, send
from tests.fakes import CUT, PATIENCE_S, HeldClassifier, caller, started
from tests.running import Running


def test_failed_images_are_hashed_while_another_client_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing waits for the other client's response, which could not come if it ran on the event loop."""
    hashing, answered = threading.Event(), threading.Event()

    def sha256(data: bytes) -> Any:
        hashing.set()
        assert answered.wait(PATIENCE_S)
        return hashlib.sha256(data)

    monkeypatch.setattr(images, "sha256", sha256)

    async def scenario() -> None:
        async with started(HeldClassifier()) as app, caller(app) as client:
            files = [("files", ("cut.png", CUT))] * 3
            heavy = asyncio.create_task(client.post("/predict", files=files))
            assert await asyncio.to_thread(hashing.wait, PATIENCE_S)
            assert (await client.get("/healthz")).status_code == 200
            answered.set()
            assert (await heavy).status_code == 422

    asyncio.run(scenario())


def test_a_second_client_is_answered_while_large_corrupt_images_are_refused(
    service: Running, record_property: Callable[[str, object], None]
) -> None:
    """Show the second client's longest wait, without judging it: other tests share the machine."""
    with probing(service.port) as waits:
        assert send(service.port, corrupt_images(60)) == 422
    assert len(waits.seconds) > 1
    record_property("longest_wait_ms", round(waits.longest_ms, 1))
    print(f"longest wait of the second client: {waits.longest_ms:.1f} ms")
