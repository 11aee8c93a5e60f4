from __future__ import annotations

import json
from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.bundle import CLASSES
from app.errors import BundleError
from app.evaluation.answer_profile import CONFIDENCE_EDGES, Counts, Seen, dump, parse, summarise

seen = st.builds(Seen, st.sampled_from(CLASSES), st.floats(0.25, 1), st.floats(0, 20), st.booleans())
TABLE = dump(summarise([Seen("monocyte", 0.9, 1.2, review=True)], CLASSES, "one cell"))


@given(st.lists(seen, min_size=1))
def test_every_answer_is_counted_once_in_each_measure(answers: list[Seen]) -> None:
    profile = summarise(answers, CLASSES, "some")
    assert profile.n == sum(profile.labels.values()) == sum(profile.confidence.counts)
    assert profile.n == sum(profile.ood_score.counts)
    assert profile.review == sum(answer.review for answer in answers)
    assert sum(map(profile.share, CLASSES)) == pytest.approx(1)


@given(st.lists(seen, min_size=1))
def test_a_profile_survives_being_written_and_read(answers: list[Seen]) -> None:
    profile = summarise(answers, CLASSES, "some")
    again = parse(json.loads(json.dumps(dump(profile))), CLASSES)
    assert dump(again) == dump(profile)


def test_edges_belong_to_the_bin_below_as_in_prometheus() -> None:
    growing = Counts(CONFIDENCE_EDGES)
    for value in (0.3, 0.30001, 1.0, 1.5):
        growing.add(value)
    histogram = growing.histogram()
    assert histogram.counts[0] == 1
    assert histogram.counts[1] == 1
    assert histogram.counts[bisect_left(CONFIDENCE_EDGES, 1.0)] == 1
    assert histogram.counts[-1] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"n": 2},
        {"n": None},
        {"review": 2},
        {"review": -1},
        {"labels": {"monocyte": 1}},
        {"labels": dict.fromkeys(CLASSES, 1)},
        {"confidence": {"mean": 0.9, "edges": [1], "counts": [1, 0]}},
        {"ood_score": TABLE["ood_score"] | {"counts": [1]}},
        {"ood_score": 3},
        {"n": float("inf")},
        {"n": "1"},
        {"review": True},
        {"labels": [1, 2, 3, 4]},
        {"confidence": TABLE["confidence"] | {"mean": float("nan")}},
    ],
)
def test_an_invalid_profile_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="reference"):
        parse(TABLE | change, CLASSES)


def test_every_invalid_value_of_a_profile_is_named() -> None:
    with pytest.raises(BundleError) as caught:
        parse(TABLE | {"n": "1", "review": -1, "ood_score": 3}, CLASSES)
    for field in ("n must be a valid integer", "review must be greater", "ood_score must be an object"):
        assert field in caught.value.detail
    with pytest.raises(BundleError, match="the document must be an object"):
        parse([], CLASSES)
