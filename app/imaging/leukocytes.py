"""Find all leukocytes of a field: `find_leukocytes`.

A small network sees the field at one magnification, at which red cells are 10 pixels wide
(`app.imaging.cell_map`). It also tells how wide a picture's red cells are, which gives that magnification
(`look`). Each of its finds is then measured as in a picture of one cell (`nucleus_at`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging.cell_map import DENSEST, RED_CELL, CellMap, Real
from app.imaging.nucleus import Nucleus, Place, nucleus_at
from app.imaging.resize import resize
from app.imaging.thumbnail import LOGARITHMS, Thumbnail
from app.imaging.thumbnail import UNIT as COLOUR_UNIT

LEAST = 0.4  # of `CellMap.leukocyte`: a leukocyte
MOST_PIXELS = 1_500_000  # of the copy that is searched
SMALLEST_RED_CELL = 5.0  # pixels; smaller ones are measured on a larger copy
ZOOM = 3  # from one copy to the next
WINDOW = 64  # pixels of a part of a larger copy
WINDOWS = ((0.5, 0.5), (0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8))  # where, as shares of the image
PASSES = 3  # at most, until the copy's magnification is right
RIGHT = 1.25  # times too large or too small is right
AFAR = 3.0  # another nucleus ÷ sum of the extents: further ones do not matter
APART, CELL = 0.8, 0.75  # of the mean extent of two nuclei, of a red cell: nearer ones are one
CROWDED = 1.7  # of the mean extent of two nuclei and of a red cell: nearer ones may be lobes of one
RADIUS, LEAST_RADIUS = 0.9, 1.1  # of a leukocyte ÷ extent of its nucleus, ÷ a red cell's diameter
BLUER = 1.7  # nuclear colour of a nucleus ÷ that of red cells, at least
GREEN, STAINED, MUCH = 1, 0.85, 0.05  # channel; light of what is stained ÷ background; share of the image
OTHERS, OTHERS_AREA = 0.4, 0.1  # colour and area of something beside a nucleus ÷ the nucleus's
ELSEWHERE = 1.2  # distance of another nucleus from the first ÷ its extent, at least
AS_LARGE = 0.55  # extent of another nucleus ÷ that of the first, at least


Places = NDArray[np.float64]  # [n, 3]: x, y, extent in the image's pixels


@dataclass(frozen=True)
class View:
    """The map of an image. scale: pixels of the image in one of the map's, across and down."""

    seen: CellMap
    scale: tuple[float, float]

    @property
    def red_cell(self) -> float:
        """The diameter of the image's red cells in its pixels."""
        return float(np.median(self.seen.red_cell)) * self.scale[0]


def find_leukocytes(image: Image.Image, thumbnail: Thumbnail) -> list[Nucleus]:
    """Return the nuclei of an RGB image's leukocytes, in reading order; lengths are in the image's pixels."""
    if not thumbnail.lit.any():
        return []
    view = look(image, thumbnail)
    places = find_places(view)
    measured = [nucleus_at(image, thumbnail, place, near) for place, near in with_neighbours(places)]
    found = [nucleus for nucleus in measured if nucleus is not None]
    least = BLUER * colour_beside(thumbnail, found)
    nuclei = [nucleus for nucleus in found if nucleus.contrast >= least]
    nuclei = mark_crowded(nuclei, view.red_cell)
    return in_reading_order([mark_cut(nucleus, view.red_cell, image.size) for nucleus in nuclei])


def mark_crowded(nuclei: Sequence[Nucleus], red_cell: float) -> list[Nucleus]:
    """Mark those that may be lobes of one nucleus. red_cell: diameter of a red cell in the image's pixels.

    Two lobes of one lie within a leukocyte, two nuclei in touch are farther apart.
    """
    places = np.array([(nucleus.x, nucleus.y, nucleus.extent) for nucleus in nuclei]).reshape(-1, 3)
    crowded = []
    for place in places:
        reach = CROWDED * np.minimum((places[:, 2] + place[2]) / 2, red_cell)
        squares = np.square(places[:, 0] - place[0]) + np.square(places[:, 1] - place[1])
        crowded.append(bool(np.count_nonzero(squares < reach**2) > 1))
    return [replace(nucleus, crowded=mark) for nucleus, mark in zip(nuclei, crowded, strict=True)]


