"""Compose training samples for the search for leukocytes: `Composer`.

A sample is a part of a picture at a random magnification, turned and stained at random, with other pictures'
cells and platelets pasted on it, drawn debris, and a second picture beside it as in a mosaic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from app.imaging.cell_map import DENSEST, RED_CELL, STRIDE, gain_of
from training.fields.sources import COARSE, FINE, Source, Spot

SIDE = 64  # pixels of a sample
SHARES = {  # of the samples, by laboratory
    "bccd": 0.26,
    "draaslan": 0.15,
    "pbc": 0.14,
    "others": 0.10,
    "platelet": 0.11,
    "lisc": 0.12,
    "raabin": 0.10,
    "drawn": 0.05,
}
MAGNIFICATIONS, WIDE = (0.6, 1.7), (0.2, 3.2)  # against `RED_CELL`; in the wide range, red cells are measured
JUDGED = (0.5, 2.0)  # magnifications at which leukocytes are learned
RED_CELLS = torch.tensor(  # optical densities: pink, brown, grey, blue, purple, pale, brownish grey
    [
        [0.12, 0.35, 0.24],
        [0.10, 0.30, 0.35],
        [0.30, 0.36, 0.20],
        [0.42, 0.42, 0.14],
        [0.35, 0.50, 0.15],
        [0.06, 0.22, 0.16],
        [0.22, 0.30, 0.26],
    ]
)
NUCLEI = torch.tensor(
    [
        [0.75, 0.95, 0.25],
        [0.60, 0.95, 0.15],
        [0.95, 0.85, 0.25],
        [1.20, 1.25, 0.60],
        [0.55, 0.65, 0.20],
        [0.90, 1.20, 0.30],
    ]
)
DARKER = 1.5  # a nucleus in red light ÷ red cells, at least

Rng = np.random.Generator
Plane = NDArray[np.float64]
ROWS, COLUMNS = np.indices((SIDE, SIDE), np.float64)


class Sample(NamedTuple):
    """density [3, side, side], and for each place of the map [side / 4, side / 4]: how near it is to a
    leukocyte, 0 to 1; its x, y, log extent and log red cell [4, …]; whether the place is inside a nucleus; in
    its middle; whether it is known what is there.
    """

    density: torch.Tensor
    near: torch.Tensor
    measures: torch.Tensor
    inside: torch.Tensor
    middle: torch.Tensor
    judged: torch.Tensor

    def turned(self, rng: Rng) -> Sample:
        """Return a batch that is mirrored and turned by quarters at random."""
        maps = list(self)
        measures = self.measures.clone()
        for axis, place in ((-1, 0), (-2, 1)):
            if rng.random() < 0.5:
                maps, measures = [plane.flip(axis) for plane in maps], measures.flip(axis)
                measures[:, place] *= -1
        if rng.random() < 0.5:
            maps = [plane.transpose(-1, -2) for plane in maps]
            measures = measures.transpose(-1, -2)[:, [1, 0, 2, 3]]
        return Sample(*maps)._replace(measures=measures)


@dataclass
class _Canvas:
    """density [3, side, side]; known: where it is known what is there; cells: in the canvas's pixels."""

    density: torch.Tensor
    known: torch.Tensor
    cells: list[Spot]
    covered: torch.Tensor  # by the picture itself


