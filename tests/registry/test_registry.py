"""Several models served at once, and replaced at run time."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.api.application import create_app
from app.engine.bundle import CLASSES
from app.errors import BundleError, SettingsError
from app.registry.fetch import hash_file
from app.settings import Settings
from tests.fake_classifier import png
from tests.fakes import PATIENCE_S, caller, zipped
from tests.laboratory import IMAGE, kill, laboratory, on_a_loop


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
                f'leuko_model_info{{name="wbc",sha256="wbc-{version}",verified_for="",version="{version}"}}'
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
        await lab.serve("wbc-2")
        over.set()
        await asyncio.gather(*asking)
        assert set(seen) == {"wbc-1", "wbc-2"}
        assert lab.loaded["wbc-2"][0].warmed == [4]
        assert (
            await lab.metric('leuko_model_info{name="wbc",sha256="wbc-1",verified_for="",version="1"}') == 0
        )
        assert (
            await lab.metric('leuko_model_info{name="wbc",sha256="wbc-2",verified_for="",version="2"}') == 1
        )


@on_a_loop
async def test_a_request_is_answered_by_the_model_that_it_began_with(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab:
        old = lab.models.served.default
        [classifier] = lab.loaded["wbc-1"]
        classifier.hold()
        asked = asyncio.create_task(lab.version())
        await asyncio.to_thread(classifier.busy)
        lab.write("wbc-2")
        await lab.until_metric('leuko_model_info{name="wbc",sha256="wbc-2",verified_for="",version="2"}', 1)
        assert old.service.batcher.alive
        classifier.go()
        assert await asked == "wbc-1"

        await lab.until(lambda: not old.service.batcher.alive)


@on_a_loop
async def test_an_upload_that_began_before_a_swap_ends_with_the_model_of_its_beginning(
    tmp_path: Path,
) -> None:
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab, caller(lab.app) as client:
        began, go = asyncio.Event(), asyncio.Event()

        async def halting() -> AsyncIterator[bytes]:
            yield png(32)[:20]
            began.set()
            await go.wait()
            yield png(32)[20:]

        asked = asyncio.create_task(client.post("/predict", content=halting(), headers=IMAGE))
        await began.wait()
        await lab.serve("wbc-2")
        assert await lab.version() == "wbc-2"
        go.set()
        answer = await asked
        assert (answer.status_code, answer.json()["model"]["version"]) == (200, "1")


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@on_a_loop
async def test_an_evaluation_ends_with_the_model_that_it_began_with(tmp_path: Path, accept: str) -> None:
    images = {f"{label}/{number}.png": png(32) for label in CLASSES for number in range(10)}
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab, caller(lab.app) as client:
        old = lab.models.served.default
        [classifier] = lab.loaded["wbc-1"]
        classifier.hold()
        archive = {"archive": ("set.zip", zipped(images))}
        asked = asyncio.create_task(client.post("/evaluate", files=archive, headers={"accept": accept}))
        await asyncio.to_thread(classifier.busy)
        lab.write("wbc-2")
        await lab.until_default("wbc-2")
        classifier.go()
        answer = await asked
        assert answer.status_code == 200
        assert '"version":"1"' in answer.text
        assert '"n":40' in answer.text
        await lab.until(lambda: not old.service.batcher.alive)


@on_a_loop
async def test_one_that_does_not_load_changes_nothing_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab:
        lab.write("wbc-2", "broken")
        await lab.until_metric("leuko_models_stale", 1)
        assert await lab.version() == "wbc-1"
        rejected = "models file rejected; keeping the current models: model.safetensors was changed"
        assert rejected in caplog.text
        lab.file.write_text("[[models]]")
        await lab.until(lambda: "model 1 bundle is missing" in caplog.text)
        lab.file.unlink()
        await lab.until(lambda: "No such file" in caplog.text)
        assert await lab.metric("leuko_models_stale") == 1
        lab.write("wbc-1")
        await lab.until_metric("leuko_models_stale", 0)
        assert await lab.version() == "wbc-1"
        assert len(lab.loaded["wbc-1"]) == 1
        assert not lab.failures


@on_a_loop
async def test_the_log_says_of_each_attempt_what_is_wrong_but_of_a_file_that_is_away_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        for attempt in (1, 2):
            lab.write("broken")
            await lab.until(lambda: caplog.text.count("was changed") == attempt)  # noqa: B023
        lab.file.unlink()
        for _ in range(3):
            await lab.models.reread()
        assert caplog.text.count("No such file") == 1
        assert await lab.metric("leuko_models_stale") == 1


@on_a_loop
async def test_two_of_one_name_and_version_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        lab.write("wbc-1", "./wbc-1")
        await lab.until_metric("leuko_models_stale", 1)
        assert "two models have the same name and version: wbc 1" in caplog.text
        lab.write("wbc-1", "./wbc-1*")
        await lab.until_metric("leuko_models_stale", 0)
        lab.write("wbc-1", "other-1", "other-1*")
        await lab.until_metric("leuko_models_stale", 1)
        assert "a bundle is listed twice" in caplog.text


@on_a_loop
async def test_a_new_one_whose_engine_fails_gives_way_to_those_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        await lab.serve("wbc-2")
        kill(lab.models.served.default)

        await lab.until_metric('leuko_model_info{name="wbc",sha256="wbc-1",verified_for="",version="1"}', 1)
        assert await lab.version() == "wbc-1"
        assert len(lab.loaded["wbc-1"]) == 1
        assert await lab.metric("leuko_models_stale") == 1
        assert "rolled back to the previous models" in caplog.text
        assert not lab.failures


@on_a_loop
async def test_a_change_that_cannot_be_used_does_not_end_the_probation(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        await lab.serve("wbc-2")
        lab.write("broken")
        await lab.until_metric("leuko_models_stale", 1)
        kill(lab.models.served.default)
        await lab.until_metric('leuko_model_info{name="wbc",sha256="wbc-1",verified_for="",version="1"}', 1)
        assert await lab.version() == "wbc-1"
        assert len(lab.loaded["wbc-1"]) == 1


@on_a_loop
async def test_the_same_file_written_again_does_not_end_the_probation(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        await lab.serve("wbc-2")
        lab.write("broken")
        await lab.until_metric("leuko_models_stale", 1)
        lab.write("wbc-2")
        await lab.until_metric("leuko_models_stale", 0)
        kill(lab.models.served.default)
        await lab.until_default("wbc-1")
        assert {name: len(loads) for name, loads in lab.loaded.items()} == {"wbc-1": 1, "wbc-2": 1}


@on_a_loop
async def test_another_change_goes_on_with_the_probation(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        await lab.serve("wbc-2")
        second = lab.models.served.default
        await lab.serve("wbc-3", "wbc-4*")
        await lab.until(lambda: not second.service.batcher.alive)
        lab.write("wbc-3")
        await lab.until(lambda: len(lab.models.served.runners) == 1)
        kill(lab.models.served.default)
        await lab.until_default("wbc-1")
        assert len(lab.loaded["wbc-1"]) == 1


@on_a_loop
async def test_one_that_fails_while_another_loads_gives_way_at_once_and_is_not_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        await lab.serve("wbc-2")
        with lab.held("other-1"):
            lab.write("wbc-2", "other-1")
            await lab.until_loading("other-1")
            lab.faults["wbc-2"] = BundleError("no memory is left")
            kill(lab.models.served.default)
            await lab.until_default("wbc-1")
        await lab.until(lambda: "the engine of wbc 2 has failed" in caplog.text)
        assert await lab.version() == "wbc-1"
        assert await lab.metric("leuko_models_stale") == 1

        lab.faults.clear()
        await lab.serve("wbc-2", "other-1")
        assert await lab.version("?model=other") == "other-1"
        assert len(lab.loaded["wbc-1"]) == 1
        assert not lab.failures


@on_a_loop
async def test_what_fails_while_another_loads_is_not_gone_back_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        first = lab.models.served.default
        await lab.serve("wbc-2")
        with lab.held("other-1"):
            lab.write("wbc-1", "other-1")
            await lab.until_loading("other-1")
            lab.faults["wbc-1"] = BundleError("no memory is left")
            kill(first)
            await lab.until(lambda: first.failed)
        await lab.until(lambda: "the engine of wbc 1 has failed" in caplog.text)
        assert await lab.version() == "wbc-2"


@on_a_loop
async def test_where_those_before_have_failed_too_a_new_one_is_started_again_in_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        first = lab.models.served.default
        await lab.serve("wbc-2")
        lab.faults["wbc-1"] = BundleError("no memory is left")
        kill(first)
        await lab.until(lambda: first.failed)
        assert "shadow or retired model failed: no memory is left" in caplog.text
        kill(lab.models.served.default)
        await lab.until(lambda: len(lab.loaded["wbc-2"]) == 2)
        await lab.until(lambda: lab.models.obstacle is None)
        assert await lab.version() == "wbc-2"

        lab.faults.clear()
        await lab.serve("wbc-1")
        assert not lab.failures


@pytest.mark.parametrize("error", [BundleError("no memory is left"), TimeoutError("the disk is away")])
@on_a_loop
async def test_one_that_answers_and_gives_up_is_the_end_while_another_loads_too(
    tmp_path: Path, error: Exception
) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        with lab.held("wbc-2"):
            lab.write("wbc-2")
            await lab.until_loading("wbc-2")
            lab.faults["wbc-1"] = error
            kill(lab.models.served.default)
            await lab.until(lambda: bool(lab.failures))
        assert lab.failures == [error]


@on_a_loop
async def test_what_one_gives_up_with_counts_no_more_once_others_have_its_place(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        await lab.serve("wbc-2")
        second = lab.models.served.default
        second.on_failure(second, BundleError("no memory is left"))
        second.on_engine_failed(second)
        assert await lab.version() == "wbc-1"
        await lab.serve("wbc-3")
        assert not lab.failures


@on_a_loop
async def test_while_those_before_are_loaded_going_back_loads_nothing(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1") as lab:
        for version in ("wbc-2", "wbc-1"):
            lab.write(version)
            await lab.until_served(version)
        assert {name: len(loads) for name, loads in lab.loaded.items()} == {"wbc-1": 1, "wbc-2": 1}


@pytest.mark.parametrize("text", ["x = " + "[" * 2000, "x = " + "1" * 5000, 'bundle = "\\u0000"'])
@on_a_loop
async def test_a_file_that_no_parser_takes_ends_neither_the_service_nor_the_reading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab:
        lab.file.write_text(f"[[models]]\n{text}")
        await lab.until_metric("leuko_models_stale", 1)
        assert "models file rejected; keeping the current models" in caplog.text
        assert "Traceback" not in caplog.text
        await lab.serve("wbc-2")
        assert not lab.failures


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@on_a_loop
async def test_a_bundle_with_something_else_than_a_regular_file_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = tmp_path / "wbc-2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab:
        lab.write(str(folder))
        await lab.until(lambda: f"{name} cannot be read: it is not a regular file" in caplog.text)
        assert str(folder) not in lab.loading
        await lab.serve("wbc-3")


@on_a_loop
async def test_a_disk_that_does_not_respond_holds_up_nothing_but_its_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    threads = []

    def read(path: Path) -> str:
        if path.parent.name == "lost":
            threads.append(threading.current_thread())
            released.wait(PATIENCE_S)
        return hash_file(path)

    monkeypatch.setattr("app.registry.registry.hash_file", read)
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab:
        lab.models.patience_s = 0.1
        lab.write("lost")
        await lab.until(lambda: "rejected; keeping the current models: lost cannot be read" in caplog.text)
        assert threading.main_thread() not in threads
        await lab.serve("wbc-2")
        released.set()


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


def test_a_file_that_cannot_be_used_refuses_to_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        create_app(Settings(models=str(tmp_path / "none.toml")))
    (tmp_path / "models.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        create_app(Settings(models=str(tmp_path / "models.toml")))
