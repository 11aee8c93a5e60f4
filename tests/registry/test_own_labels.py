"""Models of other labels beside, after and behind each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.engine.bundle import CLASSES
from app.evaluation.answer_profile import Seen, dump, summarise
from tests.fake_classifier import png
from tests.fakes import caller
from tests.laboratory import IMAGE, laboratory, on_a_loop
from tests.own_labels import FIVE


def reference(path: Path, labels: tuple[str, ...]) -> str:
    answers = [Seen(label, 0.9, 1.0, review=False) for label in labels]
    path.write_text(json.dumps(dump(summarise(answers, labels, "a quiet week"))))
    return str(path)


@on_a_loop
async def test_a_model_of_other_labels_takes_over_and_gives_back(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", probation_s=0) as lab, caller(lab.app) as client:
        for folder, labels in (("own-1", FIVE), ("wbc-1", CLASSES)):
            await lab.serve(folder)
            document = (await client.post("/predict", content=png(70), headers=IMAGE)).json()
            assert list(document["predictions"][0]["probabilities"]) == list(labels)
            assert document["predictions"][0]["label"] == labels[1]
            count = (await client.post("/differential", content=png(70), headers=IMAGE)).json()
            assert list(count["counts"]) == list(labels)
            assert (await client.get("/model")).json()["labels"] == list(labels)
        assert await lab.metric('leuko_predictions_total{label="basophil"}') == 2


@on_a_loop
async def test_predictions_of_a_model_that_was_replaced_are_refused_by_name(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "own-1", probation_s=0) as lab, caller(lab.app) as client:
        predicted = (await client.post("/predict", content=png(70), headers=IMAGE)).json()
        await lab.serve("wbc-1")
        answer = await client.post("/differential", json={"predictions": predicted["predictions"]})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_labels")
        assert "none of eosinophil, lymphocyte" in answer.json()["detail"]


@on_a_loop
async def test_models_of_different_labels_answer_side_by_side(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", "own-1") as lab, caller(lab.app) as client:
        for query, labels in (("", CLASSES), ("?model=own", FIVE), ("?model=wbc", CLASSES)):
            document = (await client.post(f"/predict{query}", content=png(70), headers=IMAGE)).json()
            assert list(document["predictions"][0]["probabilities"]) == list(labels)
            body = {"predictions": document["predictions"]}
            count = (await client.post(f"/differential{query}", json=body)).json()
            assert list(count["counts"]) == list(labels)
        shapes = [
            (await client.get(f"/v2/models/{name}")).json()["outputs"][0]["shape"] for name in ("wbc", "own")
        ]
        assert shapes == [[-1, 4], [-1, 5]]


@on_a_loop
async def test_a_shadow_of_other_labels_agrees_where_it_says_the_same(tmp_path: Path) -> None:
    async with laboratory(tmp_path, "wbc-1", "own-1*") as lab, caller(lab.app) as client:
        await client.post("/predict", content=png(70), headers=IMAGE)
        await lab.until_metric('leuko_shadow_images_total{name="own",outcome="disagreed",version="1"}', 1)
        pair = 'label="lymphocyte",name="own",shadow_label="basophil",version="1"'
        assert await lab.metric(f"leuko_shadow_disagreements_total{{{pair}}}") == 1
        assert not lab.failures


@on_a_loop
async def test_a_reference_of_other_labels_keeps_a_model_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = reference(tmp_path / "reference.json", CLASSES)
    async with laboratory(tmp_path, "wbc-1", reference=given) as lab:
        lab.write("own-1")
        await lab.until(lambda: lab.models.stale)
        assert "the drift reference has the classes eosinophil, lymphocyte" in caplog.text
        assert await lab.version() == "wbc-1"
        lab.write("wbc-1", "own-1", "own-2*")  # only the default is compared with the reference
        await lab.until(lambda: not lab.models.stale)
        assert await lab.version("?model=own") == "own-1"


@on_a_loop
async def test_a_reference_of_other_labels_ends_the_start(tmp_path: Path) -> None:
    given = reference(tmp_path / "reference.json", FIVE)
    async with laboratory(tmp_path, "wbc-1", reference=given) as lab:
        [failure] = lab.failures
        assert "the drift reference has the classes neutrophil, basophil" in str(failure)
