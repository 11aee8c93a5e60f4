from __future__ import annotations

import numpy as np
import pytest

from app.engine.laboratories import Styles, describe_all
from app.imaging.style import LENGTH
from training.calibration import styles_of


def descriptions(centre: float, n: int = 300) -> np.ndarray:
    """Return descriptions whose first number is far more spread than the others."""
    rng = np.random.default_rng(int(centre))
    spread = np.full(LENGTH, 0.1)
    spread[0] = 5.0
    drawn: np.ndarray = (centre + rng.normal(size=(n, LENGTH)) * spread).astype(np.float32)
    return drawn


@pytest.fixture
def styles() -> Styles:
    return styles_of(np.concatenate([descriptions(0), descriptions(4)]), ["a"] * 300 + ["b"] * 300)


def test_pictures_of_known_laboratories_are_near_and_others_far(styles: Styles) -> None:
    known = styles.distances(np.concatenate([descriptions(0), descriptions(4)]))
    assert np.square(known).mean() == pytest.approx(LENGTH, rel=0.1)
    assert styles.distances(descriptions(2)).min() > known.max()


def test_what_differs_within_a_laboratory_counts_less(styles: Styles) -> None:
    along, across = np.zeros((2, 1, LENGTH), np.float32)
    along[0, 0], across[0, 1] = 3.0, 3.0
    assert styles.distances(along)[0] < 1 < 10 < styles.distances(across)[0]


def test_cells_are_described_one_by_one() -> None:
    cells = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    assert describe_all(cells).shape == (3, LENGTH)
    assert (describe_all(cells)[1] == describe_all(cells[1:2])[0]).all()
