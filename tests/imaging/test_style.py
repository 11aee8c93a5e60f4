from __future__ import annotations

import numpy as np
import pytest

from app.imaging.framing import Preprocessing, frame_cell
from app.imaging.style import LENGTH, describe
from app.samples.smear import draw_smear

PREPROCESSING = Preprocessing(size=112)


def test_a_description_has_a_fixed_length_and_is_finite_whatever_the_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((224, 224, 3), 255, np.uint8)
    for pixels in (noise, black, white):
        description = describe(pixels)
        assert description.shape == (LENGTH,)
        assert np.isfinite(description).all()


def test_turning_or_mirroring_a_cell_hardly_changes_its_description() -> None:
    pixels = frame_cell(draw_smear("monocyte", seed=1), PREPROCESSING).pixels
    for turned in (np.rot90(pixels), pixels[:, ::-1]):
        assert describe(turned) == pytest.approx(describe(pixels), abs=0.1)


def test_padding_is_left_out() -> None:
    pixels = frame_cell(draw_smear("neutrophil", seed=2), PREPROCESSING).pixels
    padded = pixels.copy()
    padded[:6] = 0
    assert describe(padded)[:18] == pytest.approx(describe(pixels)[:18], abs=0.05)


def test_another_stain_or_sharpness_changes_it_more_than_another_cell() -> None:
    cells = [frame_cell(draw_smear("lymphocyte", seed=i), PREPROCESSING).pixels for i in range(8)]
    descriptions = np.stack([describe(pixels) for pixels in cells])
    spread = descriptions.std(0) + 0.02
    paler = np.stack([describe((255 - (255 - p.astype(int)) * 0.6).astype(np.uint8)) for p in cells])
    assert (np.abs(paler - descriptions) / spread).max(1).min() > 3