class Composer:
    """Composes samples of sources."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources: dict[str, list[Source]] = {}
        for source in sources:
            self.sources.setdefault(source.laboratory, []).append(source)
        self.laboratories = [name for name in SHARES if name in self.sources]
        shares = np.array([SHARES[name] for name in self.laboratories])
        self.shares = shares / shares.sum()

    def compose(self, rng: Rng) -> Sample:
        """Return a sample."""
        low, high = MAGNIFICATIONS if rng.random() < 0.7 else WIDE
        zoom = math.exp(rng.uniform(math.log(low), math.log(high)))
        source = self.pick(rng)
        canvas = place(source, rng, zoom)
        stain = stain_of(source, rng)
        canvas.density = apply(stain, canvas.density)
        canvas.cells = [cell for cell in canvas.cells if _in_reach(cell)]
        if rng.random() < 0.25:
            self._add_neighbour(canvas, rng, zoom)
        if rng.random() < 0.45:
            self._paste(canvas, rng, zoom, source, stain)
        density = add_debris(canvas.density, rng, zoom) if rng.random() < 0.5 else canvas.density
        density = expose(density, rng)
        density = density * gain_of(density.numpy()) * math.exp(rng.normal(0, 0.15))
        return Sample(density, *targets(canvas.cells, canvas.known, zoom))

    def pick(self, rng: Rng, laboratory: str | None = None) -> Source:
        name = laboratory or self.laboratories[rng.choice(len(self.laboratories), p=self.shares)]
        pool = self.sources[name]
        return pool[rng.integers(len(pool))]

    def _add_neighbour(self, canvas: _Canvas, rng: Rng, zoom: float) -> None:
        """Cover one side with another picture."""
        source = self.pick(rng)
        other = place(source, rng, zoom)
        density = apply(stain_of(source, rng), other.density)
        if rng.random() < 0.4:
            density = density + _tensor(rng.uniform(0, 0.5, (3, 1, 1)))
        axis, border = int(rng.integers(2)), rng.uniform(8, SIDE - 8)
        beyond = torch.from_numpy((COLUMNS, ROWS)[axis] >= border)
        canvas.density = torch.where(beyond, density, canvas.density)
        canvas.known = torch.where(beyond, other.known, canvas.known)
        canvas.cells = [cell for cell in canvas.cells if cell[axis] < border] + [
            cell for cell in other.cells if cell[axis] >= border and _in_reach(cell)
        ]

    def _paste(self, canvas: _Canvas, rng: Rng, zoom: float, source: Source, stain: torch.Tensor) -> None:
        """Paste discs with cells or platelets, some next to other cells."""
        count = int(rng.integers(1, 5) if rng.random() < 0.7 else rng.integers(5, 16))
        same = self.pick(rng).laboratory if rng.random() < 0.7 else None
        for _ in range(count):
            platelet = "platelet" in self.sources and rng.random() < 0.3
            donor = self.pick(rng, "platelet" if platelet else same)
            if not donor.middle:
                continue
            platelet = donor.laboratory == "platelet"
            x, y, extent = donor.middle[rng.integers(len(donor.middle))][:3]
            extent *= zoom * RED_CELL / FINE
            radius = (0.62 if platelet else 0.92) * extent * rng.uniform(0.9, 1.1)
            to = rng.uniform(0, SIDE, 2)
            if canvas.cells and not platelet and rng.random() < 0.6:
                near, angle = canvas.cells[rng.integers(len(canvas.cells))], rng.uniform(0, 2 * math.pi)
                distance = (near[3] + radius) * rng.uniform(0.8, 1.05)
                to = np.array([near[0] + distance * math.cos(angle), near[1] + distance * math.sin(angle)])
            apart = [(math.hypot(cell[0] - to[0], cell[1] - to[1]), cell[3]) for cell in canvas.cells]
            if any(distance < 0.75 * (other + radius) for distance, other in apart):
                continue
            patch = place(donor, rng, zoom, at=(x, y), to=to)
            own = donor.laboratory == source.laboratory and rng.random() > 0.3
            density = apply(stain if own else stain_of(donor, rng), patch.density)
            mask = _tensor(soft(np.hypot(COLUMNS - to[0], ROWS - to[1]) - radius, 0.4)) * patch.covered
            canvas.density = canvas.density * (1 - mask) + density * mask
            canvas.known = canvas.known | (mask > 0.5)
            if not platelet:
                canvas.cells.append((float(to[0]), float(to[1]), extent, radius))


def place(
    source: Source,
    rng: Rng,
    zoom: float,
    *,
    at: tuple[float, float] | None = None,
    to: NDArray[np.float64] | None = None,
) -> _Canvas:
    """Lay a picture on a canvas, turned at random. at: place of the picture that comes `to` the canvas's."""
    level, ratio = (source.coarse, COARSE / FINE) if zoom <= 1 else (source.fine, 1.0)
    density = level.float()
    height, width = density.shape[1:]
    scale = zoom * RED_CELL / (FINE * ratio)
    angle, flip = rng.uniform(0, 2 * math.pi), rng.choice([-1, 1])
    stretch = math.exp(rng.normal(0, 0.05))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.diag([flip * stretch, 1 / stretch]) / scale
    if at is not None:
        origin = np.array(at) * ratio
    elif source.middle and rng.random() < 0.75:
        origin = np.array(source.middle[rng.integers(len(source.middle))][:2]) * ratio
    else:
        origin = rng.uniform((0, 0), (width, height))
    if to is None:
        to = rng.uniform(4, SIDE - 4, 2)
    points = (np.stack([COLUMNS, ROWS], -1) - to) @ matrix.T + origin
    x, y = points[..., 0], points[..., 1]
    grid = _tensor(np.stack([2 * (x + 0.5) / width - 1, 2 * (y + 0.5) / height - 1], -1))
    mirrored = zoom < 0.55 or rng.random() < 0.5  # beyond the picture: mirrored, else background
    sampled = functional.grid_sample(
        density[None],
        grid[None],
        padding_mode="reflection" if mirrored else "zeros",
        align_corners=False,
    )[0]
    covered = torch.from_numpy((x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5))
    known = covered.clone() if mirrored else torch.ones_like(covered)
    back = np.linalg.inv(matrix)

    def on_canvas(spot: Spot) -> Spot:
        x, y = back @ (np.array(spot[:2]) * ratio - origin) + to
        return (float(x), float(y), *(length * ratio * scale for length in spot[2:]))

    for x0, y0, radius in map(on_canvas, source.ignored):
        known &= torch.from_numpy(np.hypot(COLUMNS - x0, ROWS - y0) > radius)
    return _Canvas(sampled, known, [on_canvas(cell) for cell in source.cells], covered)


