"""The pipeline on batches with images that fail."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

from app.engine.classifier import Classifier
from app.errors import EngineError, LeukoError, TooLarge, UndecodableImage, Unusable
from app.imaging.decode import decode
from app.imaging.framing import Preprocessing, frame_cell
from app.imaging.limits import DEFAULT_LIMITS, ImageLimits
from app.inference.pipeline import Answer, FrameImage, InferenceItem, Pipeline
from tests.fake_classifier import NAN, FakeClassifier, png


def pipeline(classifier: FakeClassifier, limits: ImageLimits = DEFAULT_LIMITS) -> Pipeline:
    return Pipeline(cast(Classifier, classifier), framing(limits))


def framing(limits: ImageLimits = DEFAULT_LIMITS) -> FrameImage:
    preprocessing = Preprocessing(framing="whole", white_point=False)
    return lambda data, _: frame_cell(decode(data, limits), preprocessing)


def items(*images: bytes) -> list[InferenceItem]:
    return [InferenceItem(partial(bytes, image)) for image in images]


def label(answer: Answer | LeukoError) -> str:
    assert isinstance(answer, Answer)
    return answer.prediction.label


def test_an_image_that_cannot_be_decoded_fails_alone() -> None:
    first, bad, last = pipeline(FakeClassifier()).run(items(png(10), png(10)[:40], png(70)))
    assert (label(first), label(last)) == ("eosinophil", "lymphocyte")
    assert isinstance(bad, UndecodableImage)


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
