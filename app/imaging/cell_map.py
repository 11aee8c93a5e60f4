"""A small convolutional network that looks for leukocytes in a field: `CellMap`.

It was trained by `training/fields/network.py`; its weights, `cell_map.npz`, are part of the package. It is
written in NumPy, so that the processes that decode images need no inference engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

WEIGHTS = Path(__file__).parent / "cell_map.npz"
RED_CELL = 10.0  # pixels of a red cell's diameter for which the network was trained
STRIDE = 4  # pixels in one place of the map
BLOCK = 4096  # places that are computed together: their columns fit the processor's cache
STAINED = 0.45  # mean density in green light, weighted with itself, that pictures are brought to
LEAST_GAIN, MOST_GAIN = 0.5, 4.0
DENSEST = 2.5  # optical density; denser pixels count as this

Real = NDArray[np.float32]
Layer = tuple[Real, Real]  # weights [out, in, 3, 3] or [out, in, 1, 1], and bias [out]


@dataclass(frozen=True)
class CellMap:
    """What the network sees at each place [h / 4, w / 4] of a picture; lengths in its pixels.

    leukocyte: 0 to 1, 1 in the middle of a leukocyte's nucleus. x, y: centre of that nucleus. extent: root of
    its area. red_cell: diameter of the red cells around.
    """

    leukocyte: Real
    x: Real
    y: Real
    extent: Real
    red_cell: Real

    @classmethod
    def of(cls, density: Real) -> Self:
        """density: optical density against the background [3, h, w]."""
        _, height, width = density.shape
        padded = np.zeros((3, -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE), np.float32)
        np.multiply(density, gain_of(density), out=padded[:, :height, :width])
        raw = _run(padded)
        rows, columns = np.indices(raw.shape[1:], np.float32)
        return cls(
            1 / (1 + np.exp(-raw[0])),
            (columns + raw[1] + 0.5) * STRIDE,
            (rows + raw[2] + 0.5) * STRIDE,
            RED_CELL * np.exp(raw[3]),
            RED_CELL * np.exp(raw[4]),
        )


def gain_of(density: Real) -> float:
    """Return the factor that brings weak and strong stains to the strength that the network knows."""
    green = density[1]
    total = float(green.sum())
    mean = float(np.vdot(green, green)) / total if total > 0 else STAINED
    return min(max(STAINED / max(mean, 1e-3), LEAST_GAIN), MOST_GAIN)


@cache
def _layers() -> dict[str, Layer]:
    """Read the weights, once: a decoder may open no file later."""
    with np.load(WEIGHTS, allow_pickle=False) as arrays:
        names = [name.removesuffix(".weight") for name in arrays.files if name.endswith(".weight")]
        return {
            name: (
                arrays[f"{name}.weight"].astype(np.float32),
                arrays[f"{name}.bias"].astype(np.float32)[:, None],
            )
            for name in names
        }


def _run(density: Real) -> Real:
    """density [3, h, w], in multiples of 4 → [5, h / 4, w / 4]."""
    layers = _layers()
    _, height, width = density.shape
    blocks = density.reshape(3, height // 2, 2, width // 2, 2)
    x = blocks.transpose(0, 2, 4, 1, 3).reshape(12, height // 2, width // 2)
    x = _positive(_convolve(x, layers["fine"]))
    x = _positive(_convolve(x, layers["coarse"], stride=2))
    x = _positive(_convolve(x, layers["near"]))
    x = _positive(x + _convolve(x, layers["around"], dilation=2))
    x = _positive(x + _convolve(x, layers["beyond"], dilation=3))
    return _mix(_positive(_mix(x, layers["mixed"])), layers["head"])


def _positive(x: Real) -> Real:
    return np.maximum(x, 0, out=x)


def _mix(x: Real, layer: Layer) -> Real:
    """Convolve with a kernel of 1 × 1."""
    weights, bias = layer
    mixed: Real = weights[:, :, 0, 0] @ x.reshape(len(x), -1) + bias
    return mixed.reshape(-1, *x.shape[1:])


def _convolve(x: Real, layer: Layer, *, stride: int = 1, dilation: int = 1) -> Real:
    """Convolve [in, h, w] with a kernel of 3 × 3; outside are zeros."""
    weights, bias = layer
    out, channels = weights.shape[:2]
    matrix = weights.transpose(0, 2, 3, 1).reshape(out, 9 * channels)
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    padded = np.pad(x, ((0, 0), (dilation, dilation), (dilation, dilation)))
    result = np.empty((out, height, width), np.float32)
    rows = max(1, BLOCK // width)
    for row in range(0, height, rows):
        count = min(rows, height - row)
        columns = np.empty((9, channels, count, width), np.float32)
        for place in range(9):
            top, left = place // 3 * dilation + row * stride, place % 3 * dilation
            columns[place] = padded[
                :,
                top : top + (count - 1) * stride + 1 : stride,
                left : left + (width - 1) * stride + 1 : stride,
            ]
        product = matrix @ columns.reshape(9 * channels, -1) + bias
        result[:, row : row + count] = product.reshape(out, count, width)
    return result
