"""What an engine is: pixels in, logits and features out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.imaging.framing import Pixels

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
    """Runs a bundle's network on one device; any number of threads may call."""

    name: str
    device: str
    workers: int  # threads that decode and call, beyond which it is hardly busier
    batch: int  # images in one call, beyond which it gets hardly faster

    def infer(self, pixels: Pixels, *, maps: bool = False, exclusive: bool = True) -> Output:
        """pixels: RGB uint8 [n, 224, 224, 3], n of any size; exclusive: no other call is under way."""
        ...

    def warm_up(self, batch: int, size: int) -> None:
        """Run every number of images, up to `batch`, of size × size pixels, so that none is slow later."""
        ...
