"""Shadow models: classify live images, count agreement, answer no request."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from app.engine.classifier import Prediction
from app.errors import BundleError
from app.imaging.framing import Frame
from app.inference.pipeline import Answer
from app.observability.metrics import Telemetry
from app.registry.model_runner import ModelRunner
from app.registry.shadow import Shadow
from tests.fake_classifier import png
from tests.fakes import caller
from tests.laboratory import IMAGE, kill, laboratory, on_a_loop

OUTCOMES = 'leuko_shadow_images_total{{name="{}",outcome="{}",version="{}"}}'.format


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
async def test_a_shadow_counts_each_image_whatever_the_id_of_its_request(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", "wbc-2*") as lab, caller(lab.app) as client:
        headers = IMAGE | {"X-Request-ID": "constant"}
        for grey in (10, 70, 130):
            assert (await client.post("/predict", content=png(grey), headers=headers)).status_code == 200
        await lab.until_metric(OUTCOMES("wbc", "agreed", "2"), 3)


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


@on_a_loop
async def test_a_shadow_that_gave_up_is_loaded_again_with_the_file(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", "wbc-2*") as lab:
        shadow = lab.models.served.runners[1]
        lab.faults["wbc-2"] = BundleError("no memory is left")
        kill(shadow)
        await lab.until(lambda: shadow.failed)
        lab.faults.clear()
        lab.write("wbc-1", "wbc-2*")
        await lab.until(lambda: lab.models.served.runners[1] is not shadow)
        await lab.version()
        await lab.until_metric('leuko_shadow_images_total{name="wbc",outcome="agreed",version="2"}', 1)
        assert len(lab.loaded["wbc-1"]) == 1
        assert not lab.failures


@on_a_loop
async def test_a_shadow_of_a_share_is_tried_on_the_images_whose_hash_is_below_it(tmp_path: Path) -> None:
    images = [png(grey) for grey in range(0, 250, 10)]
    chosen = [image for image in images if sha256(image).digest()[0] < 0.25 * 256]
    assert 0 < len(chosen) < len(images) / 2
    async with laboratory(tmp_path, "wbc-1", "wbc-2*0.25", "wbc-3*") as lab:
        for image in images:
            await lab.version(image=image)
        await lab.until_metric(OUTCOMES("wbc", "agreed", "3"), len(images))
        await lab.until_metric(OUTCOMES("wbc", "agreed", "2"), len(chosen))


@on_a_loop
async def test_what_waits_for_a_shadow_is_bounded_in_bytes() -> None:
    bundle = SimpleNamespace(name="wbc", version="2")
    telemetry = Telemetry()
    shadow = Shadow(cast(ModelRunner, SimpleNamespace(bundle=bundle)), 1.0, telemetry, busy=lambda: True)
    answer = Answer(
        "0" * 64, Frame(0, 0, 8, 6, False), Prediction("eosinophil", 0.7, (0.7, 0.1, 0.1, 0.1), 1.5, ())
    )
    skipped = OUTCOMES("wbc", "skipped", "2") + " 1.0"
    image = bytes(32 * 2**20)
    for _ in range(2):
        shadow.offer(image, answer)
    assert skipped not in telemetry.render().decode()
    shadow.offer(b"x", answer)
    assert skipped in telemetry.render().decode()
    await shadow.stop()


@on_a_loop
async def test_what_a_shadow_runs_is_not_measured_as_what_clients_wait_for(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", "wbc-2*") as lab:
        await lab.version()
        await lab.until_metric(OUTCOMES("wbc", "agreed", "2"), 1)
        for stage in ("decode", "infer"):
            assert await lab.metric(f'leuko_stage_duration_seconds_count{{stage="{stage}"}}') == 1
        assert await lab.metric("leuko_queue_wait_seconds_count") == 1
        assert await lab.metric("leuko_batch_size_count") == 1
        kill(lab.models.served.runners[1])
        await lab.until(lambda: len(lab.loaded["wbc-2"]) == 2)
        await lab.until(lambda: lab.models.served.runners[1].obstacle is None)
        assert await lab.metric("leuko_engine_restarts_total") == 0
        kill(lab.models.served.default)
        await lab.until(lambda: len(lab.loaded["wbc-1"]) == 2)
        assert await lab.metric("leuko_engine_restarts_total") == 1
