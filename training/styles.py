"""Mixing of styles inside the network: another laboratory's contrast and tint on a cell's own shapes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SHAPE = 0.1  # of the beta distribution of shares: an image mostly keeps its style or takes another's
EPSILON = 1e-6


def mix_styles(maps: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Move each image's channel means and deviations towards those of another one in the batch.

    maps: [n, channels, h, w]. probability: of doing so for this batch. MixStyle (Zhou et al. 2021,
    arXiv:2104.02008). `rng` is a CPU generator.
    """
    if torch.rand((), generator=rng) >= probability:
        return maps
    n = len(maps)
    values = maps.float()
    mean = values.mean((2, 3), keepdim=True).detach()
    deviation = (values.var((2, 3), keepdim=True) + EPSILON).sqrt().detach()
    seed = int(torch.randint(2**31, (), generator=rng))
    shares = np.random.default_rng(seed).beta(SHAPE, SHAPE, (n, 1, 1, 1)).astype(np.float32)
    own = torch.from_numpy(shares).to(maps.device)
    other = torch.randperm(n, generator=rng)
    mixed_mean = own * mean + (1 - own) * mean[other]
    mixed_deviation = own * deviation + (1 - own) * deviation[other]
    return ((values - mean) / deviation * mixed_deviation + mixed_mean).to(maps.dtype)
