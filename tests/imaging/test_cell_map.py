from __future__ import annotations

import numpy as np
import pytest

from app.imaging import cell_map
from app.imaging.cell_map import MOST_GAIN, CellMap, gain_of


def density(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).uniform(0, 1, (3, height, width)).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (5, 300), (97, 1)])
def test_a_picture_of_any_size_has_a_map(size: tuple[int, int]) -> None:
    seen = CellMap.of(density(*size))
    assert seen.leukocyte.shape == (-(-size[0] // 4), -(-size[1] // 4))
    assert np.isfinite(seen.red_cell).all()


def test_the_places_of_a_map_do_not_depend_on_the_blocks_it_is_computed_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = CellMap.of(density(60, 80)).leukocyte
    monkeypatch.setattr(cell_map, "BLOCK", 50)
    assert CellMap.of(density(60, 80)).leukocyte == pytest.approx(whole, abs=1e-5)


def test_weak_and_strong_stains_are_brought_to_the_same_strength() -> None:
    picture = density(20, 20)
    assert picture * gain_of(picture) == pytest.approx(0.5 * picture * gain_of(0.5 * picture), rel=1e-4)
    assert gain_of(np.zeros((3, 8, 8), np.float32)) == 1
    assert gain_of(1e-4 * picture) == MOST_GAIN