def mark_cut(nucleus: Nucleus, red_cell: float, size: tuple[int, int]) -> Nucleus:
    """Estimate how much of a nucleus's cell lies beyond the image's nearest edge. size: width and height."""
    width, height = size
    inside = min(nucleus.x, nucleus.y, width - nucleus.x, height - nucleus.y)
    radius = max(RADIUS * nucleus.extent, LEAST_RADIUS * red_cell)
    return replace(nucleus, outside=max(0.0, radius - inside) / (2 * radius))


def colour_beside(thumbnail: Thumbnail, nuclei: list[Nucleus]) -> float:
    """Return the median nuclear colour of what is stained beside nuclei: red cells; 0 if that is little."""
    beside = thumbnail.pixels[GREEN] < STAINED * thumbnail.white[GREEN]
    beside &= thumbnail.lit
    rows, columns = np.ogrid[: beside.shape[0], : beside.shape[1]]
    for nucleus in nuclei:
        x, y, extent = (length / thumbnail.scale for length in (nucleus.x, nucleus.y, nucleus.extent))
        beside &= (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 > extent**2
    if np.count_nonzero(beside) < MUCH * beside.size:
        return 0.0
    return float(np.median(thumbnail.nuclear_colour[beside])) / COLOUR_UNIT


def look(image: Image.Image, thumbnail: Thumbnail) -> View:
    """Return the map at about the magnification for which the network was trained."""
    finest = max(1.0, (image.width * image.height / MOST_PIXELS) ** 0.5)
    scale = thumbnail.scale
    view = look_at(image, thumbnail, scale)
    for _ in range(PASSES):
        red_cell = view.red_cell
        if red_cell < SMALLEST_RED_CELL * scale and scale > finest:
            red_cell = measure_small(image, thumbnail, scale)
        wanted = max(red_cell / RED_CELL, finest)
        if 1 / RIGHT < wanted / scale < RIGHT:
            break
        scale = wanted
        view = look_at(image, thumbnail, scale)
    return view


def look_at(image: Image.Image, thumbnail: Thumbnail, scale: float) -> View:
    """Return the map of a copy of which a pixel is `scale` of the image's."""
    size = max(1, round(image.width / scale)), max(1, round(image.height / scale))
    seen = CellMap.of(density_of(image, thumbnail, size))
    return View(seen, (image.width / size[0], image.height / size[1]))


def measure_small(image: Image.Image, thumbnail: Thumbnail, scale: float) -> float:
    """Return the diameter of red cells, in the image's pixels, that are too small at `scale` to be measured.

    They are measured in windows of ever larger copies.
    """
    while True:
        scale = max(1.0, scale / ZOOM)
        side = min(WINDOW * scale, *image.size)
        corners = [(x * (image.width - side), y * (image.height - side)) for x, y in WINDOWS]
        size = (max(1, round(side / scale)),) * 2
        maps = [
            CellMap.of(density_of(image, thumbnail, size, (x, y, x + side, y + side))) for x, y in corners
        ]
        diameter = float(np.median([np.median(seen.red_cell) for seen in maps]))
        if diameter >= SMALLEST_RED_CELL or scale == 1:
            return scale * diameter


def find_places(view: View) -> Places:
    """Return where leukocytes are."""
    seen, (across, down) = view.seen, view.scale
    peaks = np.nonzero(_peaks(seen.leukocyte))
    surest = np.argsort(-seen.leukocyte[peaks], kind="stable")
    measures = (seen.x[peaks] * across, seen.y[peaks] * down, seen.extent[peaks] * across)
    left = np.stack(measures, 1)[surest].astype(np.float64)
    places: list[NDArray[np.float64]] = []
    while len(left):
        places.append(left[0])
        least = np.maximum(APART * (left[:, 2] + left[0, 2]) / 2, CELL * view.red_cell)
        apart = np.hypot(*(left[:, :2] - left[0, :2]).T) > least
        apart[0] = False
        left = left[apart]
    return np.array(places).reshape(-1, 3)


def with_neighbours(places: Places) -> Iterator[tuple[Place, list[Place]]]:
    """Yield each place with those that may touch it."""
    for number, place in enumerate(places):
        near = np.hypot(*(places[:, :2] - place[:2]).T) < AFAR * (places[:, 2] + place[2])
        near[number] = False
        x, y, extent = place.tolist()
        yield (x, y, extent), [(x, y, extent) for x, y, extent in places[near].tolist()]


def _peaks(leukocyte: Real) -> NDArray[np.bool_]:
    """Return where a map is at least `LEAST` and nowhere smaller than its eight neighbours."""
    height, width = leukocyte.shape
    padded = np.pad(leukocyte, 1)
    peaks = leukocyte >= LEAST
    for place in range(9):
        row, column = divmod(place, 3)
        peaks &= leukocyte >= padded[row : row + height, column : column + width]
    return peaks


def density_of(
    image: Image.Image,
    thumbnail: Thumbnail,
    size: tuple[int, ...],
    box: tuple[float, float, float, float] | None = None,
) -> Real:
    """Return the optical density [3, h, w] of an image, or its part `box`, at `size`."""
    small = resize(image, (size[0], size[1]), Image.Resampling.BOX, box)
    clear = np.log(np.maximum(thumbnail.white, 1) / 255)
    tables = np.clip(LOGARITHMS + clear[:, None], 0, DENSEST).astype(np.float32)
    levels = np.asarray(small).transpose(2, 0, 1)
    density = np.stack([table.take(channel) for table, channel in zip(tables, levels, strict=True)])
    return density


def count_leukocytes(image: Image.Image, thumbnail: Thumbnail, nucleus: Nucleus) -> int:
    """Return the number of leukocytes, at least 1; quickly if nothing but the one nucleus has its colour.

    Others count if they lie well away from it and are not much smaller: neither its own lobes nor pieces of
    neighbours.
    """
    if not _has_others(thumbnail, nucleus):
        return 1
    others = [
        other
        for other in find_leukocytes(image, thumbnail)
        if np.hypot(other.x - nucleus.x, other.y - nucleus.y) > ELSEWHERE * nucleus.extent
        and other.extent >= AS_LARGE * nucleus.extent
    ]
    return 1 + len(others)


def _has_others(thumbnail: Thumbnail, nucleus: Nucleus) -> bool:
    """Return whether a thumbnail has nuclear colour beside a nucleus, of more than a platelet."""
    least = OTHERS * nucleus.contrast * COLOUR_UNIT
    rows, columns = np.nonzero(thumbnail.nuclear_colour > least)
    x, y, extent = (length / thumbnail.scale for length in (nucleus.x, nucleus.y, nucleus.extent))
    away = np.hypot(columns + 0.5 - x, rows + 0.5 - y) > extent
    return bool(np.count_nonzero(away) > OTHERS_AREA * extent**2)


def in_reading_order(nuclei: list[Nucleus]) -> list[Nucleus]:
    """Sort into lines from top to bottom, and each line from left to right.

    A line is as high as the nucleus at its top.
    """
    ordered: list[Nucleus] = []
    line: list[Nucleus] = []
    for nucleus in sorted(nuclei, key=lambda nucleus: nucleus.y):
        if line and nucleus.y > line[0].y + line[0].extent:
            ordered += sorted(line, key=lambda nucleus: nucleus.x)
            line = []
        line.append(nucleus)
    return ordered + sorted(line, key=lambda nucleus: nucleus.x)