def stain_of(source: Source, rng: Rng) -> torch.Tensor:
    """Return a random matrix [3, 3] of densities.

    Half of them change colours a little; the others give red cells and nuclei those of any smear.
    """
    if rng.random() < 0.5:
        matrix = torch.eye(3) + _tensor(rng.normal(0, 0.06, (3, 3)))
        return torch.diag(_tensor(np.exp(rng.normal(0, 0.15, 3)))) @ matrix * math.exp(rng.normal(0, 0.25))
    red_cell = _mixture(RED_CELLS, rng) * math.exp(rng.normal(0, 0.2))
    nucleus = _mixture(NUCLEI, rng) * math.exp(rng.normal(0, 0.15))
    red_cell[0] = torch.minimum(red_cell[0], nucleus[0] / DARKER)
    before = torch.stack([source.red_cell, source.nucleus], 1)
    after = torch.stack([red_cell, nucleus], 1)
    inverse = torch.linalg.inv(before.T @ before + 0.01 * torch.eye(2))  # of a ridge regression
    changed: torch.Tensor = torch.eye(3) + (after - before) @ inverse @ before.T
    return changed


def apply(stain: torch.Tensor, density: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ij,jhw->ihw", stain, density)


def _mixture(colours: torch.Tensor, rng: Rng) -> torch.Tensor:
    return _tensor(rng.dirichlet([0.6] * len(colours))) @ colours


def add_debris(density: torch.Tensor, rng: Rng, zoom: float) -> torch.Tensor:
    """Draw platelets, parasites, infected red cells, precipitate, haze, fibres and bars."""
    size = RED_CELL * zoom
    for _ in range(rng.integers(1, 9)):
        kind = rng.random()
        colour = _mixture(NUCLEI, rng) * float(rng.uniform(0.5, 1.3))
        x, y = rng.uniform(0, SIDE, 2)
        distance, angle = np.hypot(COLUMNS - x, ROWS - y), rng.uniform(0, math.pi)
        along = (COLUMNS - x) * math.cos(angle) + (ROWS - y) * math.sin(angle)
        across = (ROWS - y) * math.cos(angle) - (COLUMNS - x) * math.sin(angle)
        if kind < 0.12:  # infected red cell
            texture = np.clip(0.6 + 0.5 * smooth_noise(rng, int(rng.integers(12, 40))), 0, 1)
            mask = soft(distance - rng.uniform(0.25, 0.5) * size, 0.4) * texture * rng.uniform(0.15, 0.45)
        elif kind < 0.6:  # platelet, parasite, precipitate
            stretch = math.exp(rng.normal(0, 0.35))
            reach = np.hypot(along / stretch, across * stretch) - rng.uniform(0.05, 0.22) * size
            mask = soft(reach, rng.uniform(0.2, 0.6))
        elif kind < 0.78:  # ring, or a broken one
            mask = np.exp(-(((distance - rng.uniform(0.12, 0.3) * size) / (0.1 * size)) ** 2))
            if rng.random() < 0.4:
                mask = mask * (rng.random((SIDE, SIDE)) < 0.6)
        elif kind < 0.87:  # haze of stain
            noise = smooth_noise(rng, int(rng.integers(3, 8)))
            mask = np.clip(noise - rng.uniform(0.8, 1.8), 0, 1) * rng.uniform(0.2, 0.7)
        elif kind < 0.95:  # fibre, scratch
            mask = (
                (abs(across) < rng.uniform(0.5, 2.5)) * (distance < rng.uniform(8, 60)) * rng.uniform(0.4, 1)
            )
            if rng.random() < 0.5:
                colour = torch.full((3,), 2 * float(rng.random()))
        else:  # scale bar
            mask = 1.0 * (abs(COLUMNS - x) < rng.uniform(3, 40)) * (abs(ROWS - y) < rng.uniform(1, 4))
            colour = _tensor(rng.uniform(0, 2.3, 3))
        drawn = colour[:, None, None] * _tensor(mask)
        density = torch.maximum(density, drawn) if rng.random() < 0.5 else density + 0.8 * drawn
    return density


def expose(density: torch.Tensor, rng: Rng) -> torch.Tensor:
    """Add what lamp, lens and sensor do."""
    density = density + _tensor(rng.normal(0, 0.03, (3, 1, 1)))
    if rng.random() < 0.3:
        density = density + _tensor(smooth_noise(rng, 3)) * float(rng.uniform(0, 0.12))
    if rng.random() < 0.08:
        density = density + _tensor(rng.uniform(0, 0.45, (3, 1, 1)))
    if rng.random() < 0.3:
        sigma = float(rng.uniform(0.2, 0.8))
        kernel = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))
        kernel = (kernel[:, None] * kernel) / kernel.sum() ** 2
        wide = functional.pad(density[:, None], (2, 2, 2, 2), mode="replicate")
        density = functional.conv2d(wide, kernel[None, None])[:, 0]
    noise = rng.normal(0, rng.uniform(0, 0.05), tuple(density.shape))
    return (density + _tensor(noise)).clamp(0, DENSEST)


