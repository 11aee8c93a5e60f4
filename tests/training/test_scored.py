from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from app.engine.bundle import CLASSES
from app.engine.classifier import Neighbours
from training.calibration import bank_of, neighbours_of
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
    neighbours = neighbours_of(bank_of(bank, groups=8))
    assert neighbours.known.k == 10
    assert np.median(neighbours.score(bank)) == pytest.approx(1, rel=1e-5)
    assert neighbours.score(bank + 100).min() > 10


def test_a_bank_of_one_cell_has_a_scale_all_the_same() -> None:
    neighbours = neighbours_of(bank_of(np.ones((1, 4), np.float32), groups=1))
    assert neighbours == Neighbours(neighbours.known, 1.0)


def test_with_other_cells_a_score_is_how_much_nearer_they_are_than_the_known_ones() -> None:
    rng = np.random.default_rng(0)
    known, others = (rng.normal(mean, 1, size=(60, 16)).astype(np.float32) for mean in (0, 4))
    neighbours = neighbours_of(bank_of(known, 4), bank_of(others, 4))
    assert np.median(neighbours.score(known)) == pytest.approx(1, rel=1e-5)
    assert neighbours.score(others).min() > 2 * neighbours.score(known).max()
    # Another stain, say, that moves all cells away from both does not make them others.
    away = np.zeros(16, np.float32)
    away[0] = 30
    assert neighbours.score(known + away).max() < neighbours.score(others).min()
    assert np.isfinite(neighbours.score(others)).all()
