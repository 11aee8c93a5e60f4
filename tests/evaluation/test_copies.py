from __future__ import annotations

from dataclasses import dataclass

import pytest

from app.errors import BadLabels
from app.evaluation.copies import adapted_to, cautions_of_copies, refuse_two_classes


@dataclass(frozen=True)
class Picture:
    name: str
    label: int


def test_one_picture_in_two_classes_is_refused_and_five_pairs_are_named() -> None:
    pictures = [Picture(f"{label}/{i}.png", label) for label in range(2) for i in range(7)]
    with pytest.raises(BadLabels, match=r"two classes: 0/0.png and 1/0.png; .* and 2 more"):
        refuse_two_classes(pictures, [str(i) for _ in range(2) for i in range(7)])


def test_copies_within_a_class_and_pictures_that_were_not_read_are_no_fault() -> None:
    refuse_two_classes(
        [Picture("a", 0), Picture("b", 0), Picture("c", 1), Picture("d", 0)], ["x", "x", "", ""]
    )
    refuse_two_classes([Picture("a", 0)], [])


def test_pictures_that_the_model_was_adapted_to_are_counted() -> None:
    known = adapted_to({"adapted": {"pictures": ["0" * 16, "1" * 16]}})
    (line,) = cautions_of_copies(["0" * 64, "2" * 64], known)
    assert "adapted to 1 of these 2 cells" in line
    assert not cautions_of_copies(["2" * 64], known)


@pytest.mark.parametrize("training", [{}, {"adapted": {"unlabelled": 60}}, {"adapted": 7}])
def test_a_bundle_that_records_no_pictures_knows_none(training: dict[str, object]) -> None:
    assert not adapted_to(training)
