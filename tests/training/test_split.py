from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from app.engine.bundle import CLASSES
from training.data import Row
from training.errors import DataError
from training.split import (
    divided_sources,
    hold_out,
    into_folds,
    parse_ratio,
    split_by_file_leaking,
    split_by_source,
    thin,
)


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
    rows = [row for row in photos(5) if row.label != "monocyte" or row.source in ("monocyte0", "monocyte1")]
    with pytest.raises(DataError, match="monocyte has 2 source photos, too few for 3 splits; add photos"):
        split_by_source(rows, (0.6, 0.2, 0.2), 0)


def slides(**cells: str) -> list[Row]:
    """Return a row for each letter, which is its slide; keywords are classes."""
    return [
        Row("a.zip", f"{label}/{n}.jpg", label, "train", slide, True, "")
        for label, letters in cells.items()
        for n, slide in enumerate(letters)
    ]


def sides(rows: list[Row], label: str) -> dict[str, set[str]]:
    """Return the splits of each slide with cells of a class."""
    found: dict[str, set[str]] = {}
    for row in rows:
        if row.label == label:
            found.setdefault(row.source, set()).add(row.split)
    return found


def test_a_class_of_a_single_slide_is_split_by_file_and_the_others_by_slide() -> None:
    rows = split_by_source(slides(monocyte="ABCDABCD", neutrophil="EEEEEEEE"), (0.5, 0.25, 0.25), 0)
    assert sides(rows, "neutrophil") == {"E": {"train", "val", "test"}}
    assert all(len(found) == 1 for found in sides(rows, "monocyte").values())
    assert divided_sources(rows) == ["neutrophil"]
    with pytest.raises(DataError, match="neutrophil has 2 files of 1 source, too few for 3 splits"):
        split_by_source(slides(monocyte="ABC", neutrophil="EE"), (0.5, 0.25, 0.25), 0)


def test_other_cells_of_a_single_slide_stay_together() -> None:
    cells = slides(monocyte="ABCDEE", neutrophil="EEEEEEEE")
    for seed in range(5):
        rows = split_by_source(cells, (0.5, 0.5), seed)
        assert len(sides(rows, "neutrophil")["E"]) == 2
        assert all(len(found) == 1 for found in sides(rows, "monocyte").values())


def test_a_class_that_is_rare_on_every_slide_is_in_every_split() -> None:
    cells = slides(basophil="AB", neutrophil="AAAABBBBCCCCDDDDEEEEFFFFGGGG")
    for seed in range(20):
        rows = split_by_source(cells, (0.8, 0.2), seed)
        assert set.union(*sides(rows, "basophil").values()) == {"train", "test"}
        assert divided_sources(rows) == []


def test_slides_that_cannot_give_every_class_to_every_split_are_divided_for_few_classes() -> None:
    rows = split_by_source(slides(basophil="ABAB", monocyte="BCBC", neutrophil="ACAC"), (0.5, 0.5), 0)
    for label in ("basophil", "monocyte", "neutrophil"):
        assert set.union(*sides(rows, label).values()) == {"train", "test"}
    assert len(divided_sources(rows)) <= 1


def test_folds_of_a_single_slide_hold_each_cell_out_once() -> None:
    rows = slides(monocyte="ABCDABCD", neutrophil="EEEEEEEE")
    division = into_folds(rows, 4, 0, "")
    assert {division.part(row) for row in rows if row.label == "neutrophil"} == {0, 1, 2, 3}
    assert division.by_file == {"neutrophil"}
    assert division.part(Row("a.zip", "x.jpg", "monocyte", "train", "Z", True, "")) is None


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
