from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from app.errors import TooLarge
from app.imaging import resize
from app.imaging.framing import Preprocessing, frame_cell, frame_cells
from app.imaging.quality import QualityLimits
from app.samples.smear import draw_smear
from tests.fields import FOUR, field
from tests.pictures import levels_apart

SMEAR, RED_CELL, NUCLEUS = (225, 220, 225), (205, 160, 165), (95, 60, 170)


def smear(x: float, y: float, radius: float, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Return an image with a nucleus at (x, y) among red cells."""
    image = Image.new("RGB", size, SMEAR)
    draw = ImageDraw.Draw(image)
    for cx in range(20, size[0], 70):
        for cy in range(20, size[1], 70):
            draw.ellipse((cx - 18, cy - 18, cx + 18, cy + 18), fill=RED_CELL)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=NUCLEUS)
    return image


@pytest.mark.parametrize(("x", "y"), [(160, 120), (90, 150), (240, 80)])
def test_the_frame_is_centred_on_the_nucleus(x: float, y: float) -> None:
    frame = frame_cell(smear(x, y, 24), Preprocessing()).frame
    assert frame.nucleus
    assert frame.left + frame.width / 2 == pytest.approx(x, abs=4)
    assert frame.top + frame.height / 2 == pytest.approx(y, abs=4)


def test_the_frame_grows_with_the_nucleus() -> None:
    small, large = (frame_cell(smear(160, 120, radius), Preprocessing()).frame.width for radius in (16, 32))
    assert large / small == pytest.approx(2, rel=0.15)


def test_the_frame_does_not_depend_on_the_pictures_resolution() -> None:
    image = smear(160, 120, 24)
    twice = frame_cell(image.resize((640, 480)), Preprocessing()).frame
    assert twice.width == pytest.approx(2 * frame_cell(image, Preprocessing()).frame.width, rel=0.05)


def test_a_cell_at_the_edge_is_framed_inside_the_picture() -> None:
    left, top, right, bottom = frame_cell(smear(310, 5, 24), Preprocessing()).frame.box
    assert left >= 0
    assert top >= 0
    assert right <= 320
    assert bottom <= 240


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (320, 240), SMEAR),
        Image.new("RGB", (320, 240), "black"),
        Image.new("RGB", (320, 240), NUCLEUS),
        Image.new("RGB", (1, 1), "white"),
        Image.new("RGB", (3000, 1), "white"),
        Image.effect_noise((320, 240), 60).convert("RGB"),
    ],
    ids=["background", "black", "all nucleus", "one pixel", "a line", "noise"],
)
def test_without_a_nucleus_the_whole_picture_is_used(image: Image.Image) -> None:
    cell = frame_cell(image, Preprocessing())
    assert not cell.frame.nucleus
    assert cell.frame.box == (0, 0, *image.size)
    assert cell.pixels.shape == (224, 224, 3)
    assert cell.pixels.dtype == np.uint8


def test_framing_whole_is_exactly_pillows_resize_without_cykooz_resizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resize, "vectors", None)
    image = smear(160, 120, 24)
    cell = frame_cell(image, Preprocessing(framing="whole", white_point=False))
    assert np.array_equal(cell.pixels, np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)))


def test_framing_whole_resizes_the_whole_picture_and_changes_no_colour() -> None:
    image = smear(160, 120, 24)
    cell = frame_cell(image, Preprocessing(framing="whole", white_point=False))
    assert levels_apart(cell.pixels, image.resize((224, 224), Image.Resampling.BILINEAR)) <= 1


def test_the_white_point_removes_a_tint_from_the_background() -> None:
    tinted = smear(160, 120, 24).point([round(v * g) for g in (1.0, 0.9, 0.8) for v in range(256)])
    pixels = frame_cell(tinted, Preprocessing()).pixels
    assert np.ptp(np.median(pixels.reshape(-1, 3), axis=0)) <= 4


def test_the_black_fill_around_a_turned_picture_is_not_taken_for_background() -> None:
    pixels = frame_cell(smear(160, 120, 24).rotate(20), Preprocessing()).pixels
    assert np.percentile(pixels, 95) == pytest.approx(240, abs=6)


def test_each_cell_of_a_field_is_framed_as_if_it_were_alone() -> None:
    image, cells = field(("neutrophil", "monocyte"), 7)
    preprocessing = Preprocessing(size=112)
    framed = frame_cells(image, preprocessing, most=2)
    assert [each.quality.found for each in framed] == [1, 1]
    assert len(framed) == 2
    for cell in framed:
        left, top, right, bottom = cell.frame.box
        corner = (max(0, round(left) - 60), max(0, round(top) - 60))
        around = (*corner, min(image.width, round(right) + 60), min(image.height, round(bottom) + 60))
        alone = frame_cell(image.crop(around), preprocessing)
        assert alone.frame.width == pytest.approx(cell.frame.width, rel=0.1)
        assert np.abs(alone.pixels.astype(int) - cell.pixels).mean() < 12
        assert any(left < c.x < right and top < c.y < bottom for c in cells)


def test_more_cells_than_the_limit_are_refused() -> None:
    with pytest.raises(TooLarge, match="2 leukocytes; at most 1"):
        frame_cells(field(("neutrophil", "monocyte"), 7)[0], Preprocessing(), most=1)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("scale", [0.35, 1.0, 4.0])
@pytest.mark.parametrize("label", FOUR)
def test_the_frame_of_the_only_cell_of_a_field_is_that_of_one_cell(
    label: str, scale: float, cut: bool
) -> None:
    image, [cell] = field((label,), 6, width=320, height=240)
    left = round(cell.x - 0.4 * cell.radius) if cut else 0
    image = image.crop((left, 0, image.width, image.height))
    image = image.resize((round(scale * image.width), round(scale * image.height)))
    [found] = frame_cells(image, Preprocessing(), most=9)
    one = frame_cell(image, Preprocessing())
    assert found.frame == one.frame
    assert np.array_equal(found.pixels, one.pixels)


def test_a_bundle_of_whole_images_takes_each_as_one_cell() -> None:
    [cell] = frame_cells(field(("neutrophil", "monocyte"), 7)[0], Preprocessing(framing="whole"), most=1)
    assert (cell.frame.width, cell.frame.height) == (640, 480)


def test_a_picture_of_several_cells_is_marked_and_one_of_one_is_not() -> None:
    several = frame_cell(field()[0], Preprocessing()).quality
    one = frame_cell(draw_smear("neutrophil", seed=1), Preprocessing()).quality
    assert (several.leukocytes, one.leukocytes) == (4, 1)
    assert "several_cells" in QualityLimits().reasons(several)
    assert "several_cells" not in QualityLimits().reasons(one)
    assert "several_cells" not in QualityLimits(leukocytes=4).reasons(several)


@pytest.mark.parametrize("label", ["lymphocyte", "monocyte"])
def test_a_cell_of_a_field_that_the_edge_cuts_is_marked_and_a_whole_one_is_not(label: str) -> None:
    image, [cell] = field((label,), 6, width=320, height=240)
    limits = QualityLimits()
    for kept, expected in ((0.7, ("cut_off",)), (0.8, ("cut_off",)), (1.2, ()), (1.4, ())):
        left = round(cell.x - (2 * kept - 1) * cell.radius)
        [found] = frame_cells(image.crop((left, 0, *image.size)), Preprocessing(), most=9)
        assert limits.reasons(found.quality) == expected


def test_of_one_cell_only_the_nucleus_at_the_edge_counts() -> None:
    image, [cell] = field(("lymphocyte",), 6, width=320, height=240)
    part = image.crop((round(cell.x - 0.6 * cell.radius), 0, *image.size))
    one = frame_cell(part, Preprocessing()).quality
    assert (one.outside, QualityLimits().reasons(one)) == (0, ())


def test_finds_that_may_be_one_cell_are_several_cells() -> None:
    image, _ = field(("lymphocyte", "monocyte"), 4, width=320, height=240, touching=True)
    found = frame_cells(image, Preprocessing(), most=9)
    assert [cell.quality.leukocytes for cell in found] == [2, 2]
    assert all("several_cells" in QualityLimits().reasons(cell.quality) for cell in found)


def test_small_cells_of_a_large_picture_are_framed_and_counted_though_its_thumbnail_shows_no_nucleus() -> (
    None
):
    part, [cell] = field(("lymphocyte",), 6, width=320, height=240, scale=0.5)
    image = Image.new("RGB", (1600, 1200))
    for place in range(25):
        image.paste(part, (place % 5 * 320, place // 5 * 240))
    framed = frame_cell(image, Preprocessing())
    assert framed.quality.leukocytes == 25
    assert "several_cells" in QualityLimits().reasons(framed.quality)
    x, y = framed.frame.left + framed.frame.width / 2, framed.frame.top + framed.frame.height / 2
    assert (x, y) == pytest.approx((640 + cell.x, 480 + cell.y), abs=cell.radius / 2)
    assert framed.frame in [each.frame for each in frame_cells(image, Preprocessing(), most=25)]
