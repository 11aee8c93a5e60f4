"""Stained shapes with soft edges, for `app.samples.smear`.

The light model is that of a bright-field microscope: every object on the bright background adds its optical
density (Beer–Lambert) in red, green and blue. Angles are in radians, lengths in the unit that `Patch.blank`
sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float32]  # [height, width]
Stain = (
    tuple[float, float, float] | NDArray[np.float64]
)  # density in red, green, blue; negative is brighter than the background

SOFT = 2.4  # width of an edge, from inside to outside
STIFF = 2.5  # the higher, the less neighbouring blobs bulge towards each other


@dataclass(frozen=True)
class Blob:
    """An ellipse with an uneven rim."""

    x: float
    y: float
    radius: float
    stretch: float = 1.0  # length ÷ breadth
    angle: float = 0.0  # of the longer axis
    dents: tuple[tuple[int, float, float], ...] = ()  # waves around the rim, depth ÷ radius, phase


def rough(
    rng: np.random.Generator, x: float, y: float, radius: float, *, dent: float = 0.02, stretch: float = 0.2
) -> Blob:
    """Return a blob with random dents of relative depth `dent`, stretched at random by up to `stretch`."""
    dents = tuple((waves, dent * float(rng.normal()), float(rng.uniform(0, 6.3))) for waves in (2, 3, 4))
    return Blob(x, y, radius, 1 + stretch * float(rng.random()), float(rng.uniform(0, 3.1)), dents)


class Patch:
    """A rectangle of the image: coordinates [h, w] and optical density [h, w, 3] of its pixels."""

    def __init__(self, x: Plane, y: Plane, density: NDArray[np.float32]) -> None:
        self.x, self.y, self.density = x, y, density

    @classmethod
    def blank(cls, width: int, height: int, scale: float) -> Patch:
        """Make an empty patch of width × height pixels. scale: pixels per unit of length."""
        y, x = (np.mgrid[0:height, 0:width] / scale).astype(np.float32)
        return cls(x, y, np.zeros((height, width, 3), dtype=np.float32))

    def around(self, x: float, y: float, reach: float) -> Patch:
        """Return the square of half side `reach` around a point, a view: drawing in it changes this patch."""
        columns = slice(*np.searchsorted(self.x[0], (x - reach, x + reach)))
        rows = slice(*np.searchsorted(self.y[:, 0], (y - reach, y + reach)))
        return Patch(self.x[rows, columns], self.y[rows, columns], self.density[rows, columns])

    def add(self, amount: Plane, stain: Stain) -> None:
        """Add a stain's density, times `amount` at each pixel."""
        self.density += amount[..., None] * np.asarray(stain, dtype=np.float32)

    def clear(self, cover: Plane) -> None:
        """Remove the density under an opaque object. cover: 0 to 1."""
        self.density *= 1 - cover[..., None]

    def reach(self, blob: Blob) -> Plane:
        """Return each pixel's distance from the blob's centre ÷ the blob's radius in that direction."""
        x, y = self.x - blob.x, self.y - blob.y
        cosine, sine = np.cos(blob.angle), np.sin(blob.angle)
        along, across = x * cosine + y * sine, y * cosine - x * sine
        root = blob.stretch**0.5
        rim = np.full_like(x, blob.radius)
        if blob.dents:
            theta = np.arctan2(y, x)
            for waves, depth, phase in blob.dents:
                rim += blob.radius * depth * np.cos(waves * theta + phase)
        ratio: Plane = np.hypot(along / root, across * root) / rim
        return ratio

    def cover(self, blob: Blob, soft: float = SOFT) -> Plane:
        """Return 1 inside the blob and 0 outside, with an edge of width `soft`."""
        covered: Plane = np.clip(0.5 + (1 - self.reach(blob)) * blob.radius / soft, 0, 1)
        return covered

    def fuse(self, blobs: Sequence[Blob], soft: float = SOFT) -> Plane:
        """Return the cover of blobs that merge where they are near, like the lobes of a nucleus."""
        field = np.full_like(self.x, 1e-6)
        for blob in blobs:
            field += np.exp(STIFF * (1 - self.reach(blob) ** 2))
        radius = sum(blob.radius for blob in blobs) / len(blobs)
        fused: Plane = np.clip(0.5 + np.log(field) * radius / (2 * STIFF * soft), 0, 1)
        return fused

    def grain(self, rng: np.random.Generator, size: float) -> Plane:
        """Return smooth noise of mean 0 and standard deviation near 1, in clumps of about `size`."""
        height, width = self.x.shape
        scale = (self.x[0, -1] - self.x[0, 0]) / max(1, width - 1) or 1.0
        shape = [max(2, round(length * float(scale) / size)) for length in (height, width)]
        coarse = Image.fromarray((1.4 * rng.normal(size=shape)).astype(np.float32))
        return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
