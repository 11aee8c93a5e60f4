"""Retiring a model: replaced by another, its folder changed, or its engine hanging."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from app.errors import BundleError
from app.observability.audit import AuditLog
from app.registry.registry import ModelRegistry
from tests.fake_classifier import png
from tests.fakes import caller
from tests.laboratory import IMAGE, Laboratory, Named, kill, laboratory, on_a_loop


@contextmanager
def uncollected() -> Iterator[None]:
    """Freeze objects as `app.server.run` does, and disable the collector: only reference counts free them."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def forgotten(lab: Laboratory, folder: str) -> weakref.ref[Named]:
    """Return a weak reference to the classifier loaded last from the folder, and drop the strong one."""
    return weakref.ref(lab.loaded[folder].pop())


@on_a_loop
async def test_those_whose_place_others_took_are_freed_without_the_collector(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", "wbc-2*", probation_s=0) as lab:
        await lab.version()
        await lab.until_metric('leuko_shadow_images_total{name="wbc",outcome="agreed",version="2"}', 1)
        retired = [forgotten(lab, folder) for folder in ("wbc-1", "wbc-2")]
        with uncollected():
            await lab.serve("wbc-3")
            await lab.until(lambda: [reference() for reference in retired] == [None, None])


@on_a_loop
async def test_what_lies_in_the_folder_by_then_does_not_take_the_place_of_what_died(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        lab.replaced["wbc-1"] = "wbc-3"
        kill(lab.models.served.default)
        await lab.until(lambda: bool(lab.failures))
        [error] = lab.failures
        assert isinstance(error, BundleError)
        assert "wbc-1 holds a different bundle" in error.detail


class ClosingAudit:
    failing = False

    def __init__(self) -> None:
        self.lines: list[object] = []
        self.closed = False

    def write(self, line: object) -> None:
        self.lines.append(line)

    def close(self) -> None:
        self.closed = True


@on_a_loop
async def test_the_end_does_not_wait_for_an_engine_that_hangs_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = ClosingAudit()
    async with laboratory(tmp_path, "wbc-1", drain_s=0.1) as lab:
        lab.app.state.lifecycle.audit = cast(AuditLog, audit)
        [classifier] = lab.loaded["wbc-1"]
        classifier.hold()
        client = caller(lab.app)
        asked = asyncio.create_task(client.post("/predict", content=png(32), headers=IMAGE))
        await asyncio.to_thread(classifier.busy)
    assert audit.closed
    assert "wbc 1: drain timed out after 0.1 s; abandoning the engine" in caplog.text
    assert (await asked).status_code == 503
    classifier.go()


class Broken:
    """A registry whose `stop` raises."""

    def __init__(self, models: ModelRegistry) -> None:
        self._models = models

    async def stop(self) -> None:
        await self._models.stop()
        raise RuntimeError("a defect")


@on_a_loop
async def test_whatever_goes_wrong_at_the_end_the_audit_log_is_closed(tmp_path: Path) -> None:
    audit = ClosingAudit()

    async def end() -> None:
        async with laboratory(tmp_path, "wbc-1") as lab:
            lab.app.state.lifecycle.audit = cast(AuditLog, audit)
            lab.app.state.lifecycle.models = cast(ModelRegistry, Broken(lab.models))

    with pytest.raises(RuntimeError, match="a defect"):
        await end()
    assert audit.closed


@on_a_loop
async def test_one_that_hangs_when_others_have_taken_its_place_is_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1", drain_s=0.1, probation_s=0) as lab, caller(lab.app) as client:
        classifier = lab.loaded["wbc-1"].pop()
        classifier.hold()
        asked = asyncio.create_task(client.post("/predict", content=png(32), headers=IMAGE))
        await asyncio.to_thread(classifier.busy)
        asked.cancel()
        await asyncio.wait([asked])
        del asked
        lab.write("wbc-2")
        await lab.until(lambda: "wbc 1: drain timed out after 0.1 s" in caplog.text)
        classifier.go()
        retired = weakref.ref(classifier)
        del classifier
        await lab.until(lambda: gc.collect() >= 0 and retired() is None)
        assert await lab.version() == "wbc-2"
    assert "never retrieved" not in caplog.text
