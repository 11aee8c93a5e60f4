from __future__ import annotations

import numpy as np
import pytest

from app.samples.shapes import Blob, Patch, rough


def blank() -> Patch:
    return Patch.blank(40, 30, 1.0)


def test_a_circle_covers_its_area_with_a_soft_edge() -> None:
    cover = blank().cover(Blob(20, 15, 10))
    assert cover.sum() == pytest.approx(np.pi * 100, rel=0.02)
    assert ((cover > 0.1) & (cover < 0.9)).any()


def test_scale_makes_the_same_drawing_of_more_pixels() -> None:
    large = Patch.blank(80, 60, 2.0).cover(Blob(20, 15, 10))
    assert large[::2, ::2] == pytest.approx(blank().cover(Blob(20, 15, 10)), abs=1e-5)


def test_drawing_in_a_part_draws_in_the_whole() -> None:
    patch = blank()
    part = patch.around(20, 15, 5)
    part.add(np.ones_like(part.x), (1.0, 2.0, 3.0))
    assert patch.density.sum(axis=(0, 1)).tolist() == [100, 200, 300]
    assert patch.density[15, 20].tolist() == [1, 2, 3]


def test_a_part_beyond_the_edge_is_empty() -> None:
    part = blank().around(-50, -50, 10)
    part.add(part.cover(Blob(-50, -50, 5)), (1.0, 1.0, 1.0))
    assert part.x.size == 0


def test_a_cleared_area_transmits_all_light() -> None:
    patch = blank()
    patch.add(np.ones_like(patch.x), (1.0, 1.0, 1.0))
    patch.clear(patch.cover(Blob(20, 15, 5)))
    assert patch.density[15, 20].tolist() == [0, 0, 0]
    assert patch.density[0, 0].tolist() == [1, 1, 1]


def test_near_blobs_run_together_and_far_ones_do_not() -> None:
    near = blank().fuse([Blob(14, 15, 6), Blob(24, 15, 6)])
    far = blank().fuse([Blob(8, 15, 6), Blob(32, 15, 6)])
    assert near[15, 19] > 0.9
    assert far[15, 20] == 0


def test_grain_is_centred_and_even_over_a_patch() -> None:
    grain = Patch.blank(200, 200, 1.0).grain(np.random.default_rng(0), 4)
    assert abs(grain.mean()) < 0.1
    assert 0.7 < grain.std() < 1.3


def test_a_rough_blob_is_near_its_radius_in_every_direction() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cover = blank().cover(rough(rng, 20, 15, 10))
        assert cover.sum() == pytest.approx(np.pi * 100, rel=0.15)
