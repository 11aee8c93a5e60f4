"""All leukocytes of drawn fields, and of real ones where they are."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from app.imaging.leukocytes import (
    colour_beside,
    count_leukocytes,
    in_reading_order,
    mark_crowded,
    mark_cut,
)
from app.imaging.nucleus import Nucleus, find_nucleus
from app.imaging.thumbnail import Thumbnail
from app.samples.smear import LEUKOCYTES, draw_smear
from benchmarks import fields as benchmark
from tests.fields import FOUR, field, find, hits
from tests.pictures import real
from training.fields.scenes import bccd, draaslan


def nucleus(x: float, y: float, extent: float = 20) -> Nucleus:
    return Nucleus(x, y, extent, 1.0, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_every_leukocyte_of_a_field_is_found_once_and_nothing_else(seed: int) -> None:
    image, cells = field(FOUR, seed)
    assert hits(find(image), cells) == [1, 1, 1, 1]


@pytest.mark.parametrize("scale", [0.5, 0.75, 2.0])
def test_the_magnification_does_not_matter(scale: float) -> None:
    size = {"width": round(640 * scale), "height": round(480 * scale)}
    image, cells = field(FOUR, 2, scale=scale, **size)
    assert hits(find(image), cells) == [1, 1, 1, 1]


@pytest.mark.parametrize("turn", [Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180])
def test_the_orientation_does_not_matter(turn: Image.Transpose) -> None:
    image, _ = field(FOUR, 1)
    assert len(find(image.transpose(turn))) == 4


def test_thirty_cells_are_thirty() -> None:
    image, cells = field(("lymphocyte", "neutrophil", "monocyte") * 10, 3, width=960, height=720, scale=0.75)
    assert hits(find(image), cells) == [1] * 30


@pytest.mark.parametrize("pair", [*combinations(FOUR, 2)])
def test_cells_in_touch_are_two(pair: tuple[str, str]) -> None:
    image, cells = field(pair, 4, width=320, height=240, touching=True)
    assert hits(find(image), cells) == [1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_a_field_without_leukocytes_has_none(seed: int) -> None:
    assert find(field((), seed)[0]) == []


@pytest.mark.parametrize("label", LEUKOCYTES)
def test_of_a_picture_of_one_cell_the_nucleus_is_that_of_one_cell(label: str) -> None:
    image = draw_smear(label, seed=5)
    [found] = find(image)
    one = find_nucleus(image, Thumbnail.of(image))
    assert found == one


def test_a_cell_at_the_edge_is_found_and_known_as_cut() -> None:
    image, cells = field(("lymphocyte",), 6, width=320, height=240)
    half = image.crop((round(cells[0].x), 0, image.width, image.height))
    [found] = find(half)
    assert found.cut > 1.2


def test_two_finds_within_a_cell_s_width_are_marked_and_further_ones_are_not() -> None:
    one, near, far, small = nucleus(100, 100), nucleus(133, 100), nucleus(100, 136), nucleus(300, 100, 8)
    beside = nucleus(315, 100, 8)
    marked = mark_crowded([one, near, far, small, beside], red_cell=20)
    assert [each.crowded for each in marked] == [True, True, False, False, False]
    assert [each.crowded for each in mark_crowded([one, near], red_cell=18)] == [False, False]
    assert mark_crowded([], red_cell=20) == []


def test_cells_apart_are_not_marked_as_one() -> None:
    image, _ = field(("lymphocyte", "neutrophil", "monocyte") * 10, 3, width=960, height=720, scale=0.75)
    assert not any(each.crowded for each in find(image))


@pytest.mark.parametrize("place", [(8, 100), (100, 8), (192, 100), (100, 192)])
def test_how_much_of_a_cell_is_outside_is_estimated_at_each_edge(place: tuple[float, float]) -> None:
    assert mark_cut(nucleus(*place), 10, (200, 200)).outside == pytest.approx(10 / 36)
    assert mark_cut(nucleus(*place, 2), 20, (200, 200)).outside == pytest.approx(14 / 44)
    assert mark_cut(nucleus(100, 100), 20, (200, 200)).outside == 0


def test_a_scale_bar_and_its_text_are_not_cells() -> None:
    image = field(FOUR, 1)[0].copy()
    draw = ImageDraw.Draw(image)
    for colour, y in (((90, 60, 170), 200), ((0, 0, 0), 225), ((40, 40, 200), 250)):
        draw.rectangle((250, y, 390, y + 9), fill=colour)
        draw.text((270, y - 12), "10 um", fill=colour)
    assert len(find(image)) == 4


@pytest.mark.parametrize("colour", ["white", "black", "grey", (120, 60, 180), (200, 120, 130)])
def test_a_picture_of_one_colour_has_no_cells(colour: str | tuple[int, int, int]) -> None:
    assert find(Image.new("RGB", (320, 240), colour)) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (8, 8), (2000, 20)])
def test_pictures_of_any_shape_can_be_searched(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for image in (Image.new("RGB", size, "white"), Image.fromarray(noise)):
        assert len(find(image)) <= size[0] * size[1]


def test_noise_of_nuclear_colour_is_searched_in_bounded_time() -> None:
    """Thousands of specks near each other: joining each with each other would take minutes."""
    rng = np.random.default_rng(0)
    specks = np.kron(rng.random((300, 300)) < 0.3, np.ones((3, 3)))[..., None]
    image = Image.fromarray(np.where(specks, (95, 60, 170), (225, 220, 225)).astype(np.uint8))
    assert len(find(image)) < 20_000


@pytest.mark.parametrize("gain", [(1.0, 0.85, 0.7), (0.7, 0.9, 1.0), (0.6, 0.6, 0.6)])
def test_the_lamp_and_the_white_balance_do_not_matter(gain: tuple[float, float, float]) -> None:
    image, cells = field(FOUR, 1)
    tinted = image.point([round(level * share) for share in gain for level in range(256)])
    assert hits(find(tinted), cells) == [1, 1, 1, 1]


def test_reading_order_is_by_lines() -> None:
    lines = [[nucleus(30, 12), nucleus(100, 8), nucleus(180, 15)], [nucleus(20, 62), nucleus(90, 58)]]
    expected = [*lines[0], *lines[1]]
    assert in_reading_order(expected[::-1]) == expected


def test_one_cell_is_counted_as_one_and_four_as_four() -> None:
    for image, expected in ((draw_smear("neutrophil", seed=1), 1), (field(FOUR, 1)[0], 4)):
        thumbnail = Thumbnail.of(image)
        nucleus = find_nucleus(image, thumbnail)
        assert nucleus is not None
        assert count_leukocytes(image, thumbnail, nucleus) == expected


def test_real_fields_have_their_cells_and_hardly_anything_else() -> None:
    """Three of the 103 boxes hold no leukocyte that one could see."""
    real("draaslan-fields.zip")
    tally = benchmark.measure(draaslan())
    assert tally.found >= 99
    assert tally.false + tally.twice <= 5


def test_cells_that_the_edge_cuts_and_cells_found_twice_are_marked_in_real_fields() -> None:
    """25 cells of BCCD are cut plainly; of each hundred that are whole, at most 3 may be marked."""
    real("bccd-originals.zip")
    marks = benchmark.mark([*bccd(held_out=True), *bccd(held_out=False), *draaslan()])
    assert sum(marks.cut) >= 0.96 * len(marks.cut) >= 24
    assert sum(marks.whole) <= 0.03 * len(marks.whole)
    assert sum(marks.twice) >= 0.9 * len(marks.twice)
    assert sum(marks.once) <= 0.02 * len(marks.once)


def test_the_colour_beside_the_nuclei_is_that_of_red_cells() -> None:
    image = Image.new("RGB", (192, 96), (230, 230, 230))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 60, 60), fill=(95, 60, 170))
    draw.ellipse((110, 20, 170, 80), fill=(150, 150, 200))  # a red cell that stains blue
    nuclear = [
        float(np.log(230 / red) + np.log(230 / green) - 2 * np.log(230 / blue))
        for red, green, blue in ((95, 60, 170), (150, 150, 200))
    ]
    thumbnail = Thumbnail.of(image)
    assert colour_beside(thumbnail, [nucleus(40, 40, 36)]) == pytest.approx(nuclear[1], rel=0.05)
    assert colour_beside(thumbnail, []) <= nuclear[0]
    assert colour_beside(thumbnail, [nucleus(40, 40, 36), nucleus(140, 50, 60)]) == 0
