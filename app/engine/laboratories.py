"""Tell whether a picture looks like those of a laboratory that the model was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.imaging.style import describe

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Styles:
    """How the pictures of known laboratories look, as descriptions of `app.imaging.style`.

    centres [laboratories, 30]: the mean of each. whitening [30, 30]: a picture's deviation times it has the
    unit matrix as its covariance within a laboratory.
    """

    centres: Floats
    whitening: Floats

    def distances(self, descriptions: Floats) -> Floats:
        """descriptions [n, 30] → Mahalanobis distances [n] to the nearest laboratory's mean."""
        places, centres = descriptions @ self.whitening, self.centres @ self.whitening
        squared = np.square(places[:, None] - centres[None]).sum(2)
        distances: Floats = np.sqrt(squared.min(1))
        return distances


def describe_all(cells: Iterable[Pixels]) -> Floats:
    """Return the descriptions [n, 30] of framed cells, RGB [n, size, size, 3]."""
    return np.stack([describe(pixels) for pixels in cells])
