"""The pipeline on batches with images that fail."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

from app.engine.classifier import Classifier
from app.errors import DeadlinePassed, EngineError, LeukoError, TooLarge, UndecodableImage, Unusable
from app.imaging.decode import decode
from app.imaging.framing import Cell, Preprocessing, frame_cell
from app.imaging.limits import DEFAULT_LIMITS, ImageLimits
from app.inference.batcher import Postponed
from app.inference.pipeline import Answer, Field, FrameImage, InferenceItem, Pipeline, cost
from app.inference.threads import Heartbeat
from tests.fake_classifier import NAN, FakeClassifier, png


def pipeline(classifier: FakeClassifier, limits: ImageLimits = DEFAULT_LIMITS) -> Pipeline:
    return Pipeline(cast(Classifier, classifier), framing(limits))


def framing(limits: ImageLimits = DEFAULT_LIMITS) -> FrameImage:
    preprocessing = Preprocessing(framing="whole", white_point=False)
    return lambda data, _: frame_cell(decode(data, limits), preprocessing)


def items(*images: bytes) -> list[InferenceItem]:
    return [InferenceItem(partial(bytes, image)) for image in images]


def label(answer: Answer | Field | LeukoError) -> str:
    assert isinstance(answer, Answer)
    return answer.prediction.label


def test_an_image_that_cannot_be_decoded_fails_alone() -> None:
    first, bad, last = pipeline(FakeClassifier()).run(items(png(10), png(10)[:40], png(70)))
    assert (label(first), label(last)) == ("eosinophil", "lymphocyte")
    assert isinstance(bad, UndecodableImage)
    assert bad.__traceback__ is None  # it would keep the image in memory


def test_an_image_over_the_limits_or_unreadable_has_its_error_in_its_place() -> None:
    def refuse() -> bytes:
        raise Unusable("the file cannot be read")

    errors = pipeline(FakeClassifier(), ImageLimits(max_pixels=47)).run(
        [*items(png(10)), InferenceItem(refuse)]
    )
    assert [type(error) for error in errors] == [TooLarge, Unusable]


def test_an_output_that_is_not_finite_fails_its_image_alone() -> None:
    good, bad = pipeline(FakeClassifier()).run(items(png(10), png(NAN)))
    assert label(good) == "eosinophil"
    assert isinstance(bad, EngineError)


def test_the_sha256_is_of_the_bytes_as_uploaded() -> None:
    [answer] = pipeline(FakeClassifier()).run(items(png(10)))
    assert isinstance(answer, Answer)
    assert answer.image_sha256 == hashlib.sha256(png(10)).hexdigest()


def test_if_no_image_can_be_decoded_the_network_does_not_run() -> None:
    classifier = FakeClassifier()
    pipeline(classifier).run(items(b"", b"nothing"))
    assert classifier.exclusive == []


def test_exclusive_is_passed_to_the_network() -> None:
    classifier = FakeClassifier()
    for exclusive in (True, False):
        pipeline(classifier).run(items(png(10)), exclusive)
    assert classifier.exclusive == [True, False]


def test_each_decoding_and_the_run_of_the_network_are_timed() -> None:
    stages: list[str] = []

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        yield
        stages.append(stage)

    Pipeline(cast(Classifier, FakeClassifier()), framing(), timed).run(items(png(10), png(70)))
    assert stages == ["decode", "decode", "infer"]


def spread(data: bytes, _: Heartbeat) -> list[Cell]:
    """Frame the pictures after the first byte, which says how often each is in the field."""
    cell = framing()(data[1:], lambda: None)
    return [cell] * data[0]


def field(cells: int, grey: int = 10) -> InferenceItem:
    return InferenceItem(lambda: bytes([cells]) + png(grey), all_cells=True)


def fields(classifier: FakeClassifier, batch: int) -> Pipeline:
    return Pipeline(cast(Classifier, classifier), framing(), frame_all=spread, batch=batch)


class CountingClassifier(FakeClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def classify(self, cells, *, exclusive=True):  # type: ignore[no-untyped-def]
        self.batches.append(len(cells))
        return super().classify(cells, exclusive=exclusive)


def test_all_cells_of_an_image_are_numbered_and_have_its_hash() -> None:
    [answer] = fields(CountingClassifier(), 8).run([field(3)])
    assert isinstance(answer, Field)
    assert [cell.cell for cell in answer.cells] == [0, 1, 2]
    assert {cell.image_sha256 for cell in answer.cells} == {answer.image_sha256}
    assert answer.image_sha256 == hashlib.sha256(bytes([3]) + png(10)).hexdigest()
    assert cost(answer) == 3


def test_an_image_without_cells_has_an_answer_and_needs_no_network() -> None:
    classifier = CountingClassifier()
    [answer] = fields(classifier, 8).run([field(0)])
    assert isinstance(answer, Field)
    assert (answer.cells, cost(answer), classifier.batches) == ((), 1, [])


def test_cells_of_several_images_fill_batches_and_come_back_to_their_images() -> None:
    classifier = CountingClassifier()
    answers = fields(classifier, 4).run(
        [field(1, 10), *items(png(70)), field(5, 140), field(0), field(2, 200)]
    )
    counts = [len(answer.cells) for answer in answers if not isinstance(answer, LeukoError)]
    assert counts == [1, 1, 5, 0, 2]
    assert classifier.batches == [4, 3, 2]
    labels = [{cell.prediction.label for cell in answers[i].cells} for i in (0, 1, 2, 4)]  # type: ignore[union-attr]
    assert labels == [{"eosinophil"}, {"lymphocyte"}, {"monocyte"}, {"neutrophil"}]


def test_one_cell_that_fails_fails_its_image() -> None:
    bad, good = fields(CountingClassifier(), 4).run([field(2, NAN), field(2)])
    assert isinstance(bad, EngineError)
    assert isinstance(good, Field)


def test_an_image_of_many_cells_is_postponed_between_batches_and_goes_on_later() -> None:
    classifier = CountingClassifier()
    others_wait = True

    def hold(first: bool) -> LeukoError | None:
        return Postponed("another caller waits") if others_wait and not first else None

    item = InferenceItem(lambda: bytes([5]) + png(10), hold=hold, all_cells=True)
    pipeline = fields(classifier, 2)
    [postponed] = pipeline.run([item])
    assert isinstance(postponed, Postponed)
    assert (postponed.work, classifier.batches) == (2, [2])
    others_wait = False
    [answer] = pipeline.run([item])
    assert isinstance(answer, Field)
    assert [cell.cell for cell in answer.cells] == [0, 1, 2, 3, 4]
    assert classifier.batches == [2, 2, 1]


def test_an_image_that_nobody_waits_for_any_more_is_given_up_between_batches() -> None:
    classifier = CountingClassifier()
    calls: list[bool] = []

    def hold(first: bool) -> LeukoError | None:
        calls.append(first)
        return DeadlinePassed("over") if len(calls) > 1 else None

    [answer] = fields(classifier, 2).run(
        [InferenceItem(lambda: bytes([250]) + png(10), hold=hold, all_cells=True)]
    )
    assert isinstance(answer, DeadlinePassed)
    assert classifier.batches == [2]


def test_each_batch_gives_a_heartbeat() -> None:
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    fields(CountingClassifier(), 1).run([field(5)], heartbeat=beat)
    assert beats >= 5
