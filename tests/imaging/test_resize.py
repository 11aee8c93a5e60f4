from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.imaging import resize as module
from app.imaging.resize import Box, resize
from tests.pictures import levels_apart

sides = st.integers(1, 300)
shares = st.floats(0, 1)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@settings(max_examples=300, deadline=None)
@given(width=sides, height=sides, size=sides, x=shares, y=shares, part=st.floats(0.01, 1))
def test_a_crop_is_pillows_within_one_level_a_direction(
    width: int, height: int, size: int, x: float, y: float, part: float
) -> None:
    image, side = noise(width, height), part * min(width, height)
    left, top = x * (width - side), y * (height - side)
    box: Box = (left, top, min(left + side, width), min(top + side, height))
    made = resize(image, (size, size), Image.Resampling.BILINEAR, box)
    assert levels_apart(made, image.resize((size, size), Image.Resampling.BILINEAR, box=box)) <= 2


@pytest.mark.parametrize("size", [(320, 240), (360, 363), (640, 480), (1920, 1200), (4000, 3000), (96, 1)])
def test_a_thumbnail_is_pillows_within_one_level(size: tuple[int, int]) -> None:
    image, scale = noise(*size), 96 / max(size)
    small = round(size[0] * scale), max(1, round(size[1] * scale))
    made = resize(image, small, Image.Resampling.BOX)
    assert levels_apart(made, image.resize(small, Image.Resampling.BOX)) <= 1


@pytest.mark.parametrize("resampling", [Image.Resampling.BOX, Image.Resampling.BILINEAR])
def test_pillow_resizes_where_cykooz_resizer_is_not_installed(
    resampling: Image.Resampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "vectors", None)
    image, box = noise(70, 50), (1.5, 2.25, 41.5, 42.25)
    made = resize(image, (32, 32), resampling, box)
    assert levels_apart(made, image.resize((32, 32), resampling, box=box)) == 0
