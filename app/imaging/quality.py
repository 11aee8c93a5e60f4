"""Measure whether a picture can be judged at all, before the network is asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging.nucleus import Nucleus
from app.imaging.thumbnail import Thumbnail

GREEN = 1  # the channel in which every stain shows
FINE = 56  # pixels across the frame; edges at this resolution are compared with those at half of it
REASONS = NO_CELL, CUT_OFF, BLURRED, EXPOSURE, SEVERAL_CELLS = (
    "no_cell",
    "cut_off",
    "blurred",
    "exposure",
    "several_cells",
)


@dataclass(frozen=True)
class Quality:
    """Measures of a picture.

    nuclear_contrast: `Nucleus.contrast`, 0 without a nucleus. cut: `Nucleus.cut`. detail: steepness of edges
    at 1/56 ÷ at 1/28 of the frame: 1 where nothing is finer than that, 4 for noise. brightness: green of the
    background. brightness_range: from there down to the 5th percentile. Levels are in 0 to 255. leukocytes:
    in the picture, of which this is one; where each is classified, 2 if this one and another are so near that
    both may be one cell, else 1. found: 1 for a leukocyte that the search for all of them found, so that the
    picture is not without one. outside: `Nucleus.outside` of such a leukocyte.
    """

    nuclear_contrast: float
    cut: float
    detail: float
    brightness: float
    brightness_range: float
    leukocytes: float = 1
    found: float = 0
    outside: float = 0


@dataclass(frozen=True)
class QualityLimits:
    """A bundle's limits of `Quality`; beyond one, the picture goes to review.

    The defaults keep 94 % or more of the cells of each of four laboratories; docs/model.md has the figures.
    """

    nuclear_contrast: float = 0.6  # at least, else `no_cell`
    grain: float = 2.1  # `detail` of at most this, else it is noise: `no_cell`
    cut: float = 1.2  # at most, else `cut_off`
    detail: float = 1.07  # at least, else `blurred`
    brightness: float = 90.0  # at least, else `exposure`
    brightness_range: float = 40.0  # at least, else `exposure`
    leukocytes: int = 1  # at most, else `several_cells`
    outside: float = 0.15  # at most, else `cut_off`

    def reasons(self, quality: Quality) -> tuple[str, ...]:
        """Return why a person must look at the picture."""
        pale = quality.nuclear_contrast < self.nuclear_contrast
        flat = quality.brightness < self.brightness or quality.brightness_range < self.brightness_range
        checks = (
            (NO_CELL, (pale and not quality.found) or quality.detail > self.grain),
            (CUT_OFF, quality.cut > self.cut or quality.outside > self.outside),
            (BLURRED, quality.detail < self.detail),
            (EXPOSURE, flat or (pale and bool(quality.found))),
            (SEVERAL_CELLS, quality.leukocytes > self.leukocytes),
        )
        return tuple(reason for reason, failed in checks if failed)


def measure(
    thumbnail: Thumbnail,
    nucleus: Nucleus | None,
    framed: Image.Image,
    leukocytes: int = 1,
    *,
    found: bool = False,
) -> Quality:
    """framed: the frame, RGB, square, before its white point is set. leukocytes, found: see `Quality`."""
    dark, bright = thumbnail.levels[:, GREEN].tolist()
    return Quality(
        nuclear_contrast=nucleus.contrast if nucleus else 0.0,
        cut=nucleus.cut if nucleus else 0.0,
        detail=detail(framed),
        brightness=bright,
        brightness_range=bright - dark,
        leukocytes=leukocytes,
        found=float(found),
        outside=nucleus.outside if nucleus else 0.0,
    )


def detail(framed: Image.Image) -> float:
    """Return how much steeper edges are at 1/56 than at 1/28 of the frame; 1 without any.

    Averages are compared, not single pixels, whose rounding to whole levels looks like detail.
    """
    green = np.asarray(framed.getchannel(GREEN))
    fine = average(green, max(1, round(framed.width / FINE)))
    coarse = average(fine, 2)
    edges = steepness(coarse)
    return 2 * steepness(fine) / edges if edges else 1.0


def average(levels: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Return the means [h // side, w // side] of squares."""
    height, width = (length // side * side for length in levels.shape)
    used = levels[:height, :width].astype(np.float32)
    rows = reduce(np.add, (used[place::side] for place in range(side)))  # far faster than a sum over an axis
    sums: NDArray[np.float32] = reduce(np.add, (rows[:, place::side] for place in range(side)))
    return sums / np.float32(side * side)


def steepness(levels: NDArray[np.float32]) -> float:
    """Return the root mean square of the gradient within the inner three quarters."""
    margin = len(levels) // 8
    inner = levels[margin : len(levels) - margin, margin : len(levels) - margin]
    down, across = np.diff(inner, axis=0), np.diff(inner, axis=1)
    return float(np.sqrt(np.square(down).mean() + np.square(across).mean()))
