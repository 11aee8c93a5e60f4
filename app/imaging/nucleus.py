"""Find the nucleus of a leukocyte in a stained smear.

The nucleus is the only object that absorbs much green and red but little blue, and it is large. Light falls
exponentially with the amount of stain (Beer-Lambert law), so the search runs in optical density, where the
stain's strength, the lamp and the camera's white balance only scale the colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging.thumbnail import UNIT, Colour, Thumbnail

REACH = 5  # pixels on each side of a place whose colour is averaged; debris and platelets are smaller
CENTRING = 2.0  # how much a place far from the middle counts less: exp(−CENTRING · (dx² + dy²)), in sides
CORE = 80.0  # percentile around the best place that is the nucleus's own colour
BORDER = 0.5  # share of that colour at the nucleus's border
FAINTEST = 0.08  # colour of the palest nucleus that is looked at
MIN_SHARE, MAX_SHARE = 0.002, 0.6  # nucleus ÷ image, by area
STEPS = 8  # of the mean shift
FINE = 8  # pixels of a thumbnail: a smaller nucleus is measured in one of its surroundings
SURROUNDINGS = 6.0  # side of those ÷ extent
WITHIN = 0.9  # the densest place ÷ extent, at most this far from where the nucleus was found

Mask = NDArray[np.bool_]  # [h, w]
Place = tuple[float, float, float]  # x, y and extent of a nucleus that was found, in the image's pixels


@dataclass(frozen=True)
class Nucleus:
    """A nucleus in an image; lengths in the image's pixels.

    contrast: how much more green and red than blue it absorbs, in optical density. cut: length along the
    image's edges ÷ extent; above about 1 much of it lies outside.
    What only a search of the whole field knows: crowded: another nucleus is so near that both may be lobes of
    one; outside: share of the cell's width that lies beyond the image's edge, as estimated.
    """

    x: float  # of the centre
    y: float
    extent: float  # square root of the area
    contrast: float
    cut: float
    crowded: bool = False
    outside: float = 0.0


def find_nucleus(image: Image.Image, thumbnail: Thumbnail) -> Nucleus | None:
    """Find the densest patch of nuclear colour; None if there is none."""
    colour = thumbnail.nuclear_colour
    weight = box_sum(colour, REACH) * preference(*colour.shape)
    nucleus = _measure(thumbnail, weight, None)
    if nucleus is None or nucleus.extent >= FINE * thumbnail.scale:
        return nucleus
    return _in_surroundings(image, thumbnail, (nucleus.x, nucleus.y, nucleus.extent), [])


def nucleus_at(
    image: Image.Image, thumbnail: Thumbnail, place: Place, others: Sequence[Place]
) -> Nucleus | None:
    """Measure the nucleus at a place as `find_nucleus` does; None if there is no nuclear colour.

    What is nearer to others is not its own.
    """
    if place[2] >= FINE / 2 * thumbnail.scale:
        nucleus = _measure_at(thumbnail, (0.0, 0.0), place, others)
        if nucleus is None or nucleus.extent >= FINE * thumbnail.scale:
            return nucleus
        place = nucleus.x, nucleus.y, nucleus.extent
    return _in_surroundings(image, thumbnail, place, others)


def _in_surroundings(
    image: Image.Image, thumbnail: Thumbnail, place: Place, others: Sequence[Place]
) -> Nucleus | None:
    """Measure a nucleus that is small in the thumbnail in one of the part of the image around it."""
    x, y, extent = place
    reach = SURROUNDINGS / 2 * extent
    left, top = max(0.0, x - reach), max(0.0, y - reach)
    part = thumbnail.of_part(image, (left, top, min(image.width, x + reach), min(image.height, y + reach)))
    return _measure_at(part, (left, top), place, others)


def _measure_at(
    thumbnail: Thumbnail, corner: tuple[float, float], place: Place, others: Sequence[Place]
) -> Nucleus | None:
    """Measure the nucleus at a place in a thumbnail of the part of the image at `corner`."""
    left, top = corner
    height, width = thumbnail.nuclear_colour.shape
    rows, columns = np.ogrid[:height, :width]

    def distance(to: Place) -> NDArray[np.float64]:
        """Return the distance of each pixel [h, w], in extents."""
        x, y, extent = (
            (to[0] - left) / thumbnail.scale,
            (to[1] - top) / thumbnail.scale,
            to[2] / thumbnail.scale,
        )
        # Not by np.hypot, which takes ten times as long.
        distances: NDArray[np.float64] = np.sqrt((columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2) / extent
        return distances

    own = distance(place)
    mine = np.ones(own.shape, np.bool_)
    for other in others:
        mine &= own <= distance(other)
    weight = box_sum(thumbnail.nuclear_colour, REACH) * preference(height, width)
    nucleus = _measure(thumbnail, np.where(mine & (own <= WITHIN), weight, -1), mine)
    return nucleus and replace(nucleus, x=nucleus.x + left, y=nucleus.y + top)


def _measure(thumbnail: Thumbnail, weight: NDArray[np.float32], mine: Mask | None) -> Nucleus | None:
    """Measure the nucleus around the place of the greatest weight, within `mine`; None if there is none."""
    colour = thumbnail.nuclear_colour
    y, x = divmod(int(weight.argmax()), colour.shape[1])
    core = colour[max(0, y - REACH) : y + REACH + 1, max(0, x - REACH) : x + REACH + 1].ravel()
    place = int(CORE / 100 * (core.size - 1))
    contrast = int(np.partition(core, place)[place])
    if contrast < FAINTEST * UNIT:
        return None
    mask = colour > BORDER * contrast
    x_mean, y_mean, area, cut = settle(mask if mine is None else mask & mine, x, y)
    if not MIN_SHARE < area / colour.size < MAX_SHARE:
        return None
    scale, extent = thumbnail.scale, area**0.5
    return Nucleus(
        (x_mean + 0.5) * scale, (y_mean + 0.5) * scale, extent * scale, contrast / UNIT, cut / extent
    )


@lru_cache(maxsize=64)
def preference(height: int, width: int) -> NDArray[np.float32]:
    """Return a weight of each place [height, width], 1 in the middle."""
    down = (np.arange(height) - (height - 1) / 2) / height
    across = (np.arange(width) - (width - 1) / 2) / width
    return np.exp(-CENTRING * (down[:, None] ** 2 + across**2)).astype(np.float32)


def box_sum(values: Colour, reach: int) -> Colour:
    """Sum, for each pixel, the values in the (2·reach + 1)² square around it, 0 outside the image."""
    height, width = values.shape
    side = 2 * reach + 1
    sums = np.zeros((height + side, width + side), np.int32)
    sums[reach + 1 : reach + 1 + height, reach + 1 : reach + 1 + width] = values
    np.cumsum(sums, axis=0, out=sums)
    np.cumsum(sums, axis=1, out=sums)
    box: Colour = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return box


def settle(mask: Mask, x: int, y: int) -> tuple[float, float, float, float]:
    """Return the patch around a place: x and y of its centre, its area, its length along the image's edges.

    A mean shift of at most `STEPS` steps, whose window grows with the area.
    """
    height, width = mask.shape
    rows, columns = (axis.astype(np.float32) for axis in divmod(np.flatnonzero(mask), width))
    centre_x, centre_y, radius, area = float(x), float(y), 10.0, 0.0
    near = np.zeros(len(rows), bool)
    for _ in range(STEPS):
        near = (rows - centre_y) ** 2 + (columns - centre_x) ** 2 < radius**2
        area = float(np.count_nonzero(near))
        if area == 0:
            break
        before = centre_x, centre_y
        centre_x, centre_y = float(columns[near].mean()), float(rows[near].mean())
        if (centre_x, centre_y) == before:
            break
        radius = max(8.0, 1.15 * area**0.5)
    row, column = rows[near], columns[near]
    edges = (row == 0, row == height - 1, column == 0, column == width - 1)
    return centre_x, centre_y, area, float(sum(map(np.count_nonzero, edges)))
