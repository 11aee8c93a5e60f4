"""Augmentation of training batches: geometry, sharpness, stain and colour, on the batch's own device.

Transmitted light falls exponentially with the amount of stain (Beer-Lambert law). Stains are therefore varied
in optical density, where another laboratory's dyes and exposure are a linear map and the white background
stays white.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from training.config import Augmentation

BLACK = 5.0  # of 255; darker pixels are padding outside the image and keep their value
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


def augment(patches: Tensor, size: int, room: float, a: Augmentation, rng: torch.Generator) -> Tensor:
    """Augment patches and crop them to the network's input.

    patches: RGB uint8 [n, p, p, 3], each `room` times as wide as the frame in its middle.
    Returns float [n, size, size, 3] in 0 to 255. `rng` is a CPU generator, so that the random numbers do not
    depend on the device.
    """
    pixels = warp(patches.permute(0, 3, 1, 2).float(), size, room, a, rng)
    pixels = soften(pixels, a, rng)
    pixels = transfer(pixels, a, rng)
    pixels = stain(pixels, a, rng)
    return recolour(pixels, a, rng).clamp(0, 255).permute(0, 2, 3, 1)


def warp(pixels: Tensor, size: int, room: float, a: Augmentation, rng: torch.Generator) -> Tensor:
    """Rotate, mirror, shear, scale and shift the frame in one resampling; black outside the image."""
    n = len(pixels)
    angle = uniform(rng, n, -a.rotation, a.rotation) * math.pi / 180
    shear = torch.tan(uniform(rng, n, -a.shear, a.shear) * math.pi / 180)
    scale = torch.exp(uniform(rng, n, math.log(a.scale[0]), math.log(a.scale[1]))) / room
    across = torch.where(chance(rng, n, 0.5 * a.flip_horizontal), -scale, scale)
    down = torch.where(chance(rng, n, 0.5 * a.flip_vertical), -scale, scale)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Output coordinates → rotated and sheared about the centre → scaled to the patch.
    x = torch.stack([across * cos, across * (cos * shear - sin)], dim=1)
    y = torch.stack([down * sin, down * (sin * shear + cos)], dim=1)
    shift = uniform(rng, (n, 2, 1), -2 * a.shift, 2 * a.shift) / room
    matrix = torch.cat([torch.stack([x, y], dim=1), shift], dim=2).to(pixels.device)
    grid = affine_grid(matrix, [n, 3, size, size], align_corners=False)
    return grid_sample(pixels, grid, padding_mode="zeros", align_corners=False)


def soften(pixels: Tensor, a: Augmentation, rng: torch.Generator) -> Tensor:
    """Blur a random share of the batch; one random strength for the whole batch."""
    size = pixels.shape[-1]
    small = round(size * float(uniform(rng, 1, 0.4, 1.0)))
    chosen = chance(rng, len(pixels), a.blur).to(pixels.device)
    if not chosen.any():
        return pixels
    blurred = interpolate(pixels, small, mode="bilinear", antialias=True)
    return torch.where(chosen.view(-1, 1, 1, 1), interpolate(blurred, size, mode="bilinear"), pixels)


def transfer(pixels: Tensor, a: Augmentation, rng: torch.Generator) -> Tensor:
    """Move a random share's mean and covariance of optical density towards another image's, part of the way.

    Colour transfer as by Reinhard et al. 2001, with correlated channels (Xiao and Ma 2006).
    """
    if not a.transfer:
        return pixels
    n, _, height, width = pixels.shape
    lit = (pixels.amax(1, keepdim=True) >= BLACK).flatten(2).to(pixels.dtype)  # [n, 1, h · w]
    weight = lit / lit.sum(2, keepdim=True).clamp(min=1)
    density = -torch.log(pixels.clamp(min=1) / 255).flatten(2)
    mean = (weight * density).sum(2, keepdim=True)
    centred = density - mean
    covariance = (weight * centred) @ centred.transpose(1, 2) + 1e-4 * torch.eye(3, device=pixels.device)
    root = torch.linalg.cholesky(covariance)
    other = torch.randperm(n, generator=rng)
    moved = root[other] @ torch.linalg.solve_triangular(root, centred, upper=False) + mean[other]
    share = uniform(rng, (n, 1, 1), 0, 1) * chance(rng, n, a.transfer).view(-1, 1, 1)
    part = share.to(pixels.device) * lit
    changed = 255 * torch.exp(-(density + part * (moved - density)))
    return torch.where(part > 0, changed, pixels.flatten(2)).view(n, 3, height, width)


def stain(pixels: Tensor, a: Augmentation, rng: torch.Generator) -> Tensor:
    """Vary the optical density: channel mixture, strength, hue, spread (towards that of another image)."""
    if not (a.stain or a.strength or a.exchange or a.hue):
        return pixels
    n, device = len(pixels), pixels.device
    density = -torch.log(pixels.clamp(min=1) / 255)
    spread = density.std((2, 3), keepdim=True).clamp(min=1e-3).log()
    share = uniform(rng, (n, 1, 1, 1), 0, 1) * chance(rng, n, a.exchange).view(-1, 1, 1, 1)
    exchanged = torch.exp(share.to(device) * (spread[torch.randperm(n, generator=rng)] - spread))
    mixing = torch.eye(3) + a.stain * torch.randn(n, 3, 3, generator=rng)
    mixing = mixing * torch.exp(a.strength * torch.randn(n, 1, 1, generator=rng))
    if a.hue:
        mixing = hue_rotation(uniform(rng, n, -a.hue, a.hue) * math.pi / 180) @ mixing
    density = torch.einsum("nij,njhw->nihw", mixing.to(device), density * exchanged)
    return torch.where(pixels.amax(1, keepdim=True) < BLACK, pixels, 255 * torch.exp(-density))


def hue_rotation(angle: Tensor) -> Tensor:
    """Return the rotations [n, 3, 3] of red, green and blue about their grey axis by angles [n]."""
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = torch.cos(angle).view(-1, 1, 1), torch.sin(angle).view(-1, 1, 1)
    return cos * torch.eye(3) + (1 - cos) * axis + sin * cross


def recolour(pixels: Tensor, a: Augmentation, rng: torch.Generator) -> Tensor:
    """Vary brightness, contrast about the mean, saturation, and each channel's gain; take colour away."""
    n, device = len(pixels), pixels.device

    def factor(amount: float, channels: int = 1) -> Tensor:
        return uniform(rng, (n, channels, 1, 1), 1 - amount, 1 + amount).to(device)

    if a.brightness:
        pixels = pixels * factor(a.brightness)
    if a.contrast:
        mean = pixels.mean((1, 2, 3), keepdim=True)
        pixels = mean + (pixels - mean) * factor(a.contrast)
    if a.saturation or a.grey:
        grey = (pixels * pixels.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        colour = factor(a.saturation)
        if a.grey:
            faded = chance(rng, n, a.grey).view(-1, 1, 1, 1) * uniform(rng, (n, 1, 1, 1), 0.6, 1.0)
            colour = colour * (1 - faded).to(device)
        pixels = grey + (pixels - grey) * colour
    return pixels * factor(a.tint, 3) if a.tint else pixels


def uniform(rng: torch.Generator, shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def chance(rng: torch.Generator, n: int, probability: float) -> Tensor:
    return torch.rand(n, generator=rng) < probability
