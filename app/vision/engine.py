"""What an engine is: pixels in, logits and features out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Output:
    """A batch of n images after the network.

    logits [n, classes]; features [n, 512], the pooled last layer; maps [n, 512, 7, 7], the same
    layer before pooling, only when asked for.
    """

    logits: Floats
    features: Floats
    maps: Floats | None = None


class Engine(Protocol):
    """Runs a bundle's network on one device; used from one thread at a time."""

    name: str
    device: str
    batch: int  # images in one run, beyond which it gets hardly faster

    def infer(self, pixels: Pixels, *, maps: bool = False) -> Output:
        """pixels: RGB uint8 [n, 224, 224, 3], n of any size."""
        ...
