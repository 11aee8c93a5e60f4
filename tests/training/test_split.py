from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from app.engine.bundle import CLASSES
from training.data import Row
from training.errors import DataError
from training.split import hold_out, parse_ratio, split_by_file_leaking, split_by_source, thin


def photos(n: int, copies: int = 3) -> list[Row]:
    return [
        Row("a.zip", f"{label}/{photo}_{copy}.jpg", label, "train", f"{label}{photo}", True, "")
        for label in CLASSES
        for photo in range(n)
        for copy in range(copies)
    ]


def test_no_photo_is_on_two_sides_of_a_split() -> None:
    rows = split_by_source(photos(20), parse_ratio("80:10:10"), seed=3)
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row.source, set()).add(row.split)
    assert all(len(splits) == 1 for splits in sides.values())


def test_every_class_is_split_in_the_ratio() -> None:
    rows = split_by_source(photos(20), parse_ratio("80:10:10"), seed=3)
    counts = Counter((row.label, row.split) for row in rows)
    assert {counts[label, "train"] for label in CLASSES} == {16 * 3}
    assert {counts[label, "val"] for label in CLASSES} == {2 * 3}
    assert {counts[label, "test"] for label in CLASSES} == {2 * 3}


def test_a_split_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    assert (
        split_by_source(photos(20), (0.5, 0.5), 1) == split_by_source(photos(20)[::-1], (0.5, 0.5), 1)[::-1]
    )
    assert split_by_source(photos(20), (0.5, 0.5), 1) != split_by_source(photos(20), (0.5, 0.5), 2)


def test_too_few_photos_of_a_class_are_named() -> None:
    rows = [row for row in photos(5) if row.label != "monocyte" or row.source == "monocyte0"]
    with pytest.raises(DataError, match="monocyte has 1 source photos, too few for 2 splits"):
        split_by_source(rows, (0.8, 0.2), 0)


def test_the_split_by_file_leaks_as_its_name_says() -> None:
    rows = split_by_file_leaking(photos(20), (0.8, 0.2), 0)
    train = {row.source for row in rows if row.split == "train"}
    assert train & {row.source for row in rows if row.split == "test"}


@pytest.mark.parametrize("text", ["80", "80:20:0", "a:b", "1:2:3:4", "-1:2"])
def test_an_invalid_ratio_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="is not a ratio"):
        parse_ratio(text)


def test_holding_out_leaves_uncertain_rows_on_neither_side() -> None:
    rows = photos(10)
    rows[0] = replace(rows[0], certain=False)
    train, validation = hold_out(rows, 0.2, 0)
    assert len(train) + len(validation) == len(rows) - 1
    assert not {row.source for row in train} & {row.source for row in validation}


def test_thinning_keeps_some_files_of_every_photo() -> None:
    thinned = thin(photos(5, copies=4), 2, 0)
    assert set(Counter(row.source for row in thinned).values()) == {2}


@pytest.mark.parametrize(
    "text",
    ["nan:1", "1:nan", "inf:1", "1e400:1", "1e308:1e308", "0:1", "-1:2", "80", "1:2:3:4", "", ":", "a:b"],
)
def test_what_is_no_ratio_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="is not a ratio"):
        parse_ratio(text)


@pytest.mark.parametrize("text", ["1:99", "99:1", "1:1:98", "98:1:1", "1:98:1", "1e-300:1", "1:1:1"])
@pytest.mark.parametrize("count", [3, 4, 5, 50])
def test_every_split_gets_a_source_whatever_the_ratio(text: str, count: int) -> None:
    ratio = parse_ratio(text)
    for split in (split_by_source, split_by_file_leaking):
        counts = Counter(row.split for row in split(photos(count, 1), ratio, 0))
        assert (len(counts), counts.total()) == (len(ratio), 4 * count)


def test_too_few_files_are_named() -> None:
    with pytest.raises(DataError, match="2 files, too few for 3 splits"):
        split_by_file_leaking(photos(1, 1)[:2], (0.4, 0.3, 0.3), 0)