def targets(cells: list[Spot], known: torch.Tensor, zoom: float) -> tuple[torch.Tensor, ...]:
    """Return `near`, `measures`, `inside`, `middle` and `judged` of a sample."""
    count = SIDE // STRIDE
    rows, columns = np.indices((count, count), np.float64)
    near, closest = np.zeros((count, count)), np.full((count, count), np.inf)
    measures = np.zeros((4, count, count))
    inside, middle = np.zeros((2, count, count), np.bool_)
    for x, y, extent, _ in cells:
        if not (0 <= x < SIDE and 0 <= y < SIDE):
            continue
        x, y, size = (x + 0.5) / STRIDE - 0.5, (y + 0.5) / STRIDE - 0.5, extent / STRIDE
        distance = np.hypot(columns - x, rows - y)
        near = np.maximum(near, np.exp(-((distance / max(0.55, 0.22 * size)) ** 2) / 2))
        middle[min(max(round(y), 0), count - 1), min(max(round(x), 0), count - 1)] = True
        own = (distance < max(1.2, 0.35 * size)) & (distance < closest)
        closest = np.where(own, distance, closest)
        measures[0][own], measures[1][own] = (x - columns)[own], (y - rows)[own]
        measures[2][own] = math.log(max(extent, 1) / RED_CELL)
        inside |= own
    measures[3] = math.log(zoom)
    near[middle] = 1
    judged = functional.avg_pool2d(known.float()[None], STRIDE)[0] > 0.6
    judged &= JUDGED[0] < zoom < JUDGED[1]
    return (
        _tensor(near),
        _tensor(measures),
        torch.from_numpy(inside),
        torch.from_numpy(middle) & judged,
        judged,
    )


def soft(distance: Plane, breadth: float) -> Plane:
    """Return 1 within a border (distance below 0), 0 outside."""
    inside: Plane = 1 / (1 + np.exp(np.clip(distance / breadth, -30, 30)))
    return inside


def smooth_noise(rng: Rng, cells: int) -> Plane:
    """Return noise of standard deviation about 1 that changes `cells` times over the canvas."""
    noise = torch.from_numpy(rng.normal(0, 1, (1, 1, cells, cells)))
    plane: Plane = functional.interpolate(noise, (SIDE, SIDE), mode="bicubic", align_corners=True)[
        0, 0
    ].numpy()
    return plane


def _in_reach(cell: Spot) -> bool:
    return -1 <= cell[0] < SIDE + 1 and -1 <= cell[1] < SIDE + 1


def _tensor(values: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
