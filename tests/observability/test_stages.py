from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import cast

from app.engine.classifier import Classifier
from app.imaging.decode import decode
from app.imaging.framing import frame_cell
from app.inference.pipeline import InferenceItem, Pipeline
from app.observability.stages import MOST, Stages
from tests.fake_classifier import FakeClassifier, png


def test_intervals_of_a_stage_that_touch_are_one_and_stages_come_in_their_order() -> None:
    stages = Stages()
    for name, began, ended in [("infer", 5, 7), ("decode", 3, 4), ("decode", 1, 2), ("decode", 1.5, 2.5)]:
        stages.add(name, began, ended)
    stages.add("receive", 0, 1)
    assert list(stages.intervals().items()) == [
        ("receive", [(0, 1)]),
        ("decode", [(1, 2.5), (3, 4)]),
        ("infer", [(5, 7)]),
    ]
    assert stages.milliseconds() == {"receive": 1000, "decode": 2500, "infer": 2000}


def test_a_long_request_keeps_few_intervals_and_its_total_time() -> None:
    stages = Stages()
    for image in range(10_000):
        stages.add("decode", image, image + 0.25)
        stages.add("infer", image + (0.5 if image % 1000 else 0.75), image + 1)
    assert {name: len(parts) for name, parts in stages.intervals().items()} == {"decode": MOST, "infer": MOST}
    assert [parts[0][0] for parts in stages.intervals().values()] == [0, 0.75]
    assert [parts[-1][1] for parts in stages.intervals().values()] == [9999.25, 10_000]
    assert stages.milliseconds() == {"decode": 2_500_000, "infer": 5_000_000 - 10 * 250}


def test_threads_that_add_at_the_same_time_lose_nothing() -> None:
    stages = Stages()

    def add(thread: int) -> None:
        for part in range(2000):
            stages.add("decode", 8 * part + 2 * thread, 8 * part + 2 * thread + 1)
            together.wait()

    together = Barrier(4)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            [*pool.map(add, range(4))]
    finally:
        sys.setswitchinterval(usual)
    assert stages.milliseconds() == {"decode": 8_000_000}


def test_the_stage_respond_begins_at_the_end_of_the_last_stage() -> None:
    stages = Stages()
    stages.respond()
    assert stages.intervals() == {}
    with stages.time("receive"):
        pass
    ended = time.monotonic()
    stages.respond()
    [(began, finished)] = stages.intervals()["respond"]
    assert began <= ended <= finished


def test_a_stage_that_fails_is_timed_too() -> None:
    stages = Stages()
    try:
        with stages.time("receive"):
            raise ValueError
    except ValueError:
        pass
    assert "receive" in stages.intervals()


def test_each_request_of_a_batch_gets_the_stages_of_its_own_images() -> None:
    classifier = cast(Classifier, FakeClassifier())
    preprocessing = classifier.bundle.preprocessing
    pipeline = Pipeline(classifier, lambda data, _: frame_cell(decode(data), preprocessing))
    one, other = Stages(), Stages()
    items = [InferenceItem(lambda: png(1), stages=stages) for stages in (one, other, other)]
    pipeline.run([*items, InferenceItem(lambda: png(2))])
    assert list(one.intervals()) == list(other.intervals()) == ["queue", "decode", "infer"]
    assert len(one.intervals()["decode"]) == 1
    [(_, waited)], [(decoding, _)] = one.intervals()["queue"], one.intervals()["decode"]
    assert waited <= decoding
