"""Several bundles at once, and others in their place, in an application whose engines a test can hold."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI

from app.errors import BundleError, EngineError, SettingsError
from app.main import create_app
from app.settings import Settings
from app.vision.bundle import CLASSES
from app.vision.classifier import Classifier, Prediction
from app.vision.framing import Cell
from tests.fake_classifier import png
from tests.fakes import PATIENCE_S, HeldClassifier, caller

IMAGE = {"content-type": "image/png"}


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(test(*arguments, **fixtures))

    return run


class Named(HeldClassifier):
    """Of the name and version that its folder has: `wbc-2` is version 2 of wbc. One has other classes."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        name, _, version = folder.partition("-")
        labels = CLASSES[1:] + CLASSES[:1] if name == "turned" else CLASSES
        self.bundle = replace(self.bundle, name=name, version=version, sha256=folder, labels=labels)

    def classify(self, cells: Sequence[Cell], *, alone: bool = True) -> list[Prediction | EngineError]:
        if self.bundle.name == "poor":
            raise RuntimeError("no engine")
        found = super().classify(cells, alone=alone)
        names = dict(zip(CLASSES, self.bundle.labels, strict=True))
        return [
            one if isinstance(one, EngineError) else replace(one, label=names[one.label]) for one in found
        ]


@dataclass
class Laboratory:
    """An application, the file that lists its models, and every classifier that it has loaded."""

    app: FastAPI
    file: Path
    loaded: dict[str, list[Named]] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)

    def write(self, *models: str) -> None:
        """models: folders; with a star they are shadows."""
        tables = [
            f'[[models]]\nbundle = "{one.rstrip("*")}"\nshadow = {str("*" in one).lower()}' for one in models
        ]
        draft = self.file.with_suffix(".draft")
        draft.write_text("\n".join(tables))
        draft.replace(self.file)

    async def version(self, query: str = "") -> str:
        async with caller(self.app) as client:
            answer = await client.post(f"/predict{query}", content=png(32), headers=IMAGE)
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

    async def until_metric(self, line: str, value: float) -> None:
        async def holds() -> bool:
            return await self.metric(line) == value

        await self.until(holds)


@asynccontextmanager
async def laboratory(folder: Path, *models: str, **settings: Any) -> AsyncIterator[Laboratory]:
    file = folder / "models.toml"

    def load(settings: Settings) -> Classifier:
        if settings.bundle == "broken":
            raise BundleError("model.safetensors was changed")
        found.loaded.setdefault(settings.bundle, []).append(Named(settings.bundle))
        return cast(Classifier, found.loaded[settings.bundle][-1])

    found = Laboratory(FastAPI(), file)
    found.write(*models)
    chosen: dict[str, Any] = {"max_batch": 4, "decode_workers": 1, "models": str(file)} | settings
    found.app = create_app(Settings(**chosen), load, found.failures.append)
    async with found.app.router.lifespan_context(found.app):
        await found.app.state.lifecycle.settled()
        yield found


@on_a_loop
async def test_models_side_by_side_answer_by_name_and_version(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-2", "wbc-1", "other-1") as lab, caller(lab.app) as client:
        assert await lab.version() == "wbc-2"
        assert await lab.version("?model=wbc") == "wbc-2"
        assert await lab.version("?model=wbc@1") == "wbc-1"
        assert await lab.version("?model=other") == "other-1"
        for query in ("?model=none", "?model=wbc@3", "?model=", "?model=@1"):
            answer = await client.post(f"/predict{query}", content=png(32), headers=IMAGE)
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model"), query
        assert (await client.get("/model?model=other")).json()["name"] == "other"
        assert (await client.get("/v2/models/wbc")).json()["versions"] == ["2", "1"]
        assert (await client.get("/v2/models/wbc/versions/1/ready")).status_code == 200
        assert (await client.get("/v2/models/wbc/versions/9/ready")).status_code == 404
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["iVBORw0KGgo="]}
        answer = await client.post("/v2/models/none/infer", json={"inputs": [tensor]})
        assert (answer.status_code, answer.json()) == (404, {"error": "There is no model of this name."})
        for version in ("2", "1"):
            assert await lab.metric(
                f'leuko_model_info{{name="wbc",sha256="wbc-{version}",version="{version}"}}'
            )


