"""The interface of an engine: pixels in, logits and features out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.imaging.framing import Pixels

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Output:
    """The network's output for a batch of n images.

    logits [n, classes]; features [n, 512], the pooled last convolutional layer; maps [n, 512, 7, 7], the same
    layer before pooling, only on request.
    """

    logits: Floats
    features: Floats
    maps: Floats | None = None


class Engine(Protocol):
    """Runs a bundle's network on one device; any number of threads may call."""

    name: str
    device: str
    workers: int  # threads that decode and call `infer`; more hardly raise the throughput
    batch: int  # images per call; more hardly raise the throughput

    def infer(self, pixels: Pixels, *, maps: bool = False, exclusive: bool = True) -> Output:
        """Run the network on RGB uint8 [n, size, size, 3], n of any size.

        exclusive: the caller expects no concurrent call, so this one may use all threads.
        """
        ...

    def warm_up(self, batch: int, size: int) -> None:
        """Run every batch size from 1 to `batch` at size × size pixels, so that no later call is slow."""
        ...
