from __future__ import annotations

import pytest

from app.lazy_sequence import LazySequence


def test_an_item_is_made_when_it_is_asked_for_and_a_slice_is_a_list() -> None:
    made: list[int] = []

    def make(index: int) -> str:
        made.append(index)
        return "abcde"[index]

    letters = LazySequence(5, make)
    assert (len(letters), made) == (5, [])
    assert (letters[0], letters[-1], letters[1:3], letters[4:9]) == ("a", "e", ["b", "c"], ["e"])
    assert made == [0, 4, 1, 2, 4]
    assert [*letters] == [*"abcde"]
    with pytest.raises(IndexError):
        letters[5]
