"""Connected regions of a mask, found from runs of pixels in rows.

Rows have few runs, so the work on single pixels is left to NumPy (He, Chao and Suzuki 2008, "A Run-Based
Two-Scan Labeling Algorithm", doi:10.1109/TIP.2008.919369).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)
Mask = NDArray[np.bool_]  # [h, w]
Whole = NDArray[np.int64]  # [count] or [runs]
Real = NDArray[np.float64]  # [count]


@dataclass(frozen=True)
class Regions:
    """Regions of a mask of `shape`, numbered from 0 in the order of their first pixels; neighbours share a
    side.

    row, start, stop, region [runs]: pixels start to stop − 1 of a row belong to a region.
    """

    shape: tuple[int, int]
    row: Whole
    start: Whole
    stop: Whole
    region: Whole
    count: int

    @cached_property
    def length(self) -> Whole:
        return self.stop - self.start

    @cached_property
    def area(self) -> Real:
        """Pixels of each region."""
        return self._total(self.length)

    @cached_property
    def x(self) -> Real:
        """Mean column of each region."""
        return self._total(self.length * (self.start + self.stop - 1) / 2) / self.area

    @cached_property
    def y(self) -> Real:
        """Mean row of each region."""
        return self._total(self.length * self.row) / self.area

    @cached_property
    def boxes(self) -> Whole:
        """Left, top, right and bottom [4, count]; right and bottom are exclusive."""
        height, width = self.shape
        boxes = np.empty((4, self.count), np.int64)
        boxes[:2] = [[width], [height]]
        boxes[2:] = 0
        np.minimum.at(boxes[0], self.region, self.start)
        np.minimum.at(boxes[1], self.region, self.row)
        np.maximum.at(boxes[2], self.region, self.stop)
        np.maximum.at(boxes[3], self.region, self.row + 1)
        return boxes

    @cached_property
    def at_edges(self) -> Real:
        """Pixels of each region along the edges of the mask."""
        height, width = self.shape
        ends = (self.start == 0) * 1 + (self.stop == width)
        return self._total(ends + ((self.row == 0) * 1 + (self.row == height - 1)) * self.length)

    @cached_property
    def moments(self) -> tuple[Real, Real, Real]:
        """Second moments of each region about its centre: along x, along y, and mixed; of a pixel, 1 / 12."""
        n, middle = self.length, (self.start + self.stop - 1) / 2
        across, down = middle - self.x[self.region], self.row - self.y[self.region]
        xx = self._total(n * (across * across + n * n / 12)) / self.area
        yy = self._total(n * down * down) / self.area + 1 / 12
        return xx, yy, self._total(n * across * down) / self.area

    @cached_property
    def slimness(self) -> Real:
        """`slimness_of` each region."""
        return slimness_of(*self.moments)

    @cached_property
    def pixels(self) -> Whole:
        """Places of all pixels in the flattened mask, in order."""
        base = self.row * self.shape[1] + self.start
        offsets = base - (np.cumsum(self.length) - self.length)
        return np.repeat(offsets, self.length) + np.arange(int(self.length.sum()))

    @cached_property
    def owners(self) -> Whole:
        """The region of each of `pixels`."""
        return np.repeat(self.region, self.length)

    def values(self, plane: NDArray[Number]) -> NDArray[Number]:
        """Return the value of a plane [h, w] at each of `pixels`."""
        return plane.ravel()[self.pixels]

    def sums(self, plane: NDArray[Any]) -> Real:
        """Return the sum over each region of a plane [h, w]."""
        return np.bincount(self.owners, self.values(plane), self.count).astype(np.float64)

    def numbers(self) -> NDArray[np.int32]:
        """Return the region of each pixel [h, w]; −1 outside."""
        numbers = np.full(self.shape, -1, np.int32)
        numbers.ravel()[self.pixels] = self.owners
        return numbers

    def mask(self, chosen: NDArray[np.bool_]) -> Mask:
        """Return the pixels [h, w] of the regions that are chosen [count]."""
        mask = np.zeros(self.shape, np.bool_)
        mask.ravel()[self.pixels] = chosen[self.owners]
        return mask

    def _total(self, values: NDArray[Any]) -> Real:
        """Return the sum of values [runs] over each region."""
        return np.bincount(self.region, values, self.count).astype(np.float64)


def slimness_of(xx: Real, yy: Real, xy: Real) -> Real:
    """Return length ÷ breadth of the ellipses with these second moments; at least 1."""
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    slimness: Real = np.sqrt((middle + spread) / np.maximum(middle - spread, 1 / 12))
    return slimness


def find_regions(mask: Mask) -> Regions:
    """Find the regions of a mask."""
    height, width = mask.shape
    padded = np.zeros((height, width + 1), np.int8)
    padded[:, :width] = mask
    flat = padded.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=np.int8(0)))
    first, last = changes[::2], changes[1::2]  # the column of zeros ends the run of each row
    row, start = np.divmod(first, width + 1)
    stop = last - row * (width + 1)
    above, below = _touching(first, last, width + 1)
    region = _join(len(first), above, below)
    roots, numbers = np.unique(region, return_inverse=True)
    return Regions((height, width), row, start, stop, numbers, len(roots))


def _touching(first: Whole, last: Whole, width: int) -> tuple[Whole, Whole]:
    """Return the pairs of runs, one above the other, that share a column."""
    begin = np.searchsorted(last, first - width, side="right")  # first run above that ends after this begins
    end = np.searchsorted(first, last - width, side="left")  # first run above that begins after this ends
    counts = np.maximum(end - begin, 0)
    below = np.repeat(np.arange(len(first)), counts)
    offsets = np.arange(len(below)) - np.repeat(np.cumsum(counts) - counts, counts)
    return begin[below] + offsets, below


def _join(count: int, above: Whole, below: Whole) -> Whole:
    """Return for each of `count` runs the first run that it is connected with by pairs."""
    root = np.arange(count)
    while len(above):
        low, high = np.minimum(root[above], root[below]), np.maximum(root[above], root[below])
        apart = low < high
        if not apart.any():
            break
        above, below, low, high = above[apart], below[apart], low[apart], high[apart]
        np.minimum.at(root, high, low)
        while True:  # follow each run to its root
            further = root[root]
            if np.array_equal(further, root):
                break
            root = further
    return root


def erode(mask: Mask, diagonal: bool = False) -> Mask:
    """Return the pixels whose four neighbours, or eight with `diagonal`, are in; outside counts as in."""
    eroded = mask.copy()
    eroded[1:] &= mask[:-1]
    eroded[:-1] &= mask[1:]
    rows = eroded.copy() if diagonal else mask
    eroded[:, 1:] &= rows[:, :-1]
    eroded[:, :-1] &= rows[:, 1:]
    return eroded


def dilate(mask: Mask, diagonal: bool = False) -> Mask:
    """Return the mask and its four neighbours, or eight with `diagonal`."""
    dilated = mask.copy()
    dilated[1:] |= mask[:-1]
    dilated[:-1] |= mask[1:]
    rows = dilated.copy() if diagonal else mask
    dilated[:, 1:] |= rows[:, :-1]
    dilated[:, :-1] |= rows[:, 1:]
    return dilated


def fill(mask: Mask, most: float) -> Mask:
    """Return the mask with its holes of at most `most` pixels filled."""
    gaps = find_regions(~mask)
    if not gaps.count:
        return mask
    holes = (gaps.at_edges == 0) & (gaps.area <= most)
    return mask | gaps.mask(holes) if holes.any() else mask
