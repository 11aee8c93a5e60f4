from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from app.engine.bundle import CLASSES
from app.engine.classifier import Neighbours
from training.calibration import neighbours_of
from training.data import Row
from training.scored import balanced_sample


def rows_of(archive: str, photos: int, files: int) -> list[Row]:
    return [
        Row(archive, f"{label}/{photo}_{i}", label, "train", f"{label}{photo}", True, "")
        for label in CLASSES
        for photo in range(photos)
        for i in range(files)
    ]


def test_a_sample_has_as_many_of_each_class_of_each_archive_spread_over_photos() -> None:
    rows = rows_of("few.zip", 3, 50) + rows_of("many.zip", 200, 1)
    chosen = balanced_sample(rows, 30)
    assert set(Counter((row.archive, row.label) for row in chosen).values()) == {30}
    few = Counter(row.source for row in chosen if (row.archive, row.label) == ("few.zip", "monocyte"))
    assert set(few) == {"monocyte0", "monocyte1", "monocyte2"}


def test_a_group_smaller_than_the_sample_is_taken_whole() -> None:
    assert len(balanced_sample(rows_of("few.zip", 2, 3), 30)) == 4 * 6


def test_the_scale_makes_a_typical_cell_of_the_bank_one() -> None:
    bank = np.random.default_rng(0).normal(size=(240, 16)).astype(np.float32)
    neighbours = neighbours_of(bank, groups=8)
    assert neighbours.k == 10
    assert np.median(neighbours.score(bank)) == pytest.approx(1, rel=1e-5)
    assert neighbours.score(bank + 100).min() > 10


def test_a_bank_of_one_cell_has_a_scale_all_the_same() -> None:
    neighbours = neighbours_of(np.ones((1, 4), np.float32), groups=1)
    assert (neighbours.k, neighbours.scale) == (1, 1.0)
    assert isinstance(neighbours, Neighbours)