@on_a_loop
async def test_only_the_default_s_answers_are_held_against_its_reference(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", "other-1") as lab:
        await lab.version("?model=other")
        assert await lab.metric('leuko_predictions_total{label="eosinophil"}') == 0
        await lab.version()
        assert await lab.metric('leuko_predictions_total{label="eosinophil"}') == 1


@on_a_loop
async def test_a_new_model_takes_over_without_a_failed_request(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab:
        seen: list[str] = []
        over = asyncio.Event()

        async def ask() -> None:
            while not over.is_set():
                seen.append(await lab.version())

        asking = [asyncio.create_task(ask()) for _ in range(8)]
        lab.write("wbc-2")
        await lab.until_served("wbc-2")
        over.set()
        await asyncio.gather(*asking)
        assert set(seen) == {"wbc-1", "wbc-2"}
        assert lab.loaded["wbc-2"][0].warmed == [4]
        assert await lab.metric('leuko_model_info{name="wbc",sha256="wbc-1",version="1"}') == 0
        assert await lab.metric('leuko_model_info{name="wbc",sha256="wbc-2",version="2"}') == 1


@on_a_loop
async def test_a_request_is_answered_by_the_model_that_it_began_with(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab:
        old = lab.app.state.lifecycle.models.default
        [classifier] = lab.loaded["wbc-1"]
        classifier.hold()
        asked = asyncio.create_task(lab.version())
        await asyncio.to_thread(classifier.busy)
        lab.write("wbc-2")
        await lab.until_metric('leuko_model_info{name="wbc",sha256="wbc-2",version="2"}', 1)
        assert old.service.batcher.alive
        classifier.go()
        assert await asked == "wbc-1"

        await lab.until(lambda: not old.service.batcher.alive)


@on_a_loop
async def test_one_that_does_not_load_changes_nothing_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab:
        lab.write("wbc-2", "broken")
        await lab.until_metric("leuko_models_stale", 1)
        assert await lab.version() == "wbc-1"
        assert "the models stay as they were: model.safetensors was changed" in caplog.text
        lab.file.write_text("[[models]]")
        await lab.until(lambda: "model 1 needs bundle" in caplog.text)
        lab.file.unlink()
        await lab.until(lambda: "No such file" in caplog.text)
        assert await lab.metric("leuko_models_stale") == 1
        lab.write("wbc-1")
        await lab.until_metric("leuko_models_stale", 0)
        assert await lab.version() == "wbc-1"
        assert len(lab.loaded["wbc-1"]) == 1
        assert not lab.failures


@on_a_loop
async def test_two_of_one_name_and_version_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        lab.write("wbc-1", "./wbc-1")
        lab.loaded["./wbc-1"] = []
        await lab.until_metric("leuko_models_stale", 0)
        lab.write("wbc-1", "other-1", "other-1*")
        await lab.until_metric("leuko_models_stale", 1)
        assert "a bundle is named twice" in caplog.text


@on_a_loop
async def test_a_new_one_whose_engine_fails_gives_way_to_those_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        lab.write("wbc-2")
        await lab.until_served("wbc-2")
        lab.app.state.lifecycle.service.batcher.abandon()

        await lab.until_metric('leuko_model_info{name="wbc",sha256="wbc-1",version="1"}', 1)
        assert await lab.version() == "wbc-1"
        assert len(lab.loaded["wbc-1"]) == 1
        assert await lab.metric("leuko_models_stale") == 1
        assert "those before are back" in caplog.text
        assert not lab.failures


@on_a_loop
async def test_a_change_that_cannot_be_used_does_not_end_the_probation(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        lab.write("wbc-2")
        await lab.until_served("wbc-2")
        lab.write("broken")
        await lab.until_metric("leuko_models_stale", 1)
        lab.app.state.lifecycle.service.batcher.abandon()
        await lab.until_metric('leuko_model_info{name="wbc",sha256="wbc-1",version="1"}', 1)
        assert await lab.version() == "wbc-1"
        assert len(lab.loaded["wbc-1"]) == 1


@on_a_loop
async def test_while_those_before_are_loaded_going_back_loads_nothing(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        for version in ("wbc-2", "wbc-1"):
            lab.write(version)
            await lab.until_served(version)
        assert {name: len(found) for name, found in lab.loaded.items()} == {"wbc-1": 1, "wbc-2": 1}


@on_a_loop
async def test_other_files_at_the_same_address_are_another_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "wbc-1"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    async with laboratory(tmp_path, str(folder), probation_s=0) as lab:
        lab.write(str(folder))
        (folder / "config.json").write_text('{"version": 2}')
        lab.write(str(folder), "other-1")
        await lab.until(lambda: "other-1" in lab.loaded)
        assert len(lab.loaded[str(folder)]) == 2


@on_a_loop
async def test_a_shadow_answers_nobody_and_its_disagreements_are_counted(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", "wbc-2*", "turned-1*") as lab, caller(lab.app) as client:
        answer = await client.post("/predict?model=turned", content=png(32), headers=IMAGE)
        assert answer.status_code == 404
        for _ in range(3):
            assert await lab.version() == "wbc-1"
        shadow = 'leuko_shadow_images_total{{name="{}",outcome="{}",version="{}"}}'.format
        await lab.until_metric(shadow("wbc", "agreed", "2"), 3)
        await lab.until_metric(shadow("turned", "disagreed", "1"), 3)
        pair = 'label="eosinophil",name="turned",shadow_label="lymphocyte",version="1"'
        assert await lab.metric(f"leuko_shadow_disagreements_total{{{pair}}}") == 3


@on_a_loop
async def test_a_shadow_that_hangs_or_fails_delays_no_answer(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", "wbc-2*", "poor-1*") as lab:
        [classifier] = lab.loaded["wbc-2"]
        classifier.hold()
        for _ in range(260):
            await lab.version()
        skipped = 'leuko_shadow_images_total{name="wbc",outcome="skipped",version="2"}'
        assert await lab.metric(skipped) >= 2
        classifier.go()
        failed = 'leuko_shadow_images_total{name="poor",outcome="failed",version="1"}'

        async def counted() -> bool:
            return await lab.metric(failed) > 0

        await lab.until(counted)
        assert not lab.failures


def test_a_file_that_cannot_be_used_refuses_to_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        create_app(Settings(models=str(tmp_path / "none.toml")))
    (tmp_path / "models.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        create_app(Settings(models=str(tmp_path / "models.toml")))
