"""Bodies of JSON: which are parsed at all, and where."""

from __future__ import annotations

import json
import threading
import tracemalloc
from io import BytesIO

import pytest

from app.api.json_bodies import SLICE, _do_small, count_values
from app.api.json_response import SLICE as ITEMS
from app.api.json_response import render
from app.api.json_tasks import Finished, Invalid, ScoreOutcomes, pack, unpack, work
from app.archives.images import StoredImage
from app.child_process import Child, ChildEnded, ChildTimeout, ChildTooLarge
from app.errors import BadLabels, TooLarge, UndecodableImage
from app.evaluation.verification import Answers
from app.inference.scoring import Progress, judge
from app.wire import responses
from app.wire.schemas import ImageProblem, ModelReference, Predictions
from tests.fake_classifier import FakeClassifier

LABELS = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
TASK = ScoreOutcomes("id", LABELS, 10)
OUTCOMES = b'{"labels":["monocyte",1],"predictions":[2,1]}'


class Untouched(ScoreOutcomes):
    def __call__(self, body: bytes) -> Finished:  # noqa: ARG002 (it must not be used)
        raise AssertionError("the body was parsed")


def in_process(task: ScoreOutcomes, body: bytes) -> Finished:
    return unpack(Child("app.api.json_tasks:work", limit_s=60, limit_mib=768).run(pack(task, body)))


def test_a_body_of_too_many_values_is_not_even_parsed() -> None:
    with pytest.raises(TooLarge, match="more than 10 rows"):
        _do_small(Untouched("id", LABELS, 10), b'{"labels":[' + b"1," * 200 + b"1]}")


@pytest.mark.parametrize("body", [b'{"labels":[' + b"1," * 9000 + b"1]}", b" " * 300_000 + OUTCOMES])
def test_a_large_body_is_left_to_a_process(body: bytes) -> None:
    assert _do_small(Untouched("id", LABELS, 10_000), body) is None


def test_values_are_counted_across_slices() -> None:
    assert count_values(b"[,:{" + b"x" * SLICE + b",") == 5


def test_a_process_answers_what_a_thread_does() -> None:
    assert in_process(TASK, OUTCOMES) == TASK(OUTCOMES)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"labels":["basophil"],"predictions":[1]}', BadLabels),
        (b'{"labels":[1,1,1,1,1,1,1,1,1,1,1]}', TooLarge),
        (b'{"labels":[null]}', Invalid),
    ],
)
def test_a_process_refuses_what_a_thread_does(body: bytes, kind: type[Exception]) -> None:
    with pytest.raises(kind) as here:
        TASK(body)
    with pytest.raises(kind) as there:
        in_process(TASK, body)
    assert str(there.value) == str(here.value)


def test_a_process_is_ended_at_its_limits() -> None:
    with pytest.raises(ChildTimeout):
        Child(f"{__name__}:rest", limit_s=1, limit_mib=2000).run([])
    with pytest.raises(ChildTooLarge):
        Child(f"{__name__}:grow", limit_s=60, limit_mib=300).run([])


def rest(_: object) -> bytes:
    threading.Event().wait()
    return b""


def grow(_: object) -> bytes:
    return bytes(400 * 2**20)[:0]


def test_a_process_that_was_closed_never_starts() -> None:
    child = Child("app.api.json_tasks:work", limit_s=60, limit_mib=768)
    child.close()
    with pytest.raises(ChildEnded):
        child.run([])


@pytest.mark.parametrize("count", [0, 1, ITEMS, ITEMS + 1, 3 * ITEMS])
def test_a_document_in_slices_is_the_same_json(count: int) -> None:
    problem = ImageProblem(type="t", title="ü", status=422, detail='"', code="c", index=1, filename=None)
    document = Predictions(
        request_id="id",
        model=ModelReference(name="m", version="1", sha256="f"),
        predictions=[],
        errors=[problem] * count,
    )
    assert render(document).decode() == document.model_dump_json()


def test_errors_of_an_evaluation_are_made_in_slices() -> None:
    count, failed = 20_000, UndecodableImage("the file is empty")
    bundle = FakeClassifier().bundle
    images = [StoredImage("a", bytes, 0)] * (count + 1)
    answers = Answers.empty(count + 1, 4)
    answers.probabilities[count] = (0.7, 0.1, 0.1, 0.1)
    answers.ood_scores[count] = 1.0
    scored = judge(bundle, images, None, answers, dict.fromkeys(range(count), failed))
    tracemalloc.start()
    try:
        rendered = render(responses.evaluation("id", bundle, images, scored, Progress(count + 1), lazy=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(json.loads(rendered)["errors"]) == count
    assert peak < 2.5 * len(rendered)


def test_the_process_reads_the_task_of_the_service_and_then_the_body() -> None:
    assert unpack(work(BytesIO(b"".join(pack(TASK, OUTCOMES))))) == TASK(OUTCOMES)
