from __future__ import annotations

import csv
import io
import zipfile
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image, ImageDraw

from app.imaging.decode import decode
from app.imaging.nucleus import Nucleus, box_sum, find_nucleus
from app.imaging.thumbnail import Thumbnail
from tests.pictures import real

SMEAR, RED_CELL, NUCLEUS, PLATELET = (225, 220, 225), (205, 160, 165), (95, 60, 170), (120, 70, 180)
DARK_RED_CELL = (140, 50, 60)  # absorbs more green than the nucleus, but blue as well


def smear(x: float, y: float, radius: float) -> Image.Image:
    """Return an image with a nucleus at (x, y), a large dark red cell in the middle and platelets around."""
    image = Image.new("RGB", (320, 240), SMEAR)
    draw = ImageDraw.Draw(image)
    draw.ellipse((130, 90, 190, 150), fill=DARK_RED_CELL)
    for px in range(20, 320, 56):
        for py in range(20, 240, 50):
            draw.ellipse((px - 5, py - 5, px + 5, py + 5), fill=PLATELET)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=NUCLEUS)
    return image


def find(image: Image.Image) -> Nucleus:
    nucleus = find_nucleus(image, Thumbnail.of(image))
    assert nucleus is not None
    return nucleus


@pytest.mark.parametrize(("x", "y"), [(230, 70), (70, 180), (250, 190)])
def test_the_nucleus_wins_over_a_dark_red_cell_and_platelets(x: float, y: float) -> None:
    nucleus = find(smear(x, y, 24))
    assert (nucleus.x, nucleus.y) == pytest.approx((x, y), abs=6)


@pytest.mark.parametrize("gain", [(1.0, 0.85, 0.7), (0.7, 0.9, 1.0), (0.5, 0.5, 0.5)])
def test_the_lamp_and_the_white_balance_do_not_matter(gain: tuple[float, float, float]) -> None:
    image = smear(230, 70, 24)
    tinted = image.point([round(level * share) for share in gain for level in range(256)])
    plain, other = find(image), find(tinted)
    assert (other.x, other.y, other.extent) == pytest.approx((plain.x, plain.y, plain.extent), rel=0.03)
    assert other.contrast == pytest.approx(plain.contrast, rel=0.1)


def test_a_paler_stain_has_less_contrast() -> None:
    image = smear(230, 70, 24)
    pale = image.point([round(225 * (level / 225) ** 0.4) for _ in range(3) for level in range(256)])
    assert find(pale).contrast == pytest.approx(0.4 * find(image).contrast, rel=0.1)


@pytest.mark.parametrize(("x", "least", "most"), [(160, 0.0, 0.0), (300, 0.3, 1.2), (320, 1.4, 2.0)])
def test_cut_is_the_length_along_the_edge(x: float, least: float, most: float) -> None:
    assert least <= find(smear(x, 195, 24)).cut <= most


def test_two_cells_are_not_framed_between_them() -> None:
    image = smear(100, 60, 20)
    ImageDraw.Draw(image).ellipse((230, 160, 270, 200), fill=NUCLEUS)
    nucleus = find(image)
    assert min(np.hypot(nucleus.x - x, nucleus.y - y) for x, y in ((100, 60), (250, 180))) < 6


def test_box_sum_treats_places_outside_as_0() -> None:
    values = np.random.default_rng(0).integers(0, 3000, (9, 13)).astype(np.int32)
    padded = np.pad(values, 2)
    expected = [[padded[y : y + 5, x : x + 5].sum() for x in range(13)] for y in range(9)]
    assert box_sum(values, 2).tolist() == expected


def centre_inside(archive: str, boxes: dict[str, list[tuple[float, ...]]]) -> tuple[int, int]:
    """Count the pictures whose nucleus has its centre in one of their boxes, and those with boxes.

    boxes: file name → left, top, right, bottom, as shares of the picture.
    """
    inside = total = 0
    with zipfile.ZipFile(real(archive)) as pictures:
        for name in pictures.namelist():
            if not (known := boxes.get(name.rpartition("/")[2])):
                continue
            image = decode(pictures.read(name))
            nucleus = find_nucleus(image, Thumbnail.of(image))
            total += 1
            if nucleus is None:
                continue
            x, y = nucleus.x / image.width, nucleus.y / image.height
            inside += any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in known)
    return inside, total


def in_the_middle(archive: str) -> dict[str, list[tuple[float, ...]]]:
    with zipfile.ZipFile(real(archive)) as pictures:
        return {name.rpartition("/")[2]: [(1 / 3, 1 / 3, 2 / 3, 2 / 3)] for name in pictures.namelist()}


def test_the_centre_lies_in_the_box_of_99_of_100_photos_of_bccd() -> None:
    boxes: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    with real("bccd-boxes.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            left, top, right, bottom = (float(line[side]) for side in ("left", "top", "right", "bottom"))
            boxes[line["photo"]].append((left / 640, top / 480, right / 640, bottom / 480))
    inside, total = centre_inside("bccd-originals.zip", boxes)
    assert inside >= 0.99 * total > 250


def test_the_centre_lies_in_a_box_of_99_of_100_fields_of_a_laboratory_that_was_never_seen() -> None:
    boxes: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    with zipfile.ZipFile(real("draaslan-fields.zip")) as pictures:
        [table] = [name for name in pictures.namelist() if name.endswith("boxes.csv")]
        for line in csv.DictReader(io.TextIOWrapper(pictures.open(table))):
            box = tuple(float(line[side]) for side in ("left", "top", "right", "bottom"))
            boxes[line["image"]].append(box)
    inside, total = centre_inside("draaslan-fields.zip", boxes)
    assert inside >= 0.99 * total > 90


def test_the_centre_lies_in_the_middle_third_of_crops_of_two_laboratories() -> None:
    """Some cells of LISC lie outside the middle third: of its five misses, four are met (seen by eye)."""
    raabin, total = centre_inside("raabin-cells.zip", in_the_middle("raabin-cells.zip"))
    assert raabin >= 0.99 * total == 495
    lisc, total = centre_inside("lisc-cells.zip", in_the_middle("lisc-cells.zip"))
    assert lisc >= 250
    assert total == 255
