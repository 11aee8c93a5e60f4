"""Describe how a picture was stained and taken, which the pictures of a laboratory have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.imaging.thumbnail import LOGARITHMS

LENGTH = 30  # numbers of a description
STEP = 3  # every third pixel in both directions is enough for the colours
BLACK = 5  # of 255; darker pixels are padding outside the image
DENSITY = LOGARITHMS.astype(np.float32)
DENSITY_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
DETAIL_SHARES = (0.1, 0.25, 0.5, 0.75, 0.95)

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]


def describe(pixels: Pixels) -> NDArray[np.float32]:
    """Return the description [30] of a framed cell, RGB [size, size, 3].

    Quantiles of the channels' optical densities, their standard deviations and correlations, and quantiles of
    the fine detail in green.
    """
    sample = np.ascontiguousarray(pixels[::STEP, ::STEP].reshape(-1, 3).T)  # [3, n]
    bright = sample.max(0) >= BLACK
    # Nearly all pictures have no padding, and some have nothing else.
    lit = sample if bright.all() or np.count_nonzero(bright) < LENGTH else sample[:, bright]
    n = lit.shape[1]
    density = DENSITY[lit]
    centred = density - density.mean(1, keepdims=True)
    covariance = centred @ centred.T / n
    spread = np.sqrt(np.diagonal(covariance)) + 1e-3
    correlation = covariance / np.outer(spread, spread)
    places = [round(share * (n - 1)) for share in DENSITY_SHARES]
    quantiles = DENSITY[np.sort(lit, axis=1, kind="stable")[:, places]]
    pairs = correlation[[0, 0, 1], [1, 2, 2]]
    return np.concatenate([quantiles.ravel(), spread, pairs, np.log1p(detail(pixels[..., 1]))]).astype(
        np.float32
    )


def detail(channel: Pixels) -> Floats:
    """Return quantiles and mean of the absolute Laplacian in every second row, where it is not padding."""
    levels = channel.astype(np.int16)
    rows = levels[1:-1:2]
    inner = rows[:, 1:-1]
    beside = rows[:, :-2] + rows[:, 2:] + levels[:-2:2, 1:-1] + levels[2::2, 1:-1]
    laplacian = np.abs(4 * inner - beside)
    bright = inner >= BLACK
    found = laplacian.ravel() if bright.all() or not bright.any() else laplacian[bright]
    counts = np.bincount(found)
    quantiles = np.searchsorted(counts.cumsum(), np.multiply(DETAIL_SHARES, len(found)))
    return np.append(quantiles, found.mean())
