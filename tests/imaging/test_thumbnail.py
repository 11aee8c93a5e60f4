from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from app.imaging.thumbnail import Thumbnail, percentiles


@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 6912])
def test_percentiles_are_numpys(n: int) -> None:
    rows = np.random.default_rng(n).integers(0, 256, (3, n), dtype=np.uint8)
    assert percentiles(rows, (5, 95)) == pytest.approx(np.percentile(rows, (5, 95), axis=1), rel=1e-6)


def test_the_longer_side_has_96_pixels() -> None:
    thumbnail = Thumbnail.of(Image.new("RGB", (640, 480)))
    assert thumbnail.pixels.shape == (3, 72, 96)
    assert thumbnail.scale == pytest.approx(640 / 96)


def test_black_fill_is_not_background() -> None:
    image = Image.new("RGB", (96, 96))
    image.paste((200, 190, 180), (0, 0, 96, 8))
    assert Thumbnail.of(image).white.tolist() == [200, 190, 180]


def test_a_black_image_has_no_background() -> None:
    assert Thumbnail.of(Image.new("RGB", (96, 96))).levels.tolist() == [[0, 0, 0], [0, 0, 0]]
