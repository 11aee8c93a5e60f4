from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from app.imaging.regions import dilate, erode, fill, find_regions


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (37, 53)])
def test_regions_are_those_of_scipy(share: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(round(100 * share))
    mask = rng.random(shape) < share
    regions = find_regions(mask)
    expected, count = ndimage.label(mask)
    numbers = regions.numbers()
    assert regions.count == count
    assert np.array_equal(numbers >= 0, mask)
    pairs = {*zip(numbers[mask].tolist(), expected[mask].tolist(), strict=True)}
    assert len(pairs) == count  # one to one
    assert np.array_equal(regions.area, np.bincount(numbers[mask], minlength=count))


def test_a_spiral_is_one_region() -> None:
    rows = ["#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######"]
    regions = find_regions(np.array([[letter == "#" for letter in row] for row in rows]))
    assert regions.count == 1


def test_measures_of_a_rectangle() -> None:
    mask = np.zeros((30, 50), bool)
    mask[5:15, 10:40] = True
    regions = find_regions(mask)
    assert (regions.area[0], regions.x[0], regions.y[0]) == (300, 24.5, 9.5)
    assert regions.boxes[:, 0].tolist() == [10, 5, 40, 15]
    assert regions.at_edges[0] == 0
    assert regions.slimness[0] == pytest.approx(3)
    values = np.arange(1500, dtype=np.int32).reshape(30, 50)
    assert regions.sums(values)[0] == values[mask].sum()


def test_length_at_the_edges() -> None:
    mask = np.zeros((10, 12), bool)
    mask[0, 3:7] = True  # four pixels at the top
    mask[5:8, 11] = True  # three at the right
    assert find_regions(mask).at_edges.tolist() == [4, 3]


def test_a_choice_of_regions_is_their_pixels() -> None:
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]], bool)
    chosen = find_regions(mask).mask(np.array([True, False, True, False]))
    assert chosen.astype(int).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("diagonal", [False, True])
def test_erosion_and_dilation_are_those_of_scipy(diagonal: bool) -> None:
    mask = np.random.default_rng(0).random((20, 31)) < 0.7
    around = ndimage.generate_binary_structure(2, 2 if diagonal else 1)
    assert np.array_equal(dilate(mask, diagonal), ndimage.binary_dilation(mask, around))
    assert np.array_equal(erode(mask, diagonal), ndimage.binary_erosion(mask, around, border_value=1))


def test_small_holes_are_filled_and_large_ones_and_bays_are_not() -> None:
    mask = np.ones((20, 20), bool)
    mask[3, 3] = mask[10:14, 10:14] = mask[0, 15] = False
    filled = fill(mask, most=4)
    assert filled[3, 3]
    assert not filled[10:14, 10:14].any()
    assert not filled[0, 15]
