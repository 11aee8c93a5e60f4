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


def describe(pixels: Pixels) -> Floats:
    """Return the description [30] of a framed cell, RGB [size, size, 3].

    Quantiles of the channels' optical densities, their standard deviations and correlations, and quantiles of
    the fine detail in green.
    """
    sample = np.ascontiguousarray(pixels[::STEP, ::STEP].reshape(-1, 3).T)  # [3, n]
    lit = sample[:, sample.max(0) >= BLACK]
    if lit.shape[1] < LENGTH:  # nothing but padding
        lit = sample
    n = lit.shape[1]
    density = DENSITY[lit]
    centred = density - density.mean(1, keepdims=True)
    covariance = centred @ centred.T / n
    spread = np.sqrt(np.diagonal(covariance)) + 1e-3
    correlation = covariance / np.outer(spread, spread)
    places = [round(share * (n - 1)) for share in DENSITY_SHARES]
    quantiles = DENSITY[np.sort(lit, axis=1)[:, places]]
    return np.concatenate(
        [quantiles.ravel(), spread, correlation[[0, 0, 1], [1, 2, 2]], np.log1p(detail(pixels[..., 1]))]
    )


def detail(channel: Pixels) -> Floats:
    """Return quantiles and mean of the absolute Laplacian in every second row, where it is not padding."""
    levels = channel.astype(np.int16)
    rows = levels[1:-1:2]
    inner = rows[:, 1:-1]
    beside = rows[:, :-2] + rows[:, 2:] + levels[:-2:2, 1:-1] + levels[2::2, 1:-1]
    laplacian = np.abs(4 * inner - beside)
    found = laplacian[inner >= BLACK]
    if not len(found):
        found = laplacian.ravel()
    counts = np.bincount(found)
    quantiles = np.searchsorted(counts.cumsum(), np.multiply(DETAIL_SHARES, len(found)))
    return np.append(quantiles, found.mean())
